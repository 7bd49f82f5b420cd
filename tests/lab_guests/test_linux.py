"""The linux guest on real QEMUs."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from vmferry.lab.guests import GuestImage, GuestKind
from vmferry.lab.toolchain import QemuBinary
from vmferry.measure.echo import EchoProber
from vmferry.measure.gap import SAME_CLOCK, guest_gap

if TYPE_CHECKING:
    Bench = Any  # conftest's `Bench`
    Running = Any

pytestmark = [pytest.mark.real, pytest.mark.slow]

Image = Callable[[GuestKind], GuestImage]
TWO_SECONDS = 2000
MEMORY = 224
IP = "10.0.2.15/24"


def _options(nic: str, port: int) -> list[str]:
    return [
        *("-device", "virtio-serial-pci,id=serial0"),
        *("-chardev", "socket,id=control,path={folder}/control,server=on,wait=off"),
        *("-device", "virtserialport,bus=serial0.0,nr=1,chardev=control,name=org.vmferry.control"),
        *("-netdev", f"user,id=net0,hostfwd=udp:127.0.0.1:{port}-:7007"),
        *("-device", f"{nic},netdev=net0,romfile="),
        *("-device", "pvpanic", "-action", "panic=pause"),
    ]


async def _start(
    bench: Bench, qemu: QemuBinary, image: Image, port: int, *, nic: str = "virtio-net-pci", **more: Any
) -> Running:
    settings = {"mb": 32, "rate": 20, "ip": IP, **more}
    return await bench.start(qemu, image("linux"), *_options(nic, port), memory=MEMORY, **settings)


class Control:
    """The control channel: a line there, a line back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def line(self) -> str:
        return (await asyncio.wait_for(self.reader.readline(), 60)).decode().strip()

    async def ask(self, command: str) -> str:
        self.writer.write(f"{command}\n".encode())
        return await self.line()


@asynccontextmanager
async def _control(guest: Running) -> AsyncIterator[Control]:
    reader, writer = await asyncio.open_unix_connection(guest.folder / "control")
    try:
        yield Control(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):  # QEMU ended first
            await writer.wait_closed()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def echo_port() -> int:
    """A port for the user network to forward to the guest's echo."""
    return _free_port()


def _number(key: str, line: str) -> int:
    found = re.search(rf"\b{key}=(\d+)", line)
    assert found, line
    return int(found[1])


async def _wait_answered(prober: EchoProber, more: int) -> None:
    wanted = prober.answered + more
    for _ in range(6000):
        if prober.answered >= wanted:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{prober.answered} of {wanted} probes were answered within a minute")


@pytest.mark.parametrize(
    ("nic", "pattern", "data"), [("virtio-net-pci", "hotspot", "compressible"), ("e1000", "random", "random")]
)
async def test_it_writes_beats_and_answers(
    nic: str, pattern: str, data: str, qemu: QemuBinary, image: Image, bench: Bench, echo_port: int
) -> None:
    """Writes, beats, echo and control work on either NIC, and after two seconds the oracle is clean."""
    guest = await _start(bench, qemu, image, echo_port, nic=nic, pattern=pattern, data=data)
    settings = f"ready mb=32 rate=20 pattern={pattern} data={data} "
    assert settings in await guest.line("vmferry-guest ready")
    await guest.receiver.wait_for_beats(TWO_SECONDS)
    with EchoProber("127.0.0.1", echo_port) as prober:
        await _wait_answered(prober, 100)
    async with _control(guest) as control:
        assert (await control.line()).startswith(settings)
        verdict = await control.ask("oracle")
        assert await control.ask("rate 0") == "rate 0"
        assert (await control.ask("nonsense")).startswith("error unknown command")
    assert verdict.startswith("oracle clean pages=8192 ")
    assert _number("writes", verdict) > 8192
    assert guest.receiver.missed == 0


async def test_it_moves_under_load_and_nothing_is_lost(
    newest_qemu: QemuBinary, image: Image, bench: Bench, echo_port: int
) -> None:
    """After a migration the oracle is clean, beats and echo go on, and control answers at the destination."""
    source = await _start(bench, newest_qemu, image, echo_port)
    echo_port_there = _free_port()
    destination = await _start(bench, newest_qemu, image, echo_port_there, incoming=True)
    await source.line("vmferry-guest ready")
    await source.receiver.wait_for_beats(500)
    began = time.monotonic_ns()
    await bench.migrate(source, destination)
    await destination.receiver.wait_for_beats(500)
    ended = time.monotonic_ns()
    with EchoProber("127.0.0.1", echo_port_there) as prober:
        await _wait_answered(prober, 100)
    async with _control(destination) as control:
        assert (await control.line()).startswith("ready mb=32 ")
        verdict = await control.ask("oracle")
        assert (await control.ask("stalls")).startswith("stalls max_us=")
        assert await control.ask("reset") == "reset"
    gap = guest_gap(source.receiver.stamps(began, ended), destination.receiver.stamps(began, ended), SAME_CLOCK)
    assert verdict.startswith("oracle clean pages=8192 ")
    assert gap is not None
    assert gap.switchover_gap_ms > 0
    assert gap.overlap_ms == 0.0


async def test_a_stale_page_is_found(newest_qemu: QemuBinary, image: Image, bench: Bench, echo_port: int) -> None:
    """The guest's oracle can fail: a page put back to its last generation makes it DIRTY."""
    guest = await _start(bench, newest_qemu, image, echo_port, rate=0)
    await guest.line("vmferry-guest ready")
    async with _control(guest) as control:
        await control.line()
        assert (await control.ask("oracle")).startswith("oracle clean")
        assert await control.ask("corrupt stale") == "corrupted stale"
        verdict = await control.ask("oracle")
    assert verdict.startswith("oracle DIRTY first=0 kind=stale bad=1 expected_generation=1 found_generation=0 ")


async def test_reboot_panic_and_poweroff_are_told_apart(
    newest_qemu: QemuBinary, image: Image, bench: Bench, echo_port: int
) -> None:
    """A reboot starts over, a panic is one to QEMU, a power-off ends QEMU with success."""
    guest = await _start(bench, newest_qemu, image, echo_port)
    await guest.line("vmferry-guest ready")
    async with _control(guest) as control:
        await control.line()
        control.writer.write(b"reboot\n")
        assert (await guest.event("RESET"))["reason"] == "guest-reset"
        await guest.line("vmferry-guest ready")
        control.writer.write(b"panic\n")
        assert (await guest.event("GUEST_PANICKED"))["action"] == "pause"
        await guest.qmp.execute("system_reset")
        await guest.qmp.execute("cont")
        await guest.line("vmferry-guest ready")
        control.writer.write(b"poweroff\n")
        assert (await guest.event("SHUTDOWN"))["reason"] == "guest-shutdown"
        assert await guest.process.wait() == 0
