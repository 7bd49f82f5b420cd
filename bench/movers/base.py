"""What every mover can do, and the one way in which each of its moves is measured."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from grid.cells import Cell
from grid.figures import Figures, Word
from grid.observe import DESTINATION, NS_PER_MS, SOURCE, GuestMeter, Observers, Progress
from grid.wire import Wire

from vmferry.core.errors import VmferryError
from vmferry.lab.hosts import Lab
from vmferry.lab.probe import Window

#: The quiet window before a move: the workload's rate and the largest gaps without a migration.
QUIET_S = 2.5
#: Watched after the end, for what arrives late.
AFTER_S = 1.0
READY_S = {"linux": 60.0, "debian": 240.0}


@dataclass(frozen=True, slots=True)
class _Seen:
    """The moments and answers of one move."""

    quiet: Progress
    start: Progress
    order_ns: int
    word: Word
    end_ns: int
    end: Progress | None
    stall_ms: float | None
    outage: Window
    outage_before: Window


class Mover(ABC):
    """One way of moving a guest from host-a to host-b.

    Attributes:
        name: in tables and files.
        postcopy: whether it may start the guest before all of its memory is there.
        helped: whether a helper in the guest slows what it writes: its owner has to have put it there.
        ours: whether it is this project's.
    """

    name: str
    postcopy: bool = False
    helped: bool = False
    ours: bool = False

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.host = SOURCE

    async def move(self, cell: Cell, observers: Observers, round_number: int, limit_s: float) -> Figures:
        """Boot the cell's guest, move it once, ask it, and remove it; returns what was seen.

        Raises:
            VmferryError: the guest did not boot, or cannot be asked.
        """
        began, load = time.time(), os.getloadavg()[0]
        self.host = SOURCE
        if self.lab.network:
            self.lab.network.limit(cell.link.limit)
        meter = GuestMeter(lambda: self.control(self.host), lambda: self.console(self.host), compiles=cell.compiles)
        try:
            async with observers.watching():
                await self.boot(cell)
                await meter.wait_ready(READY_S[cell.kind])
                if cell.compiles:
                    await meter.start_compiler()
                seen = await self._watched(meter, observers, limit_s)
                oracle = await meter.oracle()
                return self._figures(cell, round_number, seen, oracle, observers, (began, load))
        finally:
            await self.end()

    @abstractmethod
    async def boot(self, cell: Cell) -> None:
        """Start the guest on host-a; it need not be ready."""

    @abstractmethod
    async def order(self, limit_s: float) -> Word:
        """Move the guest; returns when it has arrived, or was called back because the limit has passed."""

    @abstractmethod
    def control(self, host: str) -> Path:
        """Return the guest's control socket on a host."""

    @abstractmethod
    def console(self, host: str) -> Path:
        """Return the guest's console socket on a host."""

    @abstractmethod
    async def end(self) -> None:
        """Remove the guest from both hosts, whatever state it is in; idempotent."""

    async def _watched(self, meter: GuestMeter, observers: Observers, limit_s: float) -> _Seen:
        async with observers.probing() as probe:
            probe.begin("quiet")
            quiet = await meter.progress()
            await asyncio.sleep(QUIET_S)
            await meter.reset_stalls()
            start = await meter.progress()
            probe.begin("move")
            order_ns = time.monotonic_ns()
            word = await self.order(limit_s)
            if word.arrived:
                self.host = DESTINATION
                async with asyncio.timeout(10):
                    await observers.taps[DESTINATION].wait_beat(order_ns)
            await asyncio.sleep(AFTER_S)
            end_ns = time.monotonic_ns()
            probe.begin("after")
            end, stall = await self._asked(meter)
            return _Seen(
                quiet,
                start,
                order_ns,
                word,
                end_ns,
                end,
                stall,
                await probe.window("move"),
                await probe.window("quiet"),
            )

    @staticmethod
    async def _asked(meter: GuestMeter) -> tuple[Progress | None, float | None]:
        with contextlib.suppress(VmferryError):
            return await meter.progress(), await meter.stall_ms()
        return None, None

    def _figures(
        self, cell: Cell, number: int, seen: _Seen, oracle: str, observers: Observers, began: tuple[float, float]
    ) -> Figures:
        word = seen.word
        silence = observers.silence(seen.order_ns, seen.end_ns)
        before = observers.silence(seen.quiet.at_ns, seen.order_ns)
        wire = observers.wire(seen.order_ns, seen.end_ns)
        # Whole files are counted, of up to ten seconds each under TCG: too coarse to say what a move of seconds cost.
        lost = None if cell.compiles else lost_work(seen.quiet, seen.start, seen.end)
        return Figures(
            cell=cell.id,
            mover=self.name,
            round=number,
            began=round(began[0], 1),
            load=round(began[1], 2),
            arrived=word.arrived,
            reason=word.reason,
            total_ms=total_ms(seen.order_ns, word, silence.first_there_ns, wire),
            gap_ms=_round(silence.longest_ms),
            gap_before_ms=_round(before.longest_ms),
            gap_at_switch_ms=_round(silence.switch_ms),
            stall_ms=_round(seen.stall_ms),
            outage_ms=_round(seen.outage["outage_ms"]),
            outage_before_ms=_round(seen.outage_before["outage_ms"]),
            wire_bytes=wire.sent,
            qemu_bytes=word.qemu_bytes,
            stream_ms=_round(word.stream_ms),
            downtime_ms=_round(word.downtime_ms),
            rounds=word.rounds,
            efficiency=_round(wire.efficiency(cell.link.limit), 4),
            rate_before=_round(rate(seen.quiet, seen.start)),
            lost_ms=_round(lost and lost[0]),
            lost_share=_round(lost and lost[1], 4),
            oracle=oracle,
            beats_dropped=observers.dropped,
            took_s=round(time.time() - began[0], 1),
            more=word.more or {},
        )


def total_ms(order_ns: int, word: Word, first_there_ns: int | None, wire: Wire) -> float | None:
    """Return the whole time of a move that arrived, by the latest of the three signs that it has ended."""
    if not word.arrived:
        return None
    signs = (word.ended_ns, first_there_ns or 0, wire.last_ns or 0)
    return round((max(signs) - order_ns) / NS_PER_MS, 1)


def rate(first: Progress, second: Progress) -> float:
    """Return the work done per second between two moments."""
    return (second.work - first.work) / ((second.at_ns - first.at_ns) / 1e9)


def lost_work(quiet: Progress, start: Progress, end: Progress | None) -> tuple[float, float] | None:
    """Return the work lost in a window as ms of undisturbed work and as a share of the window; None without work."""
    undisturbed = rate(quiet, start)
    if end is None or undisturbed <= 0:
        return None
    window_s = (end.at_ns - start.at_ns) / 1e9
    lost_s = window_s - (end.work - start.work) / undisturbed
    return lost_s * 1000, lost_s / window_s


def _round(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)
