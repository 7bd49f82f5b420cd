"""Real QEMUs without our driver: what they themselves say to a set of capabilities, and what becomes of a stream."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vmferry.lab.toolchain import QemuBinary

#: Longer than any of these streams takes; a process that says nothing for so long hangs.
ANSWER_LIMIT_S = 60.0
OVER = ("completed", "failed")
PAUSED_GUEST = ("-machine", "q35,accel=tcg", "-m", "32", "-S")
#: A boot sector that increments one byte in each of 16 pages, for ever. It toggles CR0.WP each time: that empties the
#: TLB, without which 7.2 under TCG does not see that a page was written again.
WRITER = bytes.fromhex("b800208ec031ff26fe0581c700100f20c06635000001000f22c0ebeb").ljust(510, b"\0") + b"\x55\xaa"
WRITTEN_AT = 0x20000


class Dead(Exception):
    """The process ended; its last words."""


class BareQemu:
    """One QEMU and its QMP line, without any knowledge of ours."""

    def __init__(self, binary: QemuBinary, *argv: str) -> None:
        self._line, theirs = socket.socketpair()
        self.limit_s = ANSWER_LIMIT_S  #: how long it may take to answer
        self._line.settimeout(ANSWER_LIMIT_S)
        self._rest = b""
        self.status: str | None = None  #: from the last MIGRATION event
        with theirs:
            fd = theirs.fileno()
            common = ["-nodefaults", "-no-user-config", "-display", "none"]
            monitor = ["-chardev", f"socket,id=qmp,fd={fd}", "-mon", "chardev=qmp,mode=control"]
            self._process = subprocess.Popen(
                [*binary.argv, *common, *argv, *monitor],
                env={**os.environ, **binary.env},
                pass_fds=(fd,),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        self._read()
        self.ask("qmp_capabilities")

    def ask(self, command: str, /, **arguments: object) -> str | None:
        """Return None when QEMU said yes, else its words."""
        answer = self._execute(command, arguments, None)
        return answer["error"]["desc"] if "error" in answer else None

    def query(self, command: str) -> Any:
        """Return QEMU's answer."""
        return self._execute(command, {}, None)["return"]

    def give(self, fd: int, name: str) -> None:
        """Hand a descriptor over; ours is closed."""
        assert "return" in self._execute("getfd", {"fdname": name}, fd)
        os.close(fd)

    def set_on(self, names: Iterable[str], known: Iterable[str]) -> str | None:
        """Set exactly these of the known capabilities on, all in one command."""
        on = set(names)
        return self.ask("migrate-set-capabilities", capabilities=[{"capability": n, "state": n in on} for n in known])

    def peek(self, address: int) -> int:
        """Return a byte of the guest's memory."""
        text: str = self._execute("human-monitor-command", {"command-line": f"xp /1xb {address}"}, None)["return"]
        return int(text.split(":")[1], 16)

    def capabilities(self) -> list[str]:
        """Return the names of all that it knows."""
        return [row["capability"] for row in self.query("query-migrate-capabilities")]

    def wait(self, *statuses: str, limit_s: float = ANSWER_LIMIT_S) -> str | None:
        """Wait for a MIGRATION event of one of these; None: none came in time."""
        deadline = time.monotonic() + limit_s
        while self.status not in statuses:
            self._line.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self._read()
            except TimeoutError:
                return None
            finally:
                self._line.settimeout(self.limit_s)
        return self.status

    def wait_dead(self) -> str:
        """Wait until the process ends by itself; return its last words."""
        self._process.wait(ANSWER_LIMIT_S)
        assert self._process.stderr is not None
        return self._process.stderr.read().decode(errors="replace")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._line.close()

    def _execute(self, command: str, arguments: dict[str, object], fd: int | None) -> dict[str, Any]:
        self._line.settimeout(self.limit_s)
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        try:
            if fd is None:
                self._line.sendall(line)
            else:
                socket.send_fds(self._line, [line], [fd])
        except OSError as error:
            raise Dead(str(error)) from error
        while True:
            message = self._read()
            if "event" not in message:
                return message

    def _read(self) -> dict[str, Any]:
        while b"\n" not in self._rest:
            try:
                data = self._line.recv(1 << 16)
            except ConnectionError as error:
                raise Dead(str(error)) from error
            if not data:
                raise Dead("QEMU closed QMP")
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        if message.get("event") == "MIGRATION":
            self.status = message["data"]["status"]
        return message


@contextlib.contextmanager
def two(binary: QemuBinary, *argv: str) -> Iterator[tuple[BareQemu, BareQemu]]:
    """Start a source and a destination of one guest."""
    with contextlib.ExitStack() as stack:
        pair = []
        for more in ((), ("-incoming", "defer")):
            pair.append(BareQemu(binary, *argv, *more))
            stack.callback(pair[-1].close)
        yield pair[0], pair[1]


def set_up(sides: tuple[BareQemu, BareQemu], on: Iterable[str], **parameters: object) -> str | None:
    """Set both sides alike, events on; return the first refusal."""
    for side in sides:
        refusal = side.set_on({*on, "events"}, side.capabilities())
        refusal = refusal or (side.ask("migrate-set-parameters", **parameters) if parameters else None)
        if refusal is not None:
            return refusal
    return None


def encrypt(sides: tuple[BareQemu, BareQemu], directory: Path) -> str | None:
    """Switch TLS-PSK on at both sides; return the first refusal."""
    (directory / "keys.psk").write_text(f"vmferry:{secrets.token_hex(32)}\n", "ascii")
    for side, endpoint in zip(sides, ("client", "server"), strict=True):
        names = {"qom-type": "tls-creds-psk", "id": "psk", "dir": str(directory)}
        names |= {"username": "vmferry"} if endpoint == "client" else {}
        refusal = side.ask("object-add", **names, endpoint=endpoint)
        refusal = refusal or side.ask("migrate-set-parameters", **{"tls-creds": "psk"})
        if refusal is not None:
            return refusal
    return None


def ways(transport: str, sides: tuple[BareQemu, BareQemu], directory: Path) -> tuple[str, str, bool]:
    """Return the source's URI, the destination's, and whether the destination has to listen first."""
    source, destination = sides
    if transport in {"tcp", "unix"}:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            uri = f"tcp:127.0.0.1:{probe.getsockname()[1]}" if transport == "tcp" else f"unix:{directory}/socket"
        return uri, uri, True
    if transport == "fd":
        ours, theirs = socket.socketpair()
        source.give(ours.detach(), "way")
        destination.give(theirs.detach(), "way")
        return "fd:way", "fd:way", True
    if transport == "pipe":
        read, write = os.pipe()
        source.give(write, "way")
        destination.give(read, "way")
        return "fd:way", "fd:way", True
    if transport == "exec":
        return f"exec:cat > {directory}/stream", f"exec:cat {directory}/stream", False
    return f"file:{directory}/stream", f"file:{directory}/stream", False
