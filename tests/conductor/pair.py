"""Two hosts in one process: the real conductor on both sides, joined by direct calls instead of HTTPS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from vmferry.conductor.around import Checked, Surroundings
from vmferry.conductor.guest_devices import GuestDevices
from vmferry.conductor.guests import Guests, HostSettings
from vmferry.conductor.handovers import DEFAULT_CHOICE, Handovers, Postcopy
from vmferry.conductor.plan import Choice
from vmferry.conductor.rows import Request
from vmferry.conductor.source import Source
from vmferry.core.bandwidth import Bandwidth
from vmferry.core.capabilities import DEFAULT_STREAM, StreamWish
from vmferry.core.convergence.facts import Throttle
from vmferry.core.convergence.trace import Trace
from vmferry.core.disks import written_images
from vmferry.core.errors import Blocker, Unreachable
from vmferry.core.guest import FrozenGuest
from vmferry.core.handover.states import FACTS, AnyState, Owner, SourceState
from vmferry.core.host import GuestProbe, HostFacts, QemuFacts
from vmferry.core.ids import Epoch, GuestName, HandoverId, HostName
from vmferry.core.migratable import MigratableDevice
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import Inventory
from vmferry.core.progress import Finished, Guarantee, Outcome
from vmferry.core.units import GIB, Bytes, BytesPerSecond, Milliseconds, Nanoseconds
from vmferry.links.relay import LocalRelays
from vmferry.measure.compressing import PageCompressing
from vmferry.ports.disk_leases import DiskLeases
from vmferry.ports.disks import nodes_of
from vmferry.ports.hypervisor import Certificates, Hypervisor
from vmferry.ports.peer import (
    ClockSample,
    CommitReply,
    PeerStatus,
    RejoinReply,
    ReserveReply,
    ReserveRequest,
    Seen,
    Verdict,
)
from vmferry.ports.store import Journal
from vmferry.ports.stream import Relays, StreamWays
from vmferry.testing.fake_door import FakeDoor, FakePipelines
from vmferry.testing.fake_hypervisor import FAKE_FACTS
from vmferry.testing.fake_mirrors import FakeDiskFiles
from vmferry.testing.fake_plugs import FakeHostDevices, FakeStandbys
from vmferry.testing.fake_qemu import FakeLink
from vmferry.testing.fake_throttle import FakeThrottle

T = TypeVar("T")

GUARANTEE = Guarantee("vmferry", "LOADED", "not needed", "tests promise nothing")
GUEST = GuestName("web-7")
_FREE = Bytes(4 * GIB)


class NoBeats:
    """Receives nothing."""

    async def open(self, guest: GuestName, port: int | None) -> int:
        return port or 9

    async def close(self, guest: GuestName) -> None:
        pass


class Holds:
    """Stops a side in chosen states, once each."""

    def __init__(self) -> None:
        self._asked: dict[AnyState, tuple[asyncio.Event, asyncio.Event]] = {}

    def ask(self, state: AnyState) -> None:
        """Have the next hand-over that enters the state stop there."""
        self._asked[state] = (asyncio.Event(), asyncio.Event())

    async def wait_reached(self, state: AnyState) -> None:
        """Wait until somebody is held in the state."""
        await self._asked[state][0].wait()

    def let_go(self, state: AnyState) -> None:
        """Let it go on, and hold nobody there any more."""
        self._asked.pop(state)[1].set()

    def __call__(self, state: AnyState) -> Awaitable[object] | None:
        if state not in self._asked:
            return None
        reached, released = self._asked[state]
        reached.set()
        return released.wait()


@dataclass
class Host:
    """One host: guests and hand-overs, which can be thrown away and built again as by a restarted agent."""

    name: HostName
    journal: Journal
    hypervisor: Hypervisor
    run_dir: Path
    ports: range
    pair: Pair
    hold: Holds = field(default_factory=Holds)
    uids: range | None = None
    free_memory: Bytes = _FREE
    blockers: tuple[Blocker, ...] = ()
    migratable: tuple[MigratableDevice, ...] = ()  #: devices that go along, as its checks find
    throttle: FakeThrottle = field(default_factory=FakeThrottle)
    files: FakeDiskFiles = field(default_factory=FakeDiskFiles)
    leases: DiskLeases | None = None
    pipelines: FakePipelines = field(default_factory=lambda: FakePipelines("zstd"))
    relays: Relays = field(default_factory=LocalRelays)
    reports: list[tuple[HandoverId, AnyState]] = field(default_factory=list)
    traces: dict[HandoverId, Trace] = field(default_factory=dict)
    qemus: tuple[QemuFacts, QemuFacts] = (FAKE_FACTS, FAKE_FACTS)
    certificates: Certificates | None = None
    link: BytesPerSecond | None = None
    device: str | None = None
    measured: Bandwidth | None = None  #: of its link to any other host
    devices: FakeHostDevices = field(default_factory=lambda: FakeHostDevices(FakeLink(), Inventory.of(())))
    networks: dict[str, tuple[PciAddress, ...]] = field(default_factory=dict)
    standbys: FakeStandbys = field(default_factory=FakeStandbys)
    given: GuestDevices = field(init=False)
    guests: Guests = field(init=False)
    handovers: Handovers = field(init=False)
    gone: asyncio.Event = field(init=False)

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> None:
        """Make guests and hand-overs anew, as a starting agent does."""
        self.gone = asyncio.Event()
        settings = HostSettings(self.name, self.run_dir, self.uids, self.run_dir / "tpm")
        self.guests = Guests(settings, self.journal, self.hypervisor, NoBeats(), self.leases)
        self.given = GuestDevices(self.guests, self.devices, self.networks, self.standbys)
        around = Surroundings(
            peer=lambda host: DirectPeer(self.pair, host),
            check=self._check,
            leaving=lambda source: None,
            report=self._report,
            link_bandwidth=lambda host: self.link,
            link_device=lambda host: self.device,
            link_measured=lambda host: self.measured,
            free_memory=lambda: self.free_memory,
            listen_address="127.0.0.1",
            ports=self.ports,
            port_is_free=lambda address, port: True,
            hold=self.hold,
            throttle=self.throttle,
            ways=StreamWays(FakeDoor(self.pair.doors), self.pipelines, self.relays),
            compressing=PageCompressing(),
            disk_files=self.files,
            devices=self.given,
            keep_trace=self.traces.__setitem__,
        )
        self.handovers = Handovers(self.guests, around)

    async def start(self) -> None:
        """Take over what an earlier agent left."""
        await self.guests.adopt_all()
        self.handovers.recover()
        self.given.recover()

    async def stop(self) -> None:
        """End this agent; QEMUs live on."""
        self.gone.set()
        await self.handovers.close()
        await self.given.close()
        await self.guests.close()

    async def restart(self) -> None:
        """Be killed and started again."""
        await self.stop()
        self.build()
        await self.start()

    async def migrate(
        self,
        destination: Host,
        *,
        encrypted: bool = False,
        time_limit_s: float | None = None,
        downtime_limit_ms: Milliseconds | None = None,
        choice: Choice = DEFAULT_CHOICE,
        throttle: Throttle | None = None,
        postcopy: bool = False,
        postcopy_after: int | None = None,
        bandwidth: BytesPerSecond | None = None,
        stream: StreamWish = DEFAULT_STREAM,
        copy_disks: bool = False,
        guest: GuestName = GUEST,
    ) -> Source:
        """Open a hand-over, of the one guest as a rule."""
        handover = await self.handovers.open(
            guest,
            destination.name,
            downtime_limit_ms=downtime_limit_ms,
            bandwidth=bandwidth,
            time_limit_s=time_limit_s,
            choice=choice if throttle is None else replace(choice, throttle=str(throttle)),
            postcopy=Postcopy(postcopy_after) if postcopy or postcopy_after is not None else None,
            stream=replace(stream, encrypted=encrypted),
            copy_disks=copy_disks,
        )
        source = self.handovers.source(handover)
        assert source is not None
        return source

    async def _check(self, request: Request) -> Checked:
        images = written_images(self.guests.row(request.guest).guest.spec) if request.copy_disks else ()
        return Checked(self.blockers, GUARANTEE, self.qemus, nodes_of(images), self.certificates, self.migratable)

    async def _report(self, source: Source) -> None:
        state = source.runner.machine.state
        self.reports.append((source.request.handover, state))
        owner = self.name if FACTS[state].owner is Owner.SOURCE else source.request.destination
        outcomes = {SourceState.DONE: Outcome.MOVED, SourceState.RETURNED: Outcome.RETURNED}
        lost = state in (SourceState.CRASHED, SourceState.LOST)
        outcome = Outcome.LOST if lost else outcomes.get(SourceState(state), Outcome.ABORTED)
        await source.feed.publish(
            Finished(source.marks.since_start_ms(), outcome, owner, source.reason, None, source.blockers, None)
        )


@dataclass
class Pair:
    """Two hosts and the network between them."""

    hosts: dict[HostName, Host] = field(default_factory=dict)
    doors: dict[int, FakeDoor] = field(default_factory=dict)
    joined: dict[int, str] = field(default_factory=dict)  #: connections of relays
    cut: bool = False

    async def call(self, host: HostName, make: Callable[[Handovers], Awaitable[T]]) -> T:
        """Ask a host; neither the question nor the answer passes a cut, and an agent that dies answers nobody."""
        self._check(host)
        there = self.hosts[host]
        asking = asyncio.ensure_future(make(there.handovers))
        dying = asyncio.ensure_future(there.gone.wait())
        try:
            await asyncio.wait((asking, dying), return_when=asyncio.FIRST_COMPLETED)
        finally:
            dying.cancel()
            if not asking.done():
                asking.cancel()
            await asyncio.gather(asking, dying, return_exceptions=True)
        if asking.cancelled():
            raise Unreachable(f"host {host} died", retry=True)
        answer = asking.result()
        self._check(host)
        return answer

    def _check(self, host: HostName) -> None:
        if self.cut or self.hosts[host].gone.is_set():
            raise Unreachable(f"host {host} does not answer", retry=True)


class DirectPeer:
    """The peer port by direct calls."""

    def __init__(self, pair: Pair, host: HostName) -> None:
        self._pair = pair
        self._host = host

    async def hello(self) -> HostFacts:
        raise NotImplementedError

    async def probe(self, guest: FrozenGuest) -> GuestProbe:
        raise NotImplementedError

    async def reserve(self, request: ReserveRequest) -> ReserveReply:
        return await self._pair.call(self._host, lambda there: there.arrivals.reserve(request))

    async def wait_loaded(self, handover: HandoverId, limit_ms: Milliseconds) -> PeerStatus:
        return await self._pair.call(
            self._host, lambda there: there.arrivals.wait_loaded(handover, min(limit_ms, 500) / 1000)
        )

    async def commit(self, handover: HandoverId, epoch: Epoch, *, running: bool) -> CommitReply:
        return await self._pair.call(
            self._host, lambda there: there.arrivals.commit(handover, epoch, 5.0, running=running)
        )

    async def rejoin(self, handover: HandoverId, *, source_alive: bool) -> RejoinReply:
        return await self._pair.call(
            self._host, lambda there: there.arrivals.rejoin(handover, source_alive=source_alive)
        )

    async def announce(self, handover: HandoverId) -> None:
        await self._pair.call(self._host, lambda there: there.arrivals.announce(handover))

    async def discard(self, handover: HandoverId) -> None:
        async def discard(there: Handovers) -> None:
            there.arrivals.discard(handover)

        await self._pair.call(self._host, discard)

    async def status(self, handover: HandoverId) -> PeerStatus:
        return await self._pair.call(self._host, lambda there: there.arrivals.wait_loaded(handover, 0.001))

    async def verdict(self, handover: HandoverId) -> Verdict:
        async def verdict(there: Handovers) -> Verdict:
            return there.verdict(handover)

        return await self._pair.call(self._host, verdict)

    async def ping(self) -> ClockSample:
        return ClockSample(Nanoseconds(0), Nanoseconds(0), Nanoseconds(0))

    async def beats(self, handover: HandoverId, start_ns: Nanoseconds, end_ns: Nanoseconds) -> Seen:
        return Seen()


async def follow(host: Host, handover: HandoverId) -> list[object]:
    """Return every event of a hand-over once it is finished."""
    source = host.handovers.source(handover)
    assert source is not None
    return [event async for event in source.feed.follow()]


async def wait_until(holds: Callable[[], bool], what: str, limit_s: float = 60.0) -> None:
    """Wait until something holds."""
    try:
        async with asyncio.timeout(limit_s):
            while not holds():  # noqa: ASYNC110 - what is looked at has no event of its own
                await asyncio.sleep(0.002)
    except TimeoutError as error:
        raise AssertionError(f"not within {limit_s:g} s: {what}") from error


async def wait_finished(*hosts: Host) -> None:
    """Wait until no hand-over is open anywhere, and nobody is busy with one."""

    def finished() -> bool:
        return not any(h.handovers.unfinished() or h.handovers.lives for h in hosts)

    def standing() -> str:
        return str([(h.name, [(row.side, row.state) for row in h.handovers.unfinished()]) for h in hosts])

    try:
        await wait_until(finished, "every hand-over is finished")
    except AssertionError as error:
        raise AssertionError(f"still open: {standing()}") from error


@contextlib.asynccontextmanager
async def running(*hosts: Host) -> AsyncIterator[None]:
    """Have hosts started, and everything of theirs ended afterwards."""
    for host in hosts:
        await host.start()
    try:
        yield
    finally:
        for host in hosts:
            await host.handovers.close()
        for host in hosts:
            for row in host.journal.guests():
                with contextlib.suppress(Exception):
                    await host.guests.kill(row.guest.spec.name)
            await host.stop()
        await asyncio.sleep(0)
