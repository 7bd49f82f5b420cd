"""Plain QEMUs without anything of ours but the guests, for the guests' own tests."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from vmferry.core.errors import NotFound
from vmferry.lab.guests import GuestImage, GuestKind, build
from vmferry.lab.toolchain import QemuBinary, cache_dir, find_qemu
from vmferry.measure.receiver import BeatReceiver

LINE_LIMIT_S = 60.0
VERSIONS = ((10, 0), (7, 2))


def find_or_skip(version: tuple[int, int]) -> QemuBinary:
    """Return the QEMU of a version, or skip the test with what is missing."""
    try:
        return find_qemu(*version)
    except NotFound as error:
        pytest.skip(str(error))


@pytest.fixture(params=VERSIONS, ids=lambda version: f"qemu{version[0]}")
def qemu(request: pytest.FixtureRequest) -> QemuBinary:
    """Each supported QEMU in turn."""
    return find_or_skip(request.param)


@pytest.fixture
def qemu_of() -> Callable[[tuple[int, int]], QemuBinary]:
    """Finds the QEMU of a version, for tests that need two."""
    return find_or_skip


@pytest.fixture
def newest_qemu() -> QemuBinary:
    """The newest supported QEMU, for what does not depend on its version."""
    return find_or_skip(VERSIONS[0])


@pytest.fixture(scope="session")
def image() -> Callable[[GuestKind], GuestImage]:
    """Builds a guest into the cache that all test runs share."""
    return lambda kind: build(kind, cache_dir())


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="vmf-") as name:
        yield Path(name)


class Running:
    """One QEMU process: its serial console, QMP and the receiver of its beats."""

    def __init__(
        self, process: asyncio.subprocess.Process, qmp: QMPClient, receiver: BeatReceiver, folder: Path
    ) -> None:
        self.process, self.qmp, self.receiver, self.folder = process, qmp, receiver, folder

    async def line(self, start: str) -> str:
        """Return the next line of the console that holds `start`, from there on."""
        assert self.process.stdout is not None
        seen = []
        while raw := await asyncio.wait_for(self.process.stdout.readline(), LINE_LIMIT_S):
            text = raw.decode(errors="replace").strip()
            if start in text:
                return text[text.index(start) :]
            seen.append(text)
        raise AssertionError(f"QEMU ended before {start!r} came; it said {seen[-5:]}")

    def type(self, text: str) -> None:
        """Send characters to the serial console."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())

    async def ask(self, letter: str, answer: str) -> str:
        """Send one letter to the console and return the line that answers it."""
        self.type(letter)
        return await self.line(answer)

    async def event(self, name: str, status: str | None = None) -> dict[str, Any]:
        """Return the next QMP event of a name (and of a migration status)."""
        while True:
            event: Any = await asyncio.wait_for(self.qmp.events.get(), LINE_LIMIT_S)
            data = dict(event["data"]) if "data" in event else {}
            if event["event"] == name and status in {None, data.get("status")}:
                return data


class Bench:
    """Starts QEMUs and ends them all when the test is over."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder, self.stack = folder, stack

    async def start(
        self,
        qemu: QemuBinary,
        image: GuestImage,
        *options: str,
        memory: int = 96,
        incoming: bool = False,
        **settings: Any,
    ) -> Running:
        """Start a guest; with incoming it waits for a migration instead of booting."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        receiver = await self.stack.enter_async_context(BeatReceiver())
        arguments = [*qemu.argv, "-accel", "tcg", "-M", "pc-q35-7.2", "-cpu", "qemu64", "-m", str(memory)]
        arguments += ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]
        arguments += ["-kernel", str(image.kernel), "-append", image.append(**settings)]
        arguments += ["-initrd", str(image.initrd)] if image.initrd else []
        arguments += ["-chardev", f"udp,id=beat,host=127.0.0.1,port={receiver.port}"]
        arguments += ["-device", "isa-debugcon,iobase=0xe9,chardev=beat"]
        arguments += ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
        arguments += ["-incoming", "defer"] if incoming else []
        arguments += [option.format(folder=folder) for option in options]
        return await self.stack.enter_async_context(_running(arguments, qemu, receiver, folder))

    async def migrate(self, source: Running, destination: Running) -> None:
        """Move a guest with plain QMP and return when it runs at the destination."""
        for side in (source, destination):
            capability = {"capability": "events", "state": True}
            await side.qmp.execute("migrate-set-capabilities", {"capabilities": [capability]})
        uri = f"unix:{self.folder}/migration"
        await destination.qmp.execute("migrate-incoming", {"uri": uri})
        await source.qmp.execute("migrate", {"uri": uri})
        await destination.event("RESUME")
        await source.event("MIGRATION", "completed")


@asynccontextmanager
async def _running(
    arguments: list[str], qemu: QemuBinary, receiver: BeatReceiver, folder: Path
) -> AsyncIterator[Running]:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        env={"PATH": "/usr/bin:/bin", **qemu.env},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    qmp = QMPClient("guest")
    try:
        while not (folder / "qmp").exists():
            assert process.returncode is None, "QEMU ended at once; its error stands above"
            await asyncio.sleep(0.01)
        await qmp.connect(str(folder / "qmp"))
        yield Running(process, qmp, receiver, folder)
    finally:
        if process.returncode is None:
            process.kill()
        with suppress(EOFError):  # a QEMU that ended by itself
            await qmp.disconnect()
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


@pytest.fixture
async def bench(sockets: Path) -> AsyncIterator[Bench]:
    """Whatever a test starts here ends with it."""
    async with AsyncExitStack() as stack:
        yield Bench(sockets, stack)
