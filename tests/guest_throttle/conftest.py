"""The helper on this machine's own kernel, and programs for it to throttle."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from vmferry.guest_throttle.channel import ThrottleChannel
from vmferry.guest_throttle.program import compile_helper

HERE = Path(__file__).parent
SYS_USERFAULTFD = 323


@pytest.fixture(scope="session")
def _kernel_can() -> None:
    """Skip where the kernel, or a sandbox around the tests, has no userfaultfd for us."""
    fd = ctypes.CDLL(None, use_errno=True).syscall(SYS_USERFAULTFD, os.O_CLOEXEC)
    if fd < 0:
        pytest.skip(f"userfaultfd: {os.strerror(ctypes.get_errno())}: run as root on a Linux of 5.7 or later")
    os.close(fd)


@pytest.fixture(scope="session")
def programs(_kernel_can: None) -> Iterator[Path]:
    """A folder, readable by everybody, with the helper, the victims (one of them static) and the hazards.

    Not pytest's own: a victim that is another user cannot enter those.
    """
    with tempfile.TemporaryDirectory(prefix="vmferry-throttle-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        _compile(folder)
        yield folder


def _compile(folder: Path) -> None:
    compile_helper(folder / "helper")
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
    for name, source, more in (
        ("victim", "victim.c", []),
        ("victim-static", "victim.c", ["-static"]),
        ("hazards", "hazards.c", []),
    ):
        subprocess.run(["gcc", *flags, *more, "-o", str(folder / name), str(HERE / source)], check=True)


class Shared:
    """What a victim tells: pages written, the writer's pid, its stage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(4096))
        path.chmod(0o666)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)

    def __getitem__(self, word: int) -> int:
        return int(struct.unpack_from("<Q", self._map, word * 8)[0])

    @property
    def writes(self) -> int:
        return self[0]

    @property
    def pid(self) -> int:
        return self[1]

    async def wait_writes(self, more: int) -> None:
        """Return when so many more pages were written; never, if the writer stands still."""
        wanted = self.writes + more
        while self.writes < wanted:  # noqa: ASYNC110  shared memory has no event
            await asyncio.sleep(0.005)

    async def wait_stage(self) -> None:
        """Return when the victim waits for its signal."""
        while not self[2]:  # noqa: ASYNC110  as above
            await asyncio.sleep(0.005)

    def end(self) -> None:
        """Kill the writer, whoever its parent is by now."""
        if self._map.closed:
            return
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._map.close()


@pytest.fixture
def shared(programs: Path) -> Iterator[Shared]:
    """Memory that the throttle does not touch, and that every user can open."""
    memory = Shared(programs / "shared")
    yield memory
    memory.end()


class Helper:
    """A helper with its command, and the far end of its channel."""

    def __init__(self, process: asyncio.subprocess.Process, far: socket.socket) -> None:
        self.process, self.far = process, far

    async def channel(self) -> ThrottleChannel:
        """Return the host's side; `far` belongs to it from now on."""
        reader, writer = await asyncio.open_connection(sock=self.far)
        return ThrottleChannel(reader, writer)

    async def said(self) -> str:
        """Return what helper and command wrote until both have ended."""
        assert self.process.stdout is not None
        return (await self.process.stdout.read()).decode()


StartHelper: TypeAlias = Callable[..., Coroutine[Any, Any, Helper]]


@pytest.fixture
async def start(programs: Path) -> AsyncIterator[StartHelper]:
    """Starts helpers, and ends them and their commands when the test is over."""
    async with AsyncExitStack() as stack:

        async def started(*command: str | Path, env: dict[str, str] | None = None) -> Helper:
            here, far = socket.socketpair()
            far.setblocking(False)
            stack.callback(far.close)
            process = await asyncio.create_subprocess_exec(
                programs / "helper",
                "--channel-fd",
                str(here.fileno()),
                "--",
                *command,
                pass_fds=[here.fileno()],
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )
            here.close()
            stack.push_async_callback(_end, process)
            return Helper(process, far)

        yield started


def _descendants(pid: int) -> list[int]:
    """Return everybody below a process; whoever is orphaned meanwhile comes to the helper, which is first in line."""
    found = []
    with suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = [int(child) for child in (task / "children").read_text().split()]
            found += [grand for child in children for grand in (child, *_descendants(child))]
    return found


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        for pid in (process.pid, *_descendants(process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    await process.wait()
    process._transport.close()  # type: ignore[attr-defined]
