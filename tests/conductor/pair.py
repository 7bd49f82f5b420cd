"""Two hosts in one process: the real conductor on both sides, joined by direct calls instead of HTTPS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmferry.conductor.guests import Guests, HostSettings
from vmferry.conductor.handovers import Handovers, Surroundings
from vmferry.conductor.runner import no_hold
from vmferry.conductor.source import Source
from vmferry.core.errors import Unreachable
from vmferry.core.guest import FrozenGuest
from vmferry.core.handover.states import FACTS, AnyState, Owner
from vmferry.core.host import GuestProbe, HostFacts
from vmferry.core.ids import Epoch, GuestName, HandoverId, HostName
from vmferry.core.progress import Finished, Guarantee, Outcome
from vmferry.core.units import GIB, Bytes, Milliseconds, Nanoseconds
from vmferry.ports.hypervisor import Hypervisor
from vmferry.ports.peer import ClockSample, CommitReply, PeerStatus, ReserveReply, ReserveRequest, Verdict
from vmferry.ports.store import Journal

GUARANTEE = Guarantee("vmferry", "LOADED", "not needed", "tests promise nothing")


class NoBeats:
    """Receives nothing."""

    async def open(self, guest: GuestName, port: int | None) -> int:
        return port or 9

    async def close(self, guest: GuestName) -> None:
        pass


@dataclass
class Host:
    """One host: guests and hand-overs, which can be thrown away and built again as by a restarted agent."""

    name: HostName
    journal: Journal
    hypervisor: Hypervisor
    run_dir: Path
    ports: range
    pair: Pair
    hold: Callable[[AnyState], Awaitable[None]] = no_hold
    uid_base: int | None = None
    guests: Guests = field(init=False)
    handovers: Handovers = field(init=False)

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> None:
        """Make guests and hand-overs anew, as a starting agent does."""
        settings = HostSettings(self.name, self.run_dir, self.uid_base)
        self.guests = Guests(settings, self.journal, self.hypervisor, NoBeats())
        around = Surroundings(
            peer=lambda host: DirectPeer(self.pair, host),
            check=self._check,
            leaving=lambda source: None,
            report=self._report,
            link_bandwidth=lambda host: None,
            free_memory=lambda: Bytes(4 * GIB),
            listen_address="127.0.0.1",
            ports=self.ports,
            port_is_free=lambda address, port: True,
            hold=self.hold,
        )
        self.handovers = Handovers(self.guests, around)

    async def start(self) -> None:
        """Take over what an earlier agent left."""
        await self.guests.adopt_all()
        self.handovers.recover()

    async def stop(self) -> None:
        """End this agent; QEMUs live on."""
        await self.handovers.close()
        await self.guests.close()

    async def restart(self) -> None:
        """Be killed and started again."""
        await self.stop()
        self.build()
        await self.start()

    async def _check(self, *_: object) -> tuple[tuple[()], Guarantee]:
        return (), GUARANTEE

    async def _report(self, source: Source) -> None:
        state = source.runner.machine.state
        outcome = Outcome.MOVED if FACTS[state].owner is Owner.DESTINATION else Outcome.ABORTED
        await source.feed.publish(
            Finished(source.marks.since_start_ms(), outcome, str(state), source.reason, None, (), None)
        )


@dataclass
class Pair:
    """Two hosts and the network between them."""

    hosts: dict[HostName, Host] = field(default_factory=dict)
    cut: bool = False

    def host(self, name: HostName) -> Host:
        """Return a host, as the network reaches it."""
        if self.cut:
            raise Unreachable(f"host {name} does not answer", retry=True)
        return self.hosts[name]


class DirectPeer:
    """The peer port by direct calls."""

    def __init__(self, pair: Pair, host: HostName) -> None:
        self._pair = pair
        self._host = host

    @property
    def _there(self) -> Handovers:
        return self._pair.host(self._host).handovers

    async def hello(self) -> HostFacts:
        raise NotImplementedError

    async def probe(self, guest: FrozenGuest) -> GuestProbe:
        raise NotImplementedError

    async def reserve(self, request: ReserveRequest) -> ReserveReply:
        return await self._there.reserve(request)

    async def wait_loaded(self, handover: HandoverId, limit_ms: Milliseconds) -> PeerStatus:
        return await self._there.wait_loaded(handover, min(limit_ms, 500) / 1000)

    async def commit(self, handover: HandoverId, epoch: Epoch, *, running: bool) -> CommitReply:
        return await self._there.commit(handover, epoch, 5.0, running=running)

    async def discard(self, handover: HandoverId) -> None:
        self._there.discard(handover)

    async def status(self, handover: HandoverId) -> PeerStatus:
        return await self._there.wait_loaded(handover, 0.001)

    async def verdict(self, handover: HandoverId) -> Verdict:
        return self._there.verdict(handover)

    async def ping(self) -> ClockSample:
        return ClockSample(Nanoseconds(0), Nanoseconds(0), Nanoseconds(0))

    async def beats(self, handover: HandoverId, start_ns: Nanoseconds, end_ns: Nanoseconds) -> Sequence[int]:
        return ()


async def follow(host: Host, handover: HandoverId) -> list[object]:
    """Return every event of a hand-over once it is finished."""
    source = host.handovers.source(handover)
    assert source is not None
    return [event async for event in source.feed.follow()]


@contextlib.asynccontextmanager
async def running(*hosts: Host) -> AsyncIterator[None]:
    """Have hosts started, and everything of theirs ended afterwards."""
    for host in hosts:
        await host.start()
    try:
        yield
    finally:
        for host in hosts:
            for row in host.journal.guests():
                with contextlib.suppress(Exception):
                    await host.guests.kill(row.guest.spec.name)
            await host.stop()
        await asyncio.sleep(0)
