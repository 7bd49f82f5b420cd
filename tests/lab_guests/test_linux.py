"""The linux guest on real QEMUs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from vmferry.lab.guests import GuestImage, GuestKind
from vmferry.lab.toolchain import QemuBinary
from vmferry.measure.gap import SAME_CLOCK, guest_gap

if TYPE_CHECKING:
    Bench = Any  # conftest's `Bench`
    Running = Any

pytestmark = [pytest.mark.real, pytest.mark.slow]

Image = Callable[[GuestKind], GuestImage]
TWO_SECONDS = 2000
MEMORY = 224
IP = "10.0.2.15/24"


async def _start(bench: Bench, qemu: QemuBinary, image: Image, *options: str, **more: Any) -> Running:
    settings = {"mb": 32, "rate": 20, "ip": IP, **more}
    return await bench.start(qemu, image("linux"), *options, memory=MEMORY, **settings)


def _number(key: str, line: str) -> int:
    found = re.search(rf"\b{key}=(\d+)", line)
    assert found, line
    return int(found[1])


@pytest.mark.parametrize(
    ("nic", "pattern", "data"), [("virtio-net-pci", "hotspot", "compressible"), ("e1000", "random", "random")]
)
async def test_it_writes_beats_and_answers(
    nic: str, pattern: str, data: str, qemu: QemuBinary, image: Image, bench: Bench
) -> None:
    """Writes, beats, echo and control work on either NIC, and after two seconds the oracle is clean."""
    guest = await _start(bench, qemu, image, nic=nic, pattern=pattern, data=data)
    settings = f"ready mb=32 rate=20 pattern={pattern} data={data} "
    assert settings in await guest.line("vmferry-guest ready")
    await guest.receiver.wait_for_beats(TWO_SECONDS)
    await guest.wait_echo(100)
    async with guest.control() as control:
        assert (await control.line()).startswith(settings)
        verdict = await control.ask("oracle")
        assert await control.ask("rate 0") == "rate 0"
        assert (await control.ask("nonsense")).startswith("error unknown command")
    assert verdict.startswith("oracle clean pages=8192 ")
    assert _number("writes", verdict) > 8192
    assert guest.receiver.missed == 0


async def test_it_moves_under_load_and_nothing_is_lost(newest_qemu: QemuBinary, image: Image, bench: Bench) -> None:
    """After a migration the oracle is clean, beats and echo go on, and control answers at the destination."""
    source = await _start(bench, newest_qemu, image)
    destination = await _start(bench, newest_qemu, image, incoming=True)
    await source.line("vmferry-guest ready")
    await source.receiver.wait_for_beats(500)
    began = time.monotonic_ns()
    await bench.migrate(source, destination)
    await destination.receiver.wait_for_beats(500)
    ended = time.monotonic_ns()
    await destination.wait_echo(100)
    async with destination.control() as control:
        assert (await control.line()).startswith("ready mb=32 ")
        verdict = await control.ask("oracle")
        assert (await control.ask("stalls")).startswith("stalls max_us=")
        assert await control.ask("reset") == "reset"
    gap = guest_gap(source.receiver.stamps(began, ended), destination.receiver.stamps(began, ended), SAME_CLOCK)
    assert verdict.startswith("oracle clean pages=8192 ")
    assert gap is not None
    assert gap.switchover_gap_ms > 0
    assert gap.overlap_ms == 0.0


async def test_a_stale_page_is_found(newest_qemu: QemuBinary, image: Image, bench: Bench) -> None:
    """The guest's oracle can fail: a page put back to its last generation makes it DIRTY."""
    guest = await _start(bench, newest_qemu, image, rate=0)
    await guest.line("vmferry-guest ready")
    async with guest.control() as control:
        await control.line()
        assert (await control.ask("oracle")).startswith("oracle clean")
        assert await control.ask("corrupt stale") == "corrupted stale"
        verdict = await control.ask("oracle")
    assert verdict.startswith("oracle DIRTY first=0 kind=stale bad=1 expected_generation=1 found_generation=0 ")


async def test_reboot_panic_and_poweroff_are_told_apart(newest_qemu: QemuBinary, image: Image, bench: Bench) -> None:
    """A reboot starts over, a panic is one to QEMU, a power-off ends QEMU with success."""
    guest = await _start(bench, newest_qemu, image, "-device", "pvpanic", "-action", "panic=pause")
    await guest.line("vmferry-guest ready")
    async with guest.control() as control:
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
