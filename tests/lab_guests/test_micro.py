"""The micro guest on real QEMUs."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmferry.lab.guests import GuestImage, GuestKind
from vmferry.lab.toolchain import QemuBinary
from vmferry.measure.gap import SAME_CLOCK, guest_gap

if TYPE_CHECKING:
    Bench = Any  # conftest's `Bench`

pytestmark = pytest.mark.real

Image = Callable[[GuestKind], GuestImage]
#: A beat is a millisecond of the guest's time.
TWO_SECONDS = 2000
FIRST_PAGE = 0x1000000


def _writes(verdict: str) -> int:
    found = re.search(r"writes=(\d+)", verdict)
    assert found, verdict
    return int(found[1])


async def test_it_writes_and_beats_and_the_oracle_stays_clean(qemu: QemuBinary, image: Image, bench: Bench) -> None:
    """After two seconds of writes every page holds what was written last, and no beat was lost on its way."""
    guest = await bench.start(qemu, image("micro"), mb=16, rate=20)
    assert await guest.line("vmferry-guest") == "vmferry-guest ready mb=16 rate=20"
    await guest.receiver.wait_for_beats(TWO_SECONDS)
    verdict = await guest.ask("o", "oracle")
    assert verdict.startswith("oracle clean pages=4096 writes=")
    assert _writes(verdict) > 4096
    assert (guest.receiver.missed, guest.receiver.lost_by_kernel) == (0, 0)


async def test_a_page_that_the_guest_corrupts_is_found(newest_qemu: QemuBinary, image: Image, bench: Bench) -> None:
    """The oracle can fail: one flipped bit behind its back makes it DIRTY."""
    guest = await bench.start(newest_qemu, image("micro"), mb=16, rate=0)
    await guest.line("vmferry-guest ready")
    assert (await guest.ask("o", "oracle")).startswith("oracle clean")
    assert await guest.ask("c", "corrupted") == "corrupted"
    assert (await guest.ask("o", "oracle")).startswith("oracle DIRTY first=4095 kind=corrupt bad=1 ")


async def _write_with_gdb(socket: Path, address: int, data: bytes) -> None:
    """Write guest memory through QEMU's gdb stub, which stops the guest meanwhile."""
    reader, writer = await asyncio.open_unix_connection(socket)
    for command in (f"M{address:x},{len(data):x}:{data.hex()}", "D"):
        checksum = sum(command.encode()) % 256
        writer.write(f"${command}#{checksum:02x}".encode())
        reply = await asyncio.wait_for(reader.readuntil(b"#"), 60)
        assert reply.endswith(b"$OK#"), reply
        await reader.readexactly(2)
        writer.write(b"+")
    writer.close()
    await writer.wait_closed()


async def test_a_page_that_the_host_corrupts_is_found(newest_qemu: QemuBinary, image: Image, bench: Bench) -> None:
    """A write from outside is noticed even though the guest then overwrites the page: it looks before it writes."""
    guest = await bench.start(
        newest_qemu, image("micro"), "-gdb", "unix:{folder}/gdb,server=on,wait=off", mb=4, rate=20
    )
    await guest.line("vmferry-guest ready")
    await _write_with_gdb(guest.folder / "gdb", FIRST_PAGE + 2048, b"\xde\xad\xbe\xef")
    await guest.receiver.wait_for_beats(TWO_SECONDS // 2)  # 20 MiB over 4 MiB: the page was written several times
    assert (await guest.ask("o", "oracle")).startswith("oracle DIRTY first=0 kind=corrupt bad=1 ")


@pytest.mark.parametrize(("here", "there"), [((10, 0), (10, 0)), ((7, 2), (10, 0)), ((10, 0), (7, 2))])
async def test_it_moves_under_load_and_nothing_is_lost(
    here: tuple[int, int], there: tuple[int, int], image: Image, bench: Bench, qemu_of: Callable[..., QemuBinary]
) -> None:
    """After a migration between two QEMUs the oracle is clean, the guest beats on, and its gap is measured."""
    settings = {"mb": 32, "rate": 20}
    source = await bench.start(qemu_of(here), image("micro"), **settings)
    destination = await bench.start(qemu_of(there), image("micro"), incoming=True, **settings)
    await source.line("vmferry-guest ready")
    await source.receiver.wait_for_beats(500)
    began = time.monotonic_ns()
    await bench.migrate(source, destination)
    await destination.receiver.wait_for_beats(500)
    ended = time.monotonic_ns()
    verdict = await destination.ask("o", "oracle")
    gap = guest_gap(source.receiver.stamps(began, ended), destination.receiver.stamps(began, ended), SAME_CLOCK)
    assert verdict.startswith("oracle clean pages=8192 ")
    assert gap is not None
    assert gap.gap_ms >= gap.switchover_gap_ms > 0
    assert gap.overlap_ms == 0.0


async def test_p_powers_off(newest_qemu: QemuBinary, image: Image, bench: Bench) -> None:
    """ACPI's S5 ends QEMU, which says that the guest asked for it."""
    guest = await bench.start(newest_qemu, image("micro"))
    await guest.line("vmferry-guest ready")
    guest.type("p")
    assert (await guest.event("SHUTDOWN"))["reason"] == "guest-shutdown"
    assert await guest.process.wait() == 0


async def test_r_reboots(newest_qemu: QemuBinary, image: Image, bench: Bench) -> None:
    """After a reset by the guest it starts again from the beginning."""
    guest = await bench.start(newest_qemu, image("micro"))
    await guest.line("vmferry-guest ready")
    guest.type("r")
    assert (await guest.event("RESET"))["reason"] == "guest-reset"
    await guest.line("vmferry-guest ready")
    assert (await guest.ask("o", "oracle")) == "oracle clean pages=4096 writes=4096"


async def test_h_halts_for_good(newest_qemu: QemuBinary, image: Image, bench: Bench) -> None:
    """The vCPU halts with interrupts off: it never beats again although QEMU runs it."""
    guest = await bench.start(newest_qemu, image("micro"))
    await guest.line("vmferry-guest ready")
    guest.type("h")
    registers = ""
    while "HLT=1" not in registers or _interrupts_on(registers):
        registers = await guest.qmp.execute("human-monitor-command", {"command-line": "info registers"})
    assert (await guest.qmp.execute("query-status"))["status"] == "running"


def _interrupts_on(registers: str) -> bool:
    found = re.search(r"EFL=([0-9a-f]+)", registers)
    assert found, registers
    return bool(int(found[1], 16) & 0x200)


async def test_it_answers_to_nothing_else(newest_qemu: QemuBinary, image: Image, bench: Bench) -> None:
    """Other characters are passed over in silence: the next line is the verdict that was asked for."""
    guest = await bench.start(newest_qemu, image("micro"))
    await guest.line("vmferry-guest ready")
    guest.type("xyz O?\n")
    guest.type("o")
    assert (await guest.line("")).startswith("oracle clean")
