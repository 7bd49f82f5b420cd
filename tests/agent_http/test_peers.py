"""Agents ask each other: every method, and everything that can go wrong on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from vmferry.agent.peer_client import PeerClient, check_protocol
from vmferry.api import models as m
from vmferry.core.errors import Broken, GuestBusy, Refused, TimedOut, Unreachable
from vmferry.core.guest import FrozenGuest
from vmferry.core.ids import Epoch, HandoverId, HostName
from vmferry.core.migratable import MigratableDevice
from vmferry.core.units import Milliseconds
from vmferry.ports.hypervisor import MigrationSetup
from vmferry.ports.stream import Ticket
from vmferry.testing.conformance_store import make_guest_row
from vmferry.testing.fake_service import FakeService
from vmferry.testing.fleet_kit import World, serve

H1 = HandoverId("h1")


@pytest.fixture
async def peer(world: World) -> AsyncIterator[PeerClient]:
    """host-b asks host-a."""
    peer = PeerClient(world.served.member, world.host_b.client_context())
    yield peer
    await peer.close()


def make_guest() -> FrozenGuest:
    """Return a guest."""
    return make_guest_row().guest


def make_reserve() -> m.ReserveRequest:
    """Return a reservation with a secret key."""
    setup = MigrationSetup({"multifd": False}, None, Milliseconds(300.0), psk_key="c0ffee")
    return m.ReserveRequest(guest=make_guest(), epoch=Epoch(1), running=True, source=HostName("host-b"), setup=setup)


def test_what_is_newer_and_empty_is_left_out() -> None:
    """An agent that does not know it would refuse it; what is not empty is told, and read back."""
    body = make_reserve()
    assert "migratable" not in json.loads(body.model_dump_json())
    kind = MigratableDevice("nic0", "15b3:101e", "mlx5_vfio_pci")
    told = body.model_copy(update={"migratable": (kind,)}).model_dump_json()
    assert m.ReserveRequest.model_validate_json(told).migratable == (kind,)


async def test_every_method(world: World, peer: PeerClient) -> None:
    """Each method reaches the service with what was sent, the caller's name from its certificate, and the answer."""
    commit = m.CommitRequest(epoch=Epoch(2), running=True)
    assert (await peer.hello()).facts == world.service.facts()
    assert (await peer.ping()).sent_ns == 2
    assert (await peer.probe(make_guest())).cpu_missing_features == ()
    assert (await peer.expect_probe()).ticket == Ticket(7717, "secret")
    assert (await peer.probe_result(HandoverId("probe-1"))).bytes_per_second == 10**8
    assert (await peer.reserve(H1, make_reserve())).port == 49152
    assert (await peer.wait_loaded(H1, 100)).state == "LOADED"
    assert (await peer.commit(H1, commit)).epoch == 2
    await peer.discard(H1)
    assert (await peer.status(H1)).qemu_alive
    assert (await peer.verdict(H1)).verdict == "open"
    assert (await peer.beats(H1, 5, 9)).stamps_ns == (5, 9)
    calls = {str(call[0]): call[1:] for call in world.service.calls}
    assert {arguments[0] for arguments in calls.values()} == {"host-b"}
    assert calls["reserve"] == ("host-b", "h1", make_reserve())
    assert calls["probe"] == ("host-b", m.ProbeRequest(guest=make_guest()))
    assert calls["commit"] == ("host-b", "h1", commit)
    assert calls["probe_result"] == ("host-b", m.ProbeResultRequest(probe=HandoverId("probe-1")))


async def test_errors_come_back(world: World, peer: PeerClient) -> None:
    """What the other agent raises is raised here, class and attributes."""
    world.service.failures["commit"] = GuestBusy("web-7 is busy", owner="host-a", side="destination", retry=True)
    with pytest.raises(GuestBusy) as caught:
        await peer.commit(H1, m.CommitRequest(epoch=Epoch(2), running=True))
    assert caught.value == world.service.failures["commit"]


async def test_key_is_in_no_log(world: World, peer: PeerClient, capfd: pytest.CaptureFixture[str]) -> None:
    """A stream's key stands in no log and in no error, also when reserving fails."""
    world.service.failures["reserve"] = Refused("no memory")
    with pytest.raises(Refused) as refused:
        await peer.reserve(H1, make_reserve())
    world.service.failures["reserve"] = KeyError("bug")
    with pytest.raises(Exception, match="failed") as failed:
        await peer.reserve(H1, make_reserve())
    output = capfd.readouterr()
    assert "c0ffee" not in output.out + output.err + str(refused.value) + str(failed.value)


async def test_nobody_answers(world: World) -> None:
    """A port where nobody listens is Unreachable, with address and fix."""
    await world.served.listener.close()
    peer = PeerClient(world.served.member, world.host_b.client_context())
    with pytest.raises(Unreachable, match="127.0.0.1 port") as caught:
        await peer.ping()
    assert caught.value.retry
    await peer.close()


async def test_no_answer_in_time(world: World, peer: PeerClient) -> None:
    """An answer that does not come is TimedOut, and the connection can be used again."""
    waiting = asyncio.Event()

    async def hang(*_: object) -> m.PingReply:
        await waiting.wait()
        return m.PingReply(received_ns=1, sent_ns=2)

    world.service.ping = hang  # type: ignore[assignment,method-assign]
    with pytest.raises(TimedOut, match="host-a did not answer"):
        await peer.ping(time_limit_s=0.05)
    waiting.set()
    await peer.hello()


async def test_restarted_agent(world: World, peer: PeerClient) -> None:
    """A connection that stayed open over the other agent's restart is replaced without an error."""
    await peer.ping()
    await world.served.listener.pause(grace_s=0.1)
    await world.served.listener.serve(world.served.protocol(), world.host_a.server_context())
    await peer.ping()


async def test_reserve_is_not_sent_twice(world: World, peer: PeerClient) -> None:
    """A reservation whose connection broke is not repeated by itself: the caller decides."""
    seen = 0

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        await reader.readuntil(b"\r\n\r\n")
        seen += 1
        writer.transport.abort()

    server = await asyncio.start_server(cut, "127.0.0.1", 0, ssl=world.host_a.server_context())
    async with server:
        port = server.sockets[0].getsockname()[1]
        other = PeerClient(replace(world.served.member, port=port), world.host_b.client_context())
        with pytest.raises(Unreachable):
            await other.reserve(H1, make_reserve())
        assert seen == 1
        with pytest.raises(Unreachable):
            await other.status(H1)
        assert seen == 3
        await other.close()


async def test_strange_answer(world: World) -> None:
    """An answer that is not understood is Broken, with the host."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nnothing")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=world.host_a.server_context())
    async with server:
        port = server.sockets[0].getsockname()[1]
        other = PeerClient(replace(world.served.member, port=port), world.host_b.client_context())
        with pytest.raises(Broken, match="host-a answered what this agent does not understand"):
            await other.ping()
        await other.close()


@pytest.mark.parametrize(("protocol", "meet"), [(0, False), (1, True), (2, True), (3, False)])
def test_protocols(protocol: int, meet: bool) -> None:
    """Agents one protocol apart work together with the older one; others are refused with both numbers."""
    if meet:
        assert check_protocol(protocol, "9", HostName("host-b")) == min(protocol, m.PROTOCOL)
        return
    with pytest.raises(Refused, match=f"speaks protocol {protocol}"):
        check_protocol(protocol, "9", HostName("host-b"))


async def test_hello_of_a_newer_agent(world: World) -> None:
    """An agent two protocols ahead is refused with the reason, when it is greeted."""
    async with serve(world.host_a, FakeService("host-a", protocol=m.PROTOCOL + 2), world.kit.directory) as served:
        peer = PeerClient(served.member, world.host_b.client_context())
        with pytest.raises(Refused, match="do not meet"):
            await peer.hello()
        await peer.close()
