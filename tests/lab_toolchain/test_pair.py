"""The two QEMU versions of this machine understand each other's migration stream."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vmferry.lab.toolchain.qemu import QemuBinary, find_qemu

#: one machine both have, no ROM whose size may differ
MACHINE = (
    *("-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc-q35-7.2,accel=tcg", "-cpu", "qemu64"),
    *("-m", "32", "-device", "virtio-net-pci,romfile=", "-device", "e1000,romfile=", "-qmp", "stdio"),
)


class Process:
    """A QEMU with QMP on its standard input and output."""

    def __init__(self, running: "subprocess.Popen[str]") -> None:
        self._running = running

    def until(self, key: str, value: object | None = None) -> dict[str, Any]:
        """Return the first message that has the key (with the value); fails when QEMU ends before."""
        assert self._running.stdout is not None
        for line in self._running.stdout:
            message: dict[str, Any] = json.loads(line)
            assert "error" not in message, message
            if key in message and value in (None, message[key]):
                return message
        raise AssertionError(f"QEMU ended before {key} {value or ''}")

    def ask(self, command: str, **arguments: object) -> Any:
        """Return a command's result."""
        assert self._running.stdin is not None
        self._running.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._running.stdin.flush()
        return self.until("return")["return"]

    def wait_status(self, wanted: str) -> None:
        """Wait for the migration's status; fails on `failed`."""
        status = ""
        while status != wanted:
            status = self.until("event", "MIGRATION")["data"]["status"]
            assert status != "failed"


@contextmanager
def started(binary: QemuBinary, *more: str) -> Iterator[Process]:
    """Run a QEMU that is killed at the end, and after a minute in any case."""
    with subprocess.Popen(
        [*binary.argv, *MACHINE, *more],
        env={**os.environ, **binary.env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        deadline = threading.Timer(60, running.kill)
        deadline.start()
        try:
            process = Process(running)
            process.until("QMP")
            process.ask("qmp_capabilities")
            process.ask("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
            yield process
        finally:
            deadline.cancel()
            running.kill()
            deadline.join()


@pytest.mark.real
@pytest.mark.parametrize(("old", "new"), [((7, 2), (10, 0)), ((10, 0), (7, 2))], ids=["7.2-10.0", "10.0-7.2"])
def test_a_guest_moves_between_the_versions(old: tuple[int, int], new: tuple[int, int], tmp_path: Path) -> None:
    """A running guest of one version goes on in the other, in both directions."""
    uri = f"unix:{tmp_path}/stream"
    with started(find_qemu(*old)) as source, started(find_qemu(*new), "-incoming", "defer") as destination:
        destination.ask("migrate-incoming", uri=uri)
        source.ask("migrate", uri=uri)
        source.wait_status("completed")
        destination.wait_status("completed")
        while (state := source.ask("query-status")["status"]) == "finish-migrate":
            pass  # 10.0 tells the end a moment before it enters its last state; the process is killed after a minute
        assert state == "postmigrate"
        assert destination.ask("query-status")["running"] is True
