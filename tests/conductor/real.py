"""Two hosts in one process on real QEMUs, with the micro guest, which says whether its memory arrived whole."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.conductor.fakes import HOST_A, HOST_B
from tests.conductor.pair import GUEST, Host, Pair, follow, running, wait_finished, wait_until

from vmferry.conductor.source import Source
from vmferry.core.guest import Acceleration, Disk, GuestSpec, KernelBoot
from vmferry.core.migration import RunState
from vmferry.core.progress import Finished
from vmferry.core.units import MIB, Bytes
from vmferry.lab.guests import GuestImage, build
from vmferry.lab.toolchain import cache_dir, find_qemus
from vmferry.qemu import QemuBinaryConfig, QemuGuestProcess, QemuHypervisor
from vmferry.store.sqlite import SqliteJournal

#: Enough that a slow stream lasts, little enough that a fast one takes a moment.
MEMORY = Bytes(64 * MIB)
#: Workers of one run share the loopback address.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
#: Below the ports that the kernel gives to connections: one of those may be taken at any moment.
_FIRST_PORT = 27400 + 100 * _WORKER


@pytest.fixture(scope="session")
def image() -> GuestImage:
    """The micro guest."""
    return build("micro", cache_dir())


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory whose sockets have short names; no QEMU may outlive it."""
    directory = Path(tempfile.mkdtemp(prefix="vf-"))
    yield directory
    left = qemus_left(directory)
    shutil.rmtree(directory)
    assert left == []


@pytest.fixture
async def pair(home: Path) -> AsyncIterator[tuple[Host, Host]]:
    """Two hosts; both are empty."""
    made = make_pair(home)
    here, there = made.hosts[HOST_A], made.hosts[HOST_B]
    async with running(here, there):
        yield here, there
    for host in (here, there):
        assert isinstance(host.journal, SqliteJournal)
        host.journal.close()


def make_pair(directory: Path) -> Pair:
    """Return two hosts on this machine's newest QEMU: 7.2 loses a running TCG guest's writes while it copies them."""
    pair = Pair()
    qemu = find_qemus()[0]
    binary = QemuBinaryConfig(qemu.argv, qemu.env)
    for number, name in enumerate((HOST_A, HOST_B)):
        home = directory / name
        run_dir = home / "run"
        run_dir.mkdir(parents=True)
        hypervisor = QemuHypervisor(binary, Acceleration.TCG, state_dir=directory / "probes")
        ports = range(_FIRST_PORT + 10 * number, _FIRST_PORT + 10 * number + 10)
        pair.hosts[name] = Host(name, SqliteJournal(home / "journal.sqlite"), hypervisor, run_dir, ports, pair)
    return pair


def make_spec(image: GuestImage, *disks: Disk, mb: int = 8, rate: int = 20) -> GuestSpec:
    """Return the micro guest, which writes `rate` MiB/s over `mb` MiB."""
    boot = KernelBoot(str(image.kernel), None, image.append(mb=mb, rate=rate))
    return GuestSpec(GUEST, MEMORY, boot, disks=disks, beat=True)


def process_of(host: Host) -> QemuGuestProcess:
    """Return the guest's process on a host."""
    process = host.guests.process(GUEST)
    assert isinstance(process, QemuGuestProcess)
    return process


async def run_state_of(host: Host) -> RunState:
    """Return what QEMU says of the vCPUs."""
    return await process_of(host).query_run_state()


async def ask(host: Host, command: str, answer: str) -> str:
    """Type one letter on the guest's console and return the line that begins with the answer."""
    reader, writer = await process_of(host).open_console()
    try:
        async with asyncio.timeout(60):
            writer.write(command.encode())
            await writer.drain()
            while True:
                line = (await reader.readline()).decode(errors="replace").strip()
                if answer in line:
                    return line[line.index(answer) :]
    finally:
        writer.close()
        await writer.wait_closed()


async def wait_booted(host: Host) -> None:
    """Wait until the guest hears what is typed; before it has booted it hears nothing, wherever it goes on booting."""
    log = process_of(host).run_dir.console_log
    await wait_until(lambda: b"vmferry-guest ready" in log.read_bytes(), "the guest has booted")


async def start(host: Host, spec: GuestSpec) -> None:
    """Run a guest and wait until it has booted."""
    await host.guests.run(spec)
    await wait_booted(host)


async def press(host: Host, command: str) -> None:
    """Type one letter on the console of a guest, once it has booted."""
    await wait_booted(host)
    _, writer = await process_of(host).open_console()
    writer.write(command.encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def end_of(host: Host, source: Source) -> Finished:
    """Wait for the end of a hand-over on both hosts and return what was said of it."""
    events = await follow(host, source.request.handover)
    await wait_finished(*host.pair.hosts.values())
    last = events[-1]
    assert isinstance(last, Finished)
    return last


def qemus_left(directory: Path) -> list[str]:
    """Return the command lines of every QEMU that works in the directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_text("utf-8", errors="replace").replace("\0", " ")
        except OSError:
            continue
        if str(directory) in command and "qemu" in command:
            found.append(command)
    return found
