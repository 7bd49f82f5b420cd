"""Plain QEMUs without anything of ours but the guests, for the guests' own tests."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient
from tests.qemus import VERSIONS, find_or_skip

from vmferry.lab.guests import GuestImage, GuestKind, build
from vmferry.lab.qmp import connect_when_listening
from vmferry.lab.toolchain import QemuBinary, cache_dir
from vmferry.measure.echo import EchoProber
from vmferry.measure.receiver import BeatReceiver

LINE_LIMIT_S = 240.0


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


class Control:
    """The control channel: a line there, a line back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def line(self) -> str:
        return (await asyncio.wait_for(self.reader.readline(), LINE_LIMIT_S)).decode().strip()

    async def ask(self, command: str) -> str:
        self.writer.write(f"{command}\n".encode())
        return await self.line()


@dataclass
class Running:
    """One QEMU process: its serial console, QMP, the receiver of its beats and where its echo is forwarded."""

    process: asyncio.subprocess.Process
    qmp: QMPClient
    receiver: BeatReceiver
    folder: Path
    echo_port: int

    @asynccontextmanager
    async def control(self) -> AsyncIterator[Control]:
        """Connect to the control channel."""
        reader, writer = await asyncio.open_unix_connection(self.folder / "control")
        try:
            yield Control(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):  # QEMU ended first
                await writer.wait_closed()

    async def wait_echo(self, answers: int) -> None:
        """Return when the guest has answered so many probes."""
        with EchoProber("127.0.0.1", self.echo_port) as prober:
            for _ in range(6000):
                if prober.answered >= answers:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError(f"{prober.answered} of {answers} probes were answered within a minute")

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
        nic: str = "virtio-net-pci",
        **settings: Any,
    ) -> Running:
        """Start a guest; with incoming it waits for a migration instead of booting."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        receiver = await self.stack.enter_async_context(BeatReceiver())
        echo_port = _free_port()
        arguments = [*qemu.argv, "-accel", "tcg", "-M", "pc-q35-7.2", "-cpu", "qemu64", "-m", str(memory)]
        arguments += ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]
        arguments += ["-kernel", str(image.kernel), "-append", image.append(**settings)] if image.kernel else []
        arguments += ["-initrd", str(image.initrd)] if image.initrd else []
        arguments += ["-chardev", f"udp,id=beat,host=127.0.0.1,port={receiver.port}"]
        arguments += ["-device", "isa-debugcon,iobase=0xe9,chardev=beat"]
        arguments += _channels(nic, echo_port) if image.kind != "micro" else []
        arguments += ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
        arguments += ["-incoming", "defer"] if incoming else []
        filled = [argument.format(folder=folder) for argument in (*arguments, *options)]
        process, qmp = await self.stack.enter_async_context(_running(filled, qemu, folder))
        return Running(process, qmp, receiver, folder, echo_port)

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


def _channels(nic: str, echo_port: int) -> list[str]:
    return [
        *("-device", "virtio-serial-pci,id=serial0"),
        *("-chardev", "socket,id=control,path={folder}/control,server=on,wait=off"),
        *("-device", "virtserialport,bus=serial0.0,nr=1,chardev=control,name=org.vmferry.control"),
        *("-netdev", f"user,id=net0,hostfwd=udp:127.0.0.1:{echo_port}-:7007"),
        *("-device", f"{nic},netdev=net0,romfile="),
    ]


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@asynccontextmanager
async def _running(
    arguments: list[str], qemu: QemuBinary, folder: Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, QMPClient]]:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        env={"PATH": "/usr/bin:/bin", **qemu.env},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    qmp = QMPClient("guest")
    try:
        await connect_when_listening(qmp, folder / "qmp", process)  # if QEMU ends, its error stands above
        yield process, qmp
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
