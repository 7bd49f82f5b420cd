"""Measures a hand-over at its source, from its opening to its report; nothing here delays or fails it.

guest_gap: each host stamps the beats that arrive there with its own clock; the destination's stamps are moved to ours
by an offset measured with pings, known to within half the shortest round trip. The commit's own cost uses the same
offset for the one stamp that is the destination's. docs/measures.md says what each measure is.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Protocol

import structlog

from vmferry.agent.beats import BeatBook
from vmferry.agent.echo import EchoProbe, prober_argv
from vmferry.agent.network_place import Moved, wait_moved
from vmferry.agent.reports import Ending, Observed, ending_of, make_report
from vmferry.conductor.source import Source
from vmferry.core.errors import VmferryError
from vmferry.core.guest import GuestSpec, echo_address
from vmferry.core.handover.states import FACTS, Owner, Side
from vmferry.core.ids import GuestName, HandoverId, HostName
from vmferry.core.progress import Finished, Gap, Outcome, Report
from vmferry.core.units import Milliseconds, Nanoseconds
from vmferry.measure.gap import ClockOffset, GapMeasure, clock_offset, guest_gap
from vmferry.ports.peer import ClockSample, Seen
from vmferry.ports.store import EventRow, Journal

_log = structlog.get_logger(__name__)

#: How long the guest is watched before the hand-over (its baseline) and after it runs at the destination.
_BEFORE_NS = 3_000_000_000
_AFTER_NS = 1_000_000_000
_PINGS = 7
_NS_PER_MS = 1_000_000
_NS_PER_S = 1_000_000_000


class Probe(Protocol):
    """Probes one guest's network, as `EchoProbe` does."""

    def begin(self) -> None:
        """Start; returns at once."""

    async def gap(self, stopped_ns: int, ended_ns: int) -> Gap | None:
        """Return the longest outage; None when it was not measured."""

    async def close(self) -> None:
        """End for sure. Idempotent."""


class StallMeter(Protocol):
    """Resets guests' own meters, as `Stalls` does."""

    async def reset(self, guest: GuestName) -> bool:
        """Have the guest begin anew; False when it did not say that it does."""


@dataclasses.dataclass(slots=True)
class _Watch:
    """What is measured beside one hand-over that this agent opened."""

    lost_before: int  #: beats that this host had failed to take already
    probe: Probe | None = None
    reset: asyncio.Task[bool] | None = None
    place: asyncio.Task[Moved | None] | None = None

    async def close(self) -> None:
        """End everything that runs."""
        tasks = [task for task in (self.reset, self.place) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.probe is not None:
            await self.probe.close()

    def was_reset(self) -> bool:
        """Tell whether the guest's own meter counts from this hand-over on."""
        return self.reset is not None and self.reset.done() and not self.reset.cancelled() and self.reset.result()


def echo_probe(address: str, port: int) -> Probe:
    """Return a prober of a guest, not started."""
    return EchoProbe(prober_argv(address, port))


class Measuring:
    """Measures hand-overs of which this host is the source.

    Args:
        host: this host.
        journal: where reports go.
        beats: this host's beats.
        stalls: resets the guests' own meters.
        acceleration_tag: what every figure is tagged with.
        probe: makes a prober for an address and a port.
        sleep: waits, in seconds; another one in tests.
    """

    def __init__(
        self,
        host: HostName,
        journal: Journal,
        beats: BeatBook,
        stalls: StallMeter,
        acceleration_tag: str,
        *,
        probe: Callable[[str, int], Probe] = echo_probe,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._host = host
        self._journal = journal
        self._beats = beats
        self._stalls = stalls
        self._tag = acceleration_tag
        self._probe = probe
        self._sleep = sleep
        self._watches: dict[HandoverId, _Watch] = {}

    # -- while it runs --------------------------------------------------------------------------------------------

    def opened(self, source: Source) -> None:
        """Begin: what has no such beginning (an agent was restarted) is not measured. Returns at once."""
        source.marks.mark("opened", source.marks.at("start"))
        watch = self._watches[source.request.handover] = _Watch(self._beats.lost(source.name))
        echo = None if source.guest is None else source.guest.spec.echo
        if echo is None:
            return
        try:
            address, port = echo_address(echo)
        except ValueError as error:
            _log.warning("guest's echo is no address", guest=source.name, echo=echo, expected=str(error))
            return
        watch.probe = self._probe(address, port)
        watch.probe.begin()

    def passed(self, source: Source) -> None:
        """Have the guest's own stall meter begin anew. Returns at once."""
        watch = self._watches.get(source.request.handover)
        if watch is not None and source.guest is not None and source.guest.spec.control:
            watch.reset = asyncio.create_task(self._stalls.reset(source.name), name=f"stalls:{source.name}")

    def leaving(self, source: Source) -> None:
        """Take the source's beats before their receiver goes."""
        opened, watch = source.marks.at("opened"), self._watches.get(source.request.handover)
        if opened is None or watch is None:
            return
        if source.guest is not None:
            waiting = wait_moved(source.guest, lambda: source.peer.announce(source.request.handover))
            watch.place = asyncio.create_task(waiting, name=f"place:{source.name}")
        since = opened - _BEFORE_NS  # what a guest did earlier, paused perhaps, is no measure of its move
        source.beats_before = _not_before(since, self._beats.stamps(source.name, since, opened))
        source.beats_here = _not_before(since, self._beats.stamps(source.name, opened, time.monotonic_ns()))
        if self._beats.lost(source.name) > watch.lost_before:
            _log.warning("beats were lost on this host: guest_gap is not measured", guest=source.name)
            source.beats_here = ()

    async def close(self) -> None:
        """End all that runs beside hand-overs; they go on with the next agent, not measured any more."""
        for watch in self._watches.values():
            await watch.close()
        self._watches.clear()

    # -- at its end -----------------------------------------------------------------------------------------------

    async def report(self, source: Source) -> None:
        """Measure, journal the report and publish the end; publishes whatever goes wrong before it."""
        source.marks.mark("finished")
        ending = ending_of(source, self._events(source))
        observed = await self._observed(source, ending)
        report = make_report(source, ending, observed, self._host, self._tag)
        try:
            self._journal.put_report(source.request.handover, str(Side.SOURCE), dataclasses.asdict(report))
        except VmferryError as error:
            _log.error("report is not journalled", handover=source.request.handover, error=str(error))
        await source.feed.publish(self._finished(source, ending, report))

    def _events(self, source: Source) -> Sequence[EventRow]:
        try:
            return self._journal.events(source.request.handover, str(Side.SOURCE))
        except VmferryError as error:
            _log.error("journal cannot be read", handover=source.request.handover, error=str(error))
            return ()

    def _finished(self, source: Source, ending: Ending, report: Report) -> Finished:
        facts = FACTS[source.runner.machine.state]
        owner = self._host if facts.owner is Owner.SOURCE else source.request.destination
        failure = source.runner.failure
        return Finished(
            at_ms=source.marks.since_start_ms(),
            outcome=ending.outcome,
            owner=None if ending.outcome is Outcome.LOST else owner,
            reason=report.reason,
            fix=None if failure is None else failure.fix,
            blockers=source.blockers,
            report=report,
        )

    async def _observed(self, source: Source, ending: Ending) -> Observed:
        """Return what was observed of a guest that moved; a fault of ours costs the measure, never the report."""
        watch = self._watches.pop(source.request.handover, None)
        try:
            if ending.outcome is Outcome.MOVED:
                return await self._with_place(source, watch, await self._observe(source, watch))
        except Exception:  # noqa: BLE001 - our bug; whoever watches waits for the end of the hand-over
            _log.exception("hand-over is not measured", handover=source.request.handover)
        finally:
            if watch is not None:
                await watch.close()
        return Observed()

    @staticmethod
    async def _with_place(source: Source, watch: _Watch | None, observed: Observed) -> Observed:
        """Add what the network knows of the guest's new place."""
        moved = None if watch is None or watch.place is None else await watch.place
        if moved is None:
            return observed
        running = source.marks.at("commit_answered")
        after = None if running is None or moved.seen_ns is None else _ms(max(0, moved.seen_ns - running))
        return dataclasses.replace(observed, network_moved_ms=after, announced=moved.announced)

    async def _observe(self, source: Source, watch: _Watch | None) -> Observed:
        offset = await self._offset(source)
        spec = None if source.guest is None else source.guest.spec
        if watch is None or spec is None or not (spec.beat or watch.probe or watch.was_reset()):
            return Observed(offset)
        await self._wait_after(source)
        outage, seen = await asyncio.gather(self._outage(source, watch), self._seen(source, spec, offset))
        measured = self._gap(source, seen, offset)
        return Observed(
            offset=offset,
            guest_gap=None if measured is None else self._watched(source, measured, seen, offset),
            ran_twice_ms=None if measured is None else measured.overlap_ms,
            in_guest_stall_ms=seen.in_guest_stall_ms if watch.was_reset() else None,
            network_outage=outage,
        )

    async def _wait_after(self, source: Source) -> None:
        """Wait until the guest has run at the destination for a while: that time belongs to the measures."""
        running = source.marks.at("commit_answered") or time.monotonic_ns()
        left = running + _AFTER_NS - time.monotonic_ns()
        await self._sleep(max(left, 0) / _NS_PER_S)

    async def _offset(self, source: Source) -> ClockOffset | None:
        samples: list[ClockSample] = []
        with contextlib.suppress(VmferryError):
            for _ in range(_PINGS):
                samples.append(await source.peer.ping())  # noqa: PERF401 - those before a failure count
        return clock_offset(samples) if samples else None

    @staticmethod
    async def _outage(source: Source, watch: _Watch) -> Gap | None:
        stopped = source.marks.at("pre_switchover")
        if watch.probe is None or stopped is None:
            return None
        return await watch.probe.gap(stopped, time.monotonic_ns())

    @staticmethod
    async def _seen(source: Source, spec: GuestSpec, offset: ClockOffset | None) -> Seen:
        """Ask the destination what it saw of the guest."""
        opened = source.marks.at("opened")
        if opened is None or offset is None or not (spec.beat or spec.control):
            return Seen()
        start, end = opened + offset.offset_ns, time.monotonic_ns() + offset.offset_ns
        try:
            return await source.peer.beats(source.request.handover, Nanoseconds(start), Nanoseconds(end))
        except VmferryError as error:
            _log.info("destination does not say what it saw", handover=source.request.handover, error=str(error))
            return Seen()

    @staticmethod
    def _gap(source: Source, seen: Seen, offset: ClockOffset | None) -> GapMeasure | None:
        """Return the guest's longest pause; None when either host did not see all beats, or none since the opening."""
        opened, here = source.marks.at("opened"), source.beats_here
        if offset is None or opened is None or not seen.complete or not here or here[-1] < opened:
            return None
        measured = guest_gap(here, seen.stamps_ns, offset, baseline_gap_ms=_largest(source.beats_before))
        if measured is not None and measured.overlap_ms > 0:
            _log.error(
                "guest ran on both hosts at once",
                guest=source.name,
                handover=source.request.handover,
                ran_twice_ms=measured.overlap_ms,
            )
        return measured

    @staticmethod
    def _watched(source: Source, measured: GapMeasure, seen: Seen, offset: ClockOffset | None) -> Gap:
        """Return the pause with how long the guest was watched, before the hand-over and in it."""
        ahead = 0 if offset is None else offset.offset_ns
        return Gap(
            measured.gap_ms,
            measured.uncertainty_ms,
            measured.baseline_gap_ms,
            _length(source.beats_before),
            window_ms=_ms(seen.stamps_ns[-1] - ahead - source.beats_here[0]),
        )


def _largest(stamps: Sequence[int]) -> Milliseconds | None:
    gaps = [later - earlier for earlier, later in pairwise(stamps)]
    return _ms(max(gaps)) if gaps else None


def _length(stamps: Sequence[int]) -> Milliseconds | None:
    return _ms(stamps[-1] - stamps[0]) if len(stamps) > 1 else None


def _not_before(start_ns: int, stamps: Sequence[int]) -> Sequence[int]:
    return [stamp for stamp in stamps if stamp >= start_ns]


def _ms(nanoseconds: int) -> Milliseconds:
    return Milliseconds(nanoseconds / _NS_PER_MS)
