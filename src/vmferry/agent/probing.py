"""Measures the links to other hosts when somebody asks for it, one probe at a time, and keeps what was seen last.

    source       asks for a ticket over mutual TLS    destination  draws one, when nothing moves there and no probe runs
    source       connects with it, sends              destination  counts, and closes when it has seen enough
    source       asks what was seen, over TLS         destination  tells it

A move goes first: while one is under way on either host a probe is refused, and one that runs is cut when one begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from vmferry.api import models as m
from vmferry.core.bandwidth import Bandwidth
from vmferry.core.errors import Broken, NotFound, Refused, TimedOut, Unreachable
from vmferry.core.ids import GuestName, HandoverId, HostName
from vmferry.core.units import Milliseconds, format_bytes, format_rate
from vmferry.links.probe import Arrived, close_at_once, own, receive, round_trip_ms, send
from vmferry.ports.stream import Door, StreamConnection

#: Whoever has a ticket connects at once; for so long nobody else gets one.
CONNECT_LIMIT_S = 5.0
#: What is older is shown and not used any more: a link's capacity hardly changes, but what others take of it does, and
#: a drain of a host that was measured before it is over by then (docs/design/streams.md).
MOST_AGE_S = 3600.0

_log = structlog.get_logger(__name__)


class ProbedPeer(Protocol):
    """What a probe needs of the other host's agent."""

    async def expect_probe(self) -> m.ProbeOffer:
        """Have it let one probe in."""

    async def probe_result(self, probe: HandoverId) -> m.ProbeResult:
        """Wait until it has counted, and return what it saw."""


@dataclass(frozen=True, slots=True)
class Surrounding:
    """What a probe needs of the agent around it.

    Args:
        peer: another host's agent; raises NotFound for one that is not in the fleet.
        address_of: where it is: what was measured to another address counts no more.
        listen_address: where this host's streams arrive.
        moving: guests whose moves from or to this host are under way.
        now: the time, in seconds, that never goes back.
    """

    peer: Callable[[HostName], ProbedPeer]
    address_of: Callable[[HostName], str]
    listen_address: str
    moving: Callable[[], Sequence[GuestName]]
    now: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class Measured:
    """What the last probe to a host saw."""

    bandwidth: Bandwidth
    round_trip_ms: Milliseconds
    age_s: float

    @property
    def counts(self) -> bool:
        """Whether a move still reckons with it."""
        return self.age_s <= MOST_AGE_S


@dataclass(frozen=True, slots=True)
class _Kept:
    address: str
    bandwidth: Bandwidth
    round_trip_ms: Milliseconds
    at_s: float


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A probe that comes from another host."""

    probe: HandoverId
    task: asyncio.Task[Arrived]


class Probing:
    """Probes links, and lets other hosts probe theirs to this one.

    Args:
        door: where probes arrive, and by which they leave.
        around: the agent around.
    """

    def __init__(self, door: Door, around: Surrounding) -> None:
        self._door = door
        self._around = around
        self._kept: dict[HostName, _Kept] = {}
        self._outgoing: asyncio.Task[_Kept] | None = None
        self._arrivals: dict[HostName, _Arrival] = {}  #: the last of each host, to be asked about

    # -- this host's own ------------------------------------------------------------------------------------------

    def measured(self, host: HostName) -> Measured | None:
        """Return what the last probe to a host saw; None: none since the agent began, or it is elsewhere by now."""
        kept = self._kept.get(host)
        try:
            if kept is None or kept.address != self._around.address_of(host):
                return None
        except NotFound:  # it is in the fleet no more
            return None
        return Measured(kept.bandwidth, kept.round_trip_ms, self._around.now() - kept.at_s)

    async def measure(self, host: HostName) -> None:
        """Measure the link to a host, and keep what was seen; 0.3 s on a near link, 10 s at the most.

        Raises:
            Refused: something moves here or there, or another probe runs; or its agent is too old.
            Unreachable: nobody answers there.
            TimedOut: the other end does not read, or not in time.
            Broken: the connection broke.
        """
        self._check_free()
        task = self._outgoing = asyncio.create_task(self._measure(host), name=f"probe to {host}")
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if task.cancelled():
            raise _gave_way(f"Probe to {host}")
        self._kept[host] = task.result()

    async def _measure(self, host: HostName) -> _Kept:
        peer, address = self._around.peer(host), self._around.address_of(host)
        try:
            offer = await peer.expect_probe()
        except NotFound as error:
            raise Refused(
                f"Agent of {host} knows nothing of probes", side="destination", fix="update the older of the two agents"
            ) from error
        connection = await self._dial(offer)
        try:
            round_trip = round_trip_ms(connection)
            sent = await send(connection)
            seen = await peer.probe_result(offer.probe)
        finally:
            close_at_once(connection)
        if seen.total_bytes > sent:
            raise Broken(
                f"{host} says that {format_bytes(seen.total_bytes)} of a probe arrived, {format_bytes(sent)} were sent",
                side="destination",
            )
        rate = format_rate(seen.bytes_per_second)
        _log.info("link measured", destination=host, rate=rate, is_least=seen.is_least, sent=sent)
        return _Kept(address, Bandwidth(seen.bytes_per_second, seen.is_least), round_trip, self._around.now())

    async def _dial(self, offer: m.ProbeOffer) -> socket.socket:
        try:
            connection = await self._door.dial(offer.address, offer.ticket, offer.probe)
        except Unreachable as error:
            error.fix = "let the agents reach each other on migration.stream_port"
            raise
        with contextlib.closing(connection):
            return own(connection)

    # -- other hosts' ---------------------------------------------------------------------------------------------

    def expect(self, peer: HostName) -> m.ProbeOffer:
        """Let one probe of a host in, within 5 s.

        Raises:
            Refused: something moves here, or a probe runs.
        """
        self._check_free()
        name = HandoverId(f"probe-{secrets.token_hex(8)}")
        connected: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()

        async def take(connection: StreamConnection) -> None:
            if connected.done():
                raise Refused(f"probe of {peer} comes too late")
            connected.set_result(own(connection))

        ticket = self._door.expect(name, take)
        task = asyncio.create_task(self._count(name, connected), name=f"probe of {peer}")
        task.add_done_callback(_look_at)  # its host may never ask
        self._arrivals[peer] = _Arrival(name, task)
        return m.ProbeOffer(probe=name, address=self._around.listen_address, ticket=ticket)

    async def _count(self, name: HandoverId, connected: asyncio.Future[socket.socket]) -> Arrived:
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                connection = await asyncio.shield(connected)
            return await receive(connection)
        except TimeoutError as error:
            raise TimedOut(f"Nobody connected for a probe within {CONNECT_LIMIT_S:g} s", side="source") from error
        finally:
            self._door.forget(name)
            if not connected.cancel() and not connected.cancelled():
                connected.result().close()

    async def result(self, peer: HostName, name: HandoverId) -> m.ProbeResult:
        """Wait until a host's probe has been counted, and return what was seen of it.

        Raises:
            Refused: this host let no such probe in, or it was cut, for a move.
            TimedOut: nothing came.
            Broken: it ended too early.
        """
        arrival = self._arrivals.get(peer)
        if arrival is None or arrival.probe != name:
            raise Refused(f"There is no probe {name} of {peer}", side="destination")
        await asyncio.wait({arrival.task})
        if arrival.task.cancelled():
            raise _gave_way(f"Probe of {peer}")
        seen = arrival.task.result()
        return m.ProbeResult(
            bytes_per_second=seen.bandwidth.bytes_per_second, is_least=seen.bandwidth.is_least, total_bytes=seen.total
        )

    # -- both -----------------------------------------------------------------------------------------------------

    def give_way(self) -> None:
        """Cut every probe that runs: a move begins."""
        for task in self._running():
            task.cancel()

    async def close(self) -> None:
        """Cut every probe, and wait for its end. Idempotent."""
        tasks = [*self._running()]
        self.give_way()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _running(self) -> list[asyncio.Task[_Kept] | asyncio.Task[Arrived]]:
        every = [self._outgoing, *(arrival.task for arrival in self._arrivals.values())]
        return [task for task in every if task is not None and not task.done()]

    def _check_free(self) -> None:
        if moving := self._around.moving():
            raise Refused(
                f"Guest {moving[0]} is moving: a probe would slow it down, and measure what it leaves of the link",
                fix="wait until it has moved; its report tells how fast it was",
                retry=True,
            )
        if self._running():
            raise Refused("Another probe runs on this host", fix="try again in a second", retry=True)


def _look_at(task: asyncio.Task[Arrived]) -> None:
    """Take notice of a task's error, so that asyncio does not complain of one that nobody asked about."""
    if not task.cancelled():
        task.exception()


def _gave_way(what: str) -> Refused:
    return Refused(f"{what} was cut: a guest begins to move", fix="try again when it has moved", retry=True)
