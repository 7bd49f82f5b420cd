"""Hand-overs whose stream the agents connect themselves."""

from __future__ import annotations

import pytest
from tests.conductor.fakes import WatchedLink, qemu_of
from tests.conductor.pair import Host, wait_finished, wait_until
from tests.conductor.test_handovers import state_of

from vmferry.conductor import destination as destinations
from vmferry.conductor.rows import request_of
from vmferry.core.capabilities import Compression, Encryption, StreamWish, Transport
from vmferry.core.handover.states import SourceState
from vmferry.core.migration import RunState
from vmferry.ports.hypervisor import Certificates
from vmferry.testing.fake_door import FakeRelays
from vmferry.testing.fake_hypervisor import FakeHypervisor

OVER_FD = StreamWish(Transport.FD)


def called(host: Host) -> list[str]:
    """Return what a host's hypervisor was asked, in order."""
    assert isinstance(host.hypervisor, FakeHypervisor)
    return [call.name for call in host.hypervisor.calls]


async def test_a_guest_moves_over_the_agents_connection(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """There and back; QEMU listens nowhere, and no door expects anybody afterwards."""
    for here, there in (hosts, reversed(hosts)):
        await here.migrate(there, stream=OVER_FD)
        await wait_finished(here, there)
        assert "take_stream" in called(there)
        assert "migrate_over" in called(here)
        assert {"listen", "migrate"} & {*called(here), *called(there)} == set()
    assert [door.expected for door in hosts[0].pair.doors.values()] == [{}, {}]
    assert len(link.running()) == 1


async def test_several_channels_go_over_local_sockets(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """There and back; QEMU listens on no port, and nothing is carried or expected afterwards."""
    over = StreamWish(Transport.UNIX, channels=4)
    for here, there in (hosts, reversed(hosts)):
        await here.migrate(there, stream=over)
        await wait_finished(here, there)
        assert "listen_locally" in called(there)
        assert "migrate_locally" in called(here)
        assert {"listen", "migrate", "take_stream"} & {*called(here), *called(there)} == set()
    assert [door.expected for door in hosts[0].pair.doors.values()] == [{}, {}]
    for host in hosts:
        assert isinstance(host.relays, FakeRelays)
        assert host.relays.carried == set()
        assert host.relays.users == [None, None]
    assert len(link.running()) == 1


async def test_nothing_is_carried_when_the_sources_qemu_died(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """The guest is lost, and no program waits for more of it."""
    here, there = hosts
    link.rounds = 10**9
    await here.migrate(there, stream=StreamWish(Transport.UNIX))
    qemu = qemu_of(here, link)
    assert qemu is not None
    await wait_until(lambda: qemu.stream is not None, "it sends")
    link.die(qemu, "killed from outside")
    await wait_finished(here, there)
    for host in hosts:
        assert isinstance(host.relays, FakeRelays)
        assert host.relays.carried == set()


async def test_a_destination_that_knows_no_local_sockets_gets_no_stream(
    hosts: tuple[Host, Host], link: WatchedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older agent listens on a port: what was asked for is not dropped in silence."""
    here, there = hosts
    monkeypatch.setattr(destinations, "_THROUGH_THE_DOOR", frozenset())
    source = await here.migrate(there, stream=StreamWish(Transport.FD))
    await wait_finished(here, there)
    assert state_of(here, source.request.handover, "source") == "aborted"
    assert "migrate" not in called(here)
    assert len(link.running()) == 1


async def test_a_destination_that_was_restarted_does_not_know_the_ticket(
    hosts: tuple[Host, Host], link: WatchedLink
) -> None:
    """The guest stays where it is, and nothing is left at the destination."""
    here, there = hosts
    here.hold.ask(SourceState.RESERVED)
    source = await here.migrate(there, stream=OVER_FD)
    await here.hold.wait_reached(SourceState.RESERVED)
    await there.restart()
    here.hold.let_go(SourceState.RESERVED)
    await wait_finished(here, there)
    assert state_of(here, source.request.handover, "source") == "aborted"
    qemu = qemu_of(here, link)
    assert qemu is not None
    assert qemu.state is RunState.RUNNING
    await wait_until(lambda: len(link.alive()) == 1, "the arrival is gone")


async def test_post_copy_is_recovered_over_a_port(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """QEMU takes no descriptor while it hangs: the stream that was broken goes on over QEMU's own port."""
    here, there = hosts
    link.rounds = 10**9
    here.hold.ask(SourceState.POSTCOPY_RUNNING)
    await here.migrate(there, stream=OVER_FD, postcopy=True, postcopy_after=1)
    await here.hold.wait_reached(SourceState.POSTCOPY_RUNNING)
    qemu = qemu_of(here, link)
    assert qemu is not None
    assert qemu.stream is not None
    link.break_postcopy(qemu.stream)
    here.hold.let_go(SourceState.POSTCOPY_RUNNING)
    await wait_finished(here, there)
    assert "recover_listen" in called(there)
    assert len(link.running()) == 1


async def test_channels_do_not_go_over_one_connection(hosts: tuple[Host, Host]) -> None:
    """Told before anything is touched."""
    here, there = hosts
    source = await here.migrate(there, stream=StreamWish(Transport.FD, channels=4, compression=Compression.ZSTD))
    await wait_finished(here, there)
    assert "multifd is required and cannot be had: fd excludes multifd" in source.blockers[0].what
    assert "start" not in called(there)


async def test_channels_and_compression_reach_both_qemus(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """What was asked for is what both are set to."""
    here, there = hosts
    here.hold.ask(SourceState.PRECOPY)
    await here.migrate(there, stream=StreamWish(channels=4, compression=Compression.ZSTD))
    await here.hold.wait_reached(SourceState.PRECOPY)
    for host in hosts:
        qemu = qemu_of(host, link)
        assert qemu is not None
        assert qemu.setup is not None
        assert qemu.setup.capabilities["multifd"]
        assert qemu.setup.parameters["multifd-channels"] == 4
        assert qemu.setup.parameters["multifd-compression"] == "zstd"
    here.hold.let_go(SourceState.PRECOPY)
    await wait_finished(here, there)


async def test_a_guest_moves_through_a_pipeline(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """Both halves are started, as the guest's user; QEMU is told that nothing comes back."""
    here, there = hosts
    here.hold.ask(SourceState.PRECOPY)
    await here.migrate(there, stream=StreamWish(pipeline="zstd"))
    await here.hold.wait_reached(SourceState.PRECOPY)
    qemu = qemu_of(there, link)
    assert qemu is not None
    assert qemu.setup is not None
    assert "return-path" not in qemu.setup.capabilities
    assert qemu.setup.psk_key is None
    here.hold.let_go(SourceState.PRECOPY)
    await wait_finished(here, there)
    assert here.pipelines.started == [("send", "zstd", None)]
    assert there.pipelines.started == [("receive", "zstd", None)]
    assert len(link.running()) == 1


async def test_a_pipeline_that_is_not_there_any_more(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """At either end: the guest stays where it was, and nothing is left."""
    here, there = hosts
    for host in hosts:
        host.pipelines.names = ()
        source = await here.migrate(there, stream=StreamWish(pipeline="zstd"))
        await wait_finished(here, there)
        assert state_of(here, source.request.handover, "source") == "aborted"
        await wait_until(lambda: len(link.alive()) == 1, "the arrival is gone")
        assert len(link.running()) == 1
        host.pipelines.names = ("zstd",)


async def test_post_copy_does_not_go_through_a_pipeline(hosts: tuple[Host, Host]) -> None:
    """Told beforehand, with what to choose."""
    here, there = hosts
    source = await here.migrate(there, stream=StreamWish(pipeline="zstd"), postcopy=True)
    await wait_finished(here, there)
    assert "pipe excludes postcopy-ram: nothing comes back through it" in source.blockers[0].what


@pytest.mark.parametrize("encryption", Encryption)
async def test_a_stream_is_encrypted_by_one_thing(
    hosts: tuple[Host, Host], link: WatchedLink, encryption: Encryption
) -> None:
    """A key of the move's own, or the certificates that the checks have seen: both sides are set to it, disks too."""
    here, there = hosts
    here.certificates = Certificates("PEM of host-a", "CN=host-a", "PEM of host-b", "host-b")
    stream = StreamWish(encryption=encryption)
    here.hold.ask(SourceState.PRECOPY)
    source = await here.migrate(there, stream=stream, encrypted=True, copy_disks=True)
    await here.hold.wait_reached(SourceState.PRECOPY)
    by_key = encryption is Encryption.PSK
    for host in hosts:
        qemu = qemu_of(host, link)
        assert qemu is not None
        assert qemu.setup is not None
        assert (qemu.setup.psk_key is not None) is by_key
        assert qemu.setup.certificates == (None if by_key else here.certificates)
    arrived = qemu_of(there, link)
    assert arrived is not None
    assert arrived.exports_encrypted
    row = here.journal.handover(source.request.handover, "source")
    assert row is not None
    assert request_of(row).stream == stream  # what an agent that is restarted goes on with
    here.hold.let_go(SourceState.PRECOPY)
    await wait_finished(here, there)
    assert len(link.running()) == 1


async def test_a_guest_moves_by_rdma(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """There and back, QEMU to QEMU and one way: what is on at both sides has no way back (the fake refuses it)."""
    for here, there in (hosts, reversed(hosts)):
        source = await here.migrate(there, stream=StreamWish(Transport.RDMA))
        await wait_finished(here, there)
        assert source.blockers == ()
        assert "listen" in called(there)
        assert "migrate" in called(here)
    assert len(link.running()) == 1


async def test_what_rdma_excludes_is_told_before(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """Each of them, by itself, is a blocker; nothing is reserved."""
    here, there = hosts
    by = Transport.RDMA
    for stream, encrypted in (
        (StreamWish(by), True),
        (StreamWish(by, channels=2), False),
        (StreamWish(by, compression=Compression.XBZRLE), False),
    ):
        source = await here.migrate(there, stream=stream, encrypted=encrypted)
        await wait_finished(here, there)
        assert source.blockers, stream
    assert "listen" not in called(there)
    assert len(link.running()) == 1


async def test_a_restarted_agent_makes_no_channel_for_postcopy(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """Nobody knows the way to the other agent any more: given up before the guest is stopped, not on its way."""
    here, there = hosts
    link.rounds = 10**9
    source = await here.migrate(there, stream=StreamWish(Transport.UNIX), postcopy=True)
    await wait_until(lambda: source.state is SourceState.PRECOPY, "it is sending")
    await here.restart()
    handover = source.request.handover
    await wait_until(lambda: here.handovers.source(handover) is not None, "the next agent drives it")
    again = here.handovers.source(handover)
    assert again is not None
    again.begin_postcopy("asked for")
    await wait_finished(here, there)
    assert again.state is SourceState.ABORTED
    assert again.runner.failure is not None
    assert "a channel that a restarted agent cannot make" in again.runner.failure.what
    assert {"start_postcopy", "stop"} & {*called(here)} == set()
    assert len(link.running()) == 1
