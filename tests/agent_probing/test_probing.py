"""Probes between two agents' halves over real doors: who may, how many, who goes first, and what is kept."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from vmferry.agent import probing
from vmferry.agent.links import Links
from vmferry.agent.probing import MOST_AGE_S, ProbedPeer, Probing, Surrounding
from vmferry.api import models as m
from vmferry.conductor.link import LinkSpeed
from vmferry.core.errors import Broken, NotFound, Refused, TimedOut, Unreachable
from vmferry.core.ids import GuestName, HandoverId, HostName
from vmferry.core.units import MIB, Bytes, BytesPerSecond
from vmferry.links import probe
from vmferry.links.dial import dial
from vmferry.links.door import StreamDoor

A, B, C = HostName("host-a"), HostName("host-b"), HostName("host-c")
HERE, WEB = "127.0.0.1", GuestName("web-7")


@dataclass
class Side:
    """One host: its door, its probes, and what a test changes of it."""

    name: HostName
    door: StreamDoor
    probing: Probing = field(init=False)
    moving: list[GuestName] = field(default_factory=list)
    clock_s: float = 0.0
    others: dict[HostName, ProbedPeer] = field(default_factory=dict)
    addresses: dict[HostName, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        around = Surrounding(self.peer, self.address_of, HERE, lambda: self.moving, lambda: self.clock_s)
        self.probing = Probing(self.door, around)

    def peer(self, host: HostName) -> ProbedPeer:
        """Return the way to another host."""
        if host not in self.others:
            raise NotFound(f"no host {host}")
        return self.others[host]

    def address_of(self, host: HostName) -> str:
        """Return where it is."""
        if host not in self.addresses:
            raise NotFound(f"no host {host}")
        return self.addresses[host]


@dataclass
class Wire:
    """Carries one host's questions to another as HTTP would; a test may answer instead of it."""

    asking: HostName
    asked: Side
    answer: Callable[[m.ProbeResult], m.ProbeResult] = lambda result: result
    offers: list[m.ProbeOffer] = field(default_factory=list)

    async def expect_probe(self) -> m.ProbeOffer:
        """Ask for a ticket."""
        self.offers.append(self.asked.probing.expect(self.asking))
        return self.offers[-1]

    async def probe_result(self, name: HandoverId) -> m.ProbeResult:
        """Ask what was seen."""
        return self.answer(await self.asked.probing.result(self.asking, name))


@dataclass
class Pair:
    """Two hosts that know each other."""

    a: Side
    b: Side
    wire: Wire


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """host-a, which probes, and host-b."""
    sides = []
    for name in (A, B):
        door = StreamDoor(HERE, 0)
        door.start()
        sides.append(Side(name, door))
    a, b = sides
    wire = Wire(A, b)
    a.others, b.others = {B: wire}, {A: Wire(B, a)}
    a.addresses, b.addresses = {B: "10.0.0.2"}, {A: "10.0.0.1"}
    yield Pair(a, b, wire)
    for side in sides:
        await side.probing.close()
        await side.door.close()
    await asyncio.sleep(0)


def only_tasks_of_doors() -> set[str]:
    """Return what runs beside the doors and the test."""
    names = {task.get_name() for task in asyncio.all_tasks()}
    return {name for name in names if name.startswith("probe")}


async def test_a_probe_measures_and_is_kept(pair: Pair) -> None:
    """What the destination saw stands at the source, grows old there, and the next one takes its place."""
    assert pair.a.probing.measured(B) is None
    await pair.a.probing.measure(B)
    first = pair.a.probing.measured(B)
    assert first is not None
    assert first.bandwidth.bytes_per_second > MIB
    assert 0 < first.round_trip_ms < 1000
    pair.a.clock_s += 3.0
    again = pair.a.probing.measured(B)
    assert again is not None
    assert again.age_s == pytest.approx(3.0)
    await pair.a.probing.measure(B)
    last = pair.a.probing.measured(B)
    assert last is not None
    assert last.age_s == 0.0
    assert only_tasks_of_doors() == set()


async def test_an_old_measurement_is_shown_and_does_not_count(pair: Pair) -> None:
    """An hour later it is history."""
    await pair.a.probing.measure(B)
    links = Links(
        A, None, lambda host: LinkSpeed(None, "eth0", "eth0 does not know its speed"), pair.a.probing.measured
    )
    fresh = await links.view(B)
    assert (fresh.told_by, fresh.limit, fresh.limited_by) == ("measured", None, None)
    assert fresh.bandwidth is not None
    pair.a.clock_s += MOST_AGE_S + 1
    old = await links.view(B)
    assert (old.bandwidth, old.told_by) == (None, None)
    assert old.measured is not None
    assert not old.measured.counts
    assert links.bandwidth(B) is None


async def test_a_host_that_is_elsewhere_by_now_was_never_measured(pair: Pair) -> None:
    """Another address is another link; a host that was removed has none."""
    await pair.a.probing.measure(B)
    pair.a.addresses[B] = "10.9.9.9"
    assert pair.a.probing.measured(B) is None
    pair.a.addresses.clear()
    assert pair.a.probing.measured(B) is None


@pytest.mark.parametrize("where", ["a", "b"])
async def test_while_a_guest_moves_there_is_no_probe(pair: Pair, where: str) -> None:
    """On either host; nothing was sent, and afterwards it works."""
    getattr(pair, where).moving.append(WEB)
    with pytest.raises(Refused, match="Guest web-7 is moving") as told:
        await pair.a.probing.measure(B)
    assert told.value.retry
    assert pair.wire.offers == []
    getattr(pair, where).moving.clear()
    await pair.a.probing.measure(B)


async def test_one_probe_at_a_time_from_a_host(pair: Pair) -> None:
    """The second of two orders is refused at once, the first one ends well."""
    ends = await asyncio.gather(pair.a.probing.measure(B), pair.a.probing.measure(B), return_exceptions=True)
    assert [type(end) for end in ends] == [type(None), Refused]


async def test_one_probe_at_a_time_to_a_host(pair: Pair) -> None:
    """Who asks for two tickets gets one, and so does who asks while another host has one."""
    pair.b.probing.expect(A)
    for peer in (A, C):
        with pytest.raises(Refused, match="Another probe runs"):
            pair.b.probing.expect(peer)


async def test_two_hosts_that_probe_each_other_at_once(pair: Pair) -> None:
    """Neither waits for the other: each is refused, or served, at once."""
    ends = await asyncio.gather(pair.a.probing.measure(B), pair.b.probing.measure(A), return_exceptions=True)
    assert all(end is None or isinstance(end, Refused) for end in ends)


async def test_a_ticket_that_nobody_uses_is_void_soon(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is served, and the late one finds a closed door."""
    monkeypatch.setattr(probing, "CONNECT_LIMIT_S", 0.05)
    late = pair.b.probing.expect(A)
    with pytest.raises(TimedOut, match="Nobody connected for a probe within 0.05 s"):
        await pair.b.probing.result(A, late.probe)
    with pytest.raises(Refused, match="does not expect"):
        await dial(HERE, late.ticket, late.probe)
    await pair.a.probing.measure(B)


async def test_a_ticket_is_good_once(pair: Pair) -> None:
    """Played back while the probe runs, and afterwards, it lets nobody in."""
    offer = pair.b.probing.expect(A)
    with contextlib.closing(await dial(HERE, offer.ticket, offer.probe)) as first:
        for _ in range(2):
            with pytest.raises(Refused, match="does not expect"):
                await dial(HERE, offer.ticket, offer.probe)
        connection = probe.own(first)
    await probe.send(connection)
    assert (await pair.b.probing.result(A, offer.probe)).total_bytes > 0
    connection.close()
    with pytest.raises(Refused, match="does not expect"):
        await dial(HERE, offer.ticket, offer.probe)


async def test_a_result_is_told_to_its_own_host_only(pair: Pair) -> None:
    """Another host, and another name, get nothing."""
    await pair.a.probing.measure(B)
    name = pair.wire.offers[0].probe
    for peer, asked in ((C, name), (A, HandoverId("probe-0"))):
        with pytest.raises(Refused, match="There is no probe"):
            await pair.b.probing.result(peer, asked)
    assert (await pair.b.probing.result(A, name)).total_bytes > 0  # an answer that was lost may be asked for again


async def test_garbage_from_an_admitted_host_is_bytes(pair: Pair) -> None:
    """What it says means nothing, only how much; when it falls silent, the next one is served."""
    offer = pair.b.probing.expect(A)
    with contextlib.closing(await dial(HERE, offer.ticket, offer.probe)) as first:
        first.send(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(Broken, match="Source ended its probe after 18 B"):
        await pair.b.probing.result(A, offer.probe)
    await pair.a.probing.measure(B)


@pytest.mark.parametrize("where", ["a", "b"])
async def test_a_move_cuts_a_probe(pair: Pair, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the source as at the destination: it is over at once, and said; nothing is kept of it."""
    began = asyncio.Event()

    async def send(connection: socket.socket) -> Bytes:
        began.set()
        await asyncio.sleep(3600)
        return Bytes(0)

    async def receive(connection: socket.socket) -> None:
        with contextlib.closing(connection):
            began.set()
            await asyncio.sleep(3600)

    monkeypatch.setattr(probing, *(("send", send) if where == "a" else ("receive", receive)))
    measuring = asyncio.create_task(pair.a.probing.measure(B))
    await began.wait()
    getattr(pair, where).probing.give_way()
    with pytest.raises(Refused, match="was cut: a guest begins to move"):
        await measuring
    assert pair.a.probing.measured(B) is None


async def test_who_ordered_it_goes_away(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled order leaves no task, and the next one is served."""
    monkeypatch.setattr(probing, "CONNECT_LIMIT_S", 0.2)
    measuring = asyncio.create_task(pair.a.probing.measure(B))
    while not pair.wire.offers:  # noqa: ASYNC110 - the wire has no event for it
        await asyncio.sleep(0)
    measuring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await measuring
    with contextlib.suppress(Broken, TimedOut, Refused):
        await pair.b.probing.result(A, pair.wire.offers[0].probe)
    assert only_tasks_of_doors() == set()
    await pair.a.probing.measure(B)


async def test_a_destination_that_boasts(pair: Pair) -> None:
    """More cannot have arrived than was sent: nothing is kept of such an answer."""
    pair.wire.answer = lambda result: result.model_copy(update={"total_bytes": Bytes(1 << 40)})
    with pytest.raises(Broken, match=r"host-b says that 1024.0 GiB of a probe arrived"):
        await pair.a.probing.measure(B)
    assert pair.a.probing.measured(B) is None


async def test_an_older_agent(pair: Pair) -> None:
    """It has no such route: said as what it is."""

    class Older(Wire):
        async def expect_probe(self) -> m.ProbeOffer:
            raise NotFound("There is nothing at /peer/v1/links/probe")

    pair.a.others[B] = Older(A, pair.b)
    with pytest.raises(Refused, match="Agent of host-b knows nothing of probes"):
        await pair.a.probing.measure(B)


async def test_a_door_that_is_shut(pair: Pair) -> None:
    """Nobody listens on the stream port: unreachable, with what to open."""
    await pair.b.door.close()
    with pytest.raises(Unreachable, match="cannot be reached") as told:
        await pair.a.probing.measure(B)
    assert told.value.fix == "let the agents reach each other on migration.stream_port"


GIVEN = BytesPerSecond(5 * MIB)


@pytest.mark.parametrize(
    ("asked", "configured", "device", "told"),
    [
        (GIVEN, None, None, ("asked", GIVEN)),
        (None, GIVEN, None, ("configured", GIVEN)),
        (None, None, GIVEN, ("device", GIVEN)),
        (GIVEN, BytesPerSecond(1), BytesPerSecond(2), ("asked", GIVEN)),
        (None, BytesPerSecond(1), GIVEN, ("configured", BytesPerSecond(1))),
        (None, None, None, (None, None)),
    ],
)
async def test_whose_word_it_is(
    asked: BytesPerSecond | None,
    configured: BytesPerSecond | None,
    device: BytesPerSecond | None,
    told: tuple[str | None, BytesPerSecond | None],
) -> None:
    """Asked for, then configured, then the device; nothing measured changes nothing."""
    links = Links(A, configured, lambda host: LinkSpeed(device, "eth0", "speed of eth0"), lambda host: None)
    view = await links.view(B, asked)
    assert (view.told_by, view.bandwidth) == told
    assert (view.limited_by, view.limit) == told
    assert view.measured is None
