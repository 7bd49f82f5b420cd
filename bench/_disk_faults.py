"""A disk in trouble while its guest moves: somebody else locks it, or there is no room where it goes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from vmferry.core.units import MIB
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.ports.hypervisor import RunState

#: A stranger who opens an image and is not refused within this has it.
_REFUSED_WITHIN_S = 1.0
_STOPS_WITHIN_S = 30.0
#: Room beside the copy, which the filler takes.
_SPARE = 16 * MIB


class Stranger:
    """Another process that wants to write to an image; an async context manager, who goes when it is left."""

    def __init__(self, image: Path) -> None:
        self._image = image
        self._process: asyncio.subprocess.Process | None = None

    async def try_to_hold(self) -> bool:
        """Open the image, and return whether he has it now."""
        pipe = asyncio.subprocess.PIPE
        words = ("qemu-io", "-f", "raw", str(self._image))
        self._process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=pipe)
        try:
            await asyncio.wait_for(self._process.wait(), _REFUSED_WITHIN_S)
        except TimeoutError:
            return True
        return False

    async def go(self) -> None:
        """Let go of it, if he has it. Idempotent."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.communicate()


class SmallDirectory:
    """A host's own directory on a file system that has little room.

    Args:
        lab: with directories of the hosts' own.
        host: whose.
        room: bytes that fit, and a little.
    """

    def __init__(self, lab: Lab, host: str, room: int) -> None:
        self._lab, self._host = lab, host
        self._inside("mount", "-t", "tmpfs", "-o", f"size={room + _SPARE}", "small", str(lab.local))
        worker = lab.hosts[host].agent.worker
        if worker is None:
            raise ValueError(f"no agent on {host}")
        self.path = Path(f"/proc/{worker.pid}/root{lab.local}")  #: where it is seen from here

    def fill(self) -> None:
        """Take all the room that is left."""
        with (self.path / "filler").open("wb", buffering=0) as filler:
            while True:
                try:
                    filler.write(bytes(MIB))
                except OSError as error:
                    if error.errno == errno.ENOSPC:
                        return
                    raise

    def make_room(self) -> None:
        """Give it back. Idempotent."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / "filler").unlink()

    def close(self) -> None:
        """Take the file system away."""
        self._inside("umount", "--lazy", str(self._lab.local))

    def _inside(self, *words: str) -> None:
        worker = self._lab.hosts[self._host].agent.worker
        if worker is None:
            raise ValueError(f"no agent on {self._host}")
        subprocess.run(["nsenter", "--target", str(worker.pid), "--mount", *words], check=True)


@contextlib.contextmanager
def small_directory(lab: Lab, host: str, room: int) -> Iterator[SmallDirectory]:
    """Give a host little room, and take that back."""
    made = SmallDirectory(lab, host, room)
    try:
        yield made
    finally:
        made.close()


async def stops_for_want_of_room(guest: GuestRun) -> bool:
    """Wait until QEMU has stopped a guest whose disk is full; return whether it has."""
    deadline = time.monotonic() + _STOPS_WITHIN_S
    while time.monotonic() < deadline:
        if (await guest.view()).run_state is RunState.IO_ERROR:
            return True
        await asyncio.sleep(0.1)
    return False
