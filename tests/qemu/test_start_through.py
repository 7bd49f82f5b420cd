"""A program that becomes QEMU is told all that it needs, and is the same process before and after."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from vmferry.qemu.binary import QemuBinaryConfig
from vmferry.qemu.process import Process, spawn

#: Writes down what it was given and who it is, then becomes the program.
BECOMES = """
import os, sys
uid, groups, *rest = sys.argv[2:]
split = rest.index("--")
names = " ".join(sorted(os.environ.keys() - {"LC_CTYPE"}))
print(sys.argv[1], uid, groups, rest[:split], os.getuid(), os.getpid(), names, flush=True)
os.execve(rest[split + 1], rest[split + 1 :], {})
"""
SLEEP = QemuBinaryConfig(("/bin/sleep",), {"QEMU_MODULE_DIR": "/a b"})


def wait_until_it_sleeps(process: Process) -> None:
    """Wait until a process is the program."""
    while Path(f"/proc/{process.record.pid}/comm").read_text().strip() != "sleep":
        time.sleep(0.001)


@pytest.mark.root
async def test_what_becomes_the_program(tmp_path: Path) -> None:
    """It has the agent's rights and nothing of QEMU's environment; user, groups and variables are told to it."""
    through = (sys.executable, "-I", "-S", "-c", BECOMES, "here")
    log = tmp_path / "log"
    process = spawn(SLEEP, ["1000"], directory=tmp_path, log=log, uid=700_000, groups=[5, 6], through=through)
    try:
        wait_until_it_sleeps(process)
        told = log.read_text().split("\n")[0]
        variables = ["PATH=" + os.defpath, "LC_ALL=C", "QEMU_MODULE_DIR=/a b"]
        assert told == f"here 700000 5,6 {variables} {os.getuid()} {process.record.pid} LC_ALL PATH"
        assert Process.of_record_alive(process.record)
    finally:
        await process.kill()
        process.close()


async def test_without_a_user_of_its_own(tmp_path: Path) -> None:
    """An agent that is not root has no other user to give."""
    through = (sys.executable, "-I", "-S", "-c", BECOMES, "here")
    process = spawn(SLEEP, ["1000"], directory=tmp_path, log=tmp_path / "log", through=through)
    try:
        wait_until_it_sleeps(process)
        assert (tmp_path / "log").read_text().startswith("here -  [")
    finally:
        await process.kill()
        process.close()
