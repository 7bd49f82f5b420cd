"""Holds a real libvirtd at a function of its QEMU driver, with gdb: so that a fault strikes exactly there.

All of the daemon stands still meanwhile: a hold is for a second, since its peers ask whether it lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from vmferry.core.errors import Broken, TimedOut
from vmferry.lab.commands import end

ARMED_WITHIN_S: Final = 60.0
_SCRIPT: Final = """\
set pagination off
set confirm off
set debuginfod enabled off
set breakpoint pending on
handle all nostop noprint pass
break {function}
ignore 1 {passing}
shell touch {directory}/armed
continue
shell touch {directory}/held
shell while [ ! -e {directory}/go ]; do sleep 0.02; done
detach
quit
"""


def gdb_missing() -> str | None:
    """Return why nothing can be held here; None when it can."""
    return None if shutil.which("gdb") else "gdb is not installed: apt-get install gdb"


class Hold:
    """One hold of one daemon. Made by `holding`."""

    def __init__(self, directory: Path, log: Path) -> None:
        self._directory = directory
        self._log = log

    async def wait_held(self, timeout_s: float) -> None:
        """Wait until the daemon has come there and stands.

        Raises:
            TimedOut: it does not come there.
        """
        await self._wait("held", timeout_s)

    def let_go(self) -> None:
        """Let it go on; idempotent."""
        (self._directory / "go").touch()

    async def _wait(self, word: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not os.path.exists(self._directory / word):  # noqa: ASYNC240, PTH110  # local, and small
            if time.monotonic() > deadline:
                said = _text(self._log)[-2000:]
                raise TimedOut(f"A hold is not {word} within {timeout_s:g} s; gdb says:\n{said}")
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def holding(pid: int, function: str, passing: int, directory: Path) -> AsyncIterator[Hold]:
    """Yield a hold that is armed; leaving the block lets the daemon go, also when it never came there.

    Args:
        pid: of the daemon.
        function: of its QEMU driver, as its module exports it.
        passing: how many calls of it go by before.
        directory: for the hold's own files; it must not exist.

    Raises:
        Broken: there is no gdb.
        TimedOut: gdb does not get hold of the daemon.
    """
    if missing := gdb_missing():
        raise Broken(f"No hold in libvirtd: {missing}")
    log = directory / "gdb.log"
    script = _write(directory, _SCRIPT.format(function=function, passing=passing, directory=directory))
    output = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        gdb = await asyncio.create_subprocess_exec(
            *("gdb", "-nx", "-q", "-batch", "-p", str(pid), "-x", str(script)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)
    hold = Hold(directory, log)
    try:
        await hold._wait("armed", ARMED_WITHIN_S)  # noqa: SLF001  # its maker
        await asyncio.sleep(0.1)  # `continue` follows
        yield hold
    finally:
        hold.let_go()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await gdb.wait()
        await end(gdb)  # one that waits for a call which never came lets go when it ends


def _write(directory: Path, script: str) -> Path:
    directory.mkdir(parents=True)
    path = directory / "script"
    path.write_text(script, "utf-8")
    return path


def _text(log: Path) -> str:
    return log.read_text("utf-8", "replace")
