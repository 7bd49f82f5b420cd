"""Streams that leave by one link at the same time."""

from __future__ import annotations

from dataclasses import replace

from tests.conductor.fakes import SPEC, WatchedLink
from tests.conductor.pair import GUEST, Host, wait_finished, wait_until

from vmferry.conductor.source import Source
from vmferry.core.guest import Disk
from vmferry.core.handover.states import SourceState
from vmferry.core.ids import GuestName
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.testing.fake_hypervisor import FakeGuestProcess

OTHER = GuestName("db-1")
LINK, THIRD = BytesPerSecond(12 * MIB), BytesPerSecond(4 * MIB)


def bandwidth(host: Host, name: GuestName) -> BytesPerSecond | None:
    """Return what a guest's stream is limited to."""
    process = host.guests.process(name)
    assert isinstance(process, FakeGuestProcess)
    return process.qemu.bandwidth


async def begin(here: Host, there: Host, name: GuestName, bandwidth: BytesPerSecond | None = None) -> Source:
    """Begin to move a guest; pages are sent."""
    handover = await here.handovers.open(
        name, there.name, downtime_limit_ms=None, bandwidth=bandwidth, time_limit_s=None
    )
    source = here.handovers.source(handover)
    assert source is not None
    await wait_until(lambda: source.state is SourceState.PRECOPY, "it is sending")
    return source


async def two(hosts: tuple[Host, Host], link: WatchedLink) -> tuple[Host, Host]:
    """Run a second guest beside the first; all streams stay in their rounds."""
    here, there = hosts
    here.link, here.device = LINK, "eth0"
    await here.guests.run(replace(SPEC, name=OTHER, disks=(Disk("/srv/db-1.qcow2"),)))
    link.rounds = 10**9
    return here, there


async def test_each_gets_half_and_the_last_one_all(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """When the second begins the first makes room; when one ends the other takes what it had."""
    here, there = await two(hosts, link)
    first = await begin(here, there, GUEST)
    assert bandwidth(here, GUEST) == LINK
    second = await begin(here, there, OTHER)
    await wait_until(lambda: bandwidth(here, GUEST) == bandwidth(here, OTHER) == LINK // 2, "they share")
    await here.handovers.cancel(second.request.handover)
    await wait_until(lambda: bandwidth(here, GUEST) == LINK, "the first has all again")
    assert first.state is SourceState.PRECOPY
    link.rounds = 2
    await wait_finished(here, there)


async def test_what_was_asked_for_holds_within_the_share(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A limit below the share stays; one that is lifted goes up to the share and no further."""
    here, there = await two(hosts, link)
    first = await begin(here, there, GUEST, THIRD)
    await begin(here, there, OTHER)
    await wait_until(lambda: bandwidth(here, OTHER) == LINK // 2, "they share")
    assert bandwidth(here, GUEST) == THIRD
    await here.handovers.limit(first.request.handover, None)
    assert bandwidth(here, GUEST) == LINK // 2
    await here.handovers.limit(first.request.handover, BytesPerSecond(2 * LINK))
    assert bandwidth(here, GUEST) == LINK // 2
    link.rounds = 2
    await wait_finished(here, there)


async def test_a_device_that_nobody_knows_is_not_divided(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """TCP divides it."""
    here, there = await two(hosts, link)
    here.device = None
    await begin(here, there, GUEST)
    await begin(here, there, OTHER)
    assert bandwidth(here, GUEST) == bandwidth(here, OTHER) == LINK
    link.rounds = 2
    await wait_finished(here, there)
