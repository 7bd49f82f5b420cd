"""What a move makes of a link that was measured: it reckons with it, and is never limited by it."""

from __future__ import annotations

import pytest
from tests.conductor.fakes import WatchedLink, qemu_of
from tests.conductor.pair import GUEST, Host, wait_finished, wait_until

from vmferry.conductor.plan import UNLIMITED, Asked, Choice, following_parameters, make_facts, make_setup
from vmferry.core.bandwidth import Bandwidth
from vmferry.core.capabilities import CapabilitySet, Compression, StreamWish, Transport
from vmferry.core.convergence import Throttle, Wishes
from vmferry.core.handover.states import SourceState
from vmferry.core.rounds.following import QUIET
from vmferry.core.units import GIB, MIB, Bytes, BytesPerSecond, Milliseconds

AUTO = StreamWish(compression=Compression.AUTO)
SLOW, DEVICE = BytesPerSecond(1_250_000), BytesPerSecond(1_250_000_000)
FOLLOWING = "max-postcopy-bandwidth"


def asked(limit: BytesPerSecond | None, measured: Bandwidth | None) -> Asked:
    """Return a move that may use post-copy."""
    return Asked(Choice(), Bytes(GIB), limit, None, postcopy=True, measured=measured)


@pytest.mark.parametrize("device", [None, DEVICE], ids=["nobody says", "a fast device"])
async def test_it_decides_on_compression_and_limits_nothing(
    hosts: tuple[Host, Host], link: WatchedLink, device: BytesPerSecond | None
) -> None:
    """A slow way, whatever its device says, is compressed for; the stream may take what it could without."""
    here, there = hosts
    here.link, here.measured = device, Bandwidth(SLOW)
    here.hold.ask(SourceState.PRECOPY)
    source = await here.migrate(there, stream=AUTO)
    await here.hold.wait_reached(SourceState.PRECOPY)
    assert source.request.compression != Compression.NONE
    assert source.compression_why is not None
    assert "of memory instead of 1.2 MiB/s" in source.compression_why
    qemu = qemu_of(here, link)
    assert qemu is not None
    assert qemu.bandwidth == (device or UNLIMITED)
    here.hold.let_go(SourceState.PRECOPY)
    await wait_finished(here, there)


async def test_writes_are_held_to_what_the_way_carries(hosts: tuple[Host, Host]) -> None:
    """40-writes gives the guest's programs what was measured, not a link without an end."""
    here, there = hosts
    here.measured = Bandwidth(SLOW)
    here.hold.ask(SourceState.SWITCHOVER)
    source = await here.migrate(there, throttle=Throttle.FORTY_WRITES)
    await here.hold.wait_reached(SourceState.SWITCHOVER)
    assert here.throttle.in_force[source.request.handover].bandwidth == SLOW
    here.hold.let_go(SourceState.SWITCHOVER)
    await wait_finished(here, there)


async def test_a_guest_on_the_way_is_told_at_both_ends(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """From the checks to its last page the link is the guest's; then it is free again."""
    here, there = hosts
    assert here.handovers.moving() == there.handovers.moving() == []
    here.hold.ask(SourceState.PRECOPY)
    await here.migrate(there)
    assert here.handovers.moving() == [GUEST]
    await here.hold.wait_reached(SourceState.PRECOPY)
    assert here.handovers.moving() == there.handovers.moving() == [GUEST]
    here.hold.let_go(SourceState.PRECOPY)
    await wait_finished(here, there)
    await wait_until(lambda: not there.handovers.moving(), "it is there")
    assert here.handovers.moving() == []


def test_a_policy_is_told_of_the_smaller() -> None:
    """What it reckons with is what the way carries."""
    assert make_facts(asked(DEVICE, Bandwidth(SLOW)), None).link == SLOW
    assert make_facts(asked(None, Bandwidth(SLOW)), None).link == SLOW
    assert make_facts(asked(SLOW, Bandwidth(DEVICE)), None).link == SLOW
    assert make_facts(asked(DEVICE, None), None).link == DEVICE


def test_it_is_no_limit_of_the_stream() -> None:
    """Neither of pre-copy nor of post-copy: what was measured may be less than what there is by now."""
    chosen = CapabilitySet(Transport.TCP, True, (), {}, {}, (), ())
    free = make_setup(asked(None, Bandwidth(SLOW)), chosen, Wishes(), (), None)
    assert free.max_bandwidth == UNLIMITED
    assert FOLLOWING not in free.parameters
    limited = make_setup(asked(DEVICE, Bandwidth(SLOW)), chosen, Wishes(), (), None)
    assert limited.max_bandwidth == limited.parameters[FOLLOWING] == DEVICE


def test_pages_follow_in_steps_of_the_measured_link_where_none_was_seen() -> None:
    """Post-copy from the first round on knows no speed of its own; one that was seen counts more."""
    measured = Bandwidth(BytesPerSecond(16 * MIB))
    at = Milliseconds(260.0)
    none = BytesPerSecond(0)
    assert following_parameters(asked(None, None), at, none) == {FOLLOWING: 0}
    assert following_parameters(asked(None, measured), at, none) == {FOLLOWING: MIB}
    assert following_parameters(asked(DEVICE, measured), at, none) == {FOLLOWING: MIB}
    assert following_parameters(asked(None, measured), at, BytesPerSecond(32 * MIB)) == {FOLLOWING: 2 * MIB}
    assert following_parameters(asked(None, measured), Milliseconds(0.0), none) == {FOLLOWING: QUIET}
    assert following_parameters(asked(None, measured), Milliseconds(60_000.0), none) == {FOLLOWING: 0}
