"""What a stream may take, changed while it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.conductor.fakes import HOST_B, WatchedLink, qemu_of
from tests.conductor.pair import Host, wait_finished, wait_until
from tests.conductor.test_steering import made, slow_link

from vmferry.conductor.plan import UNLIMITED, Choice
from vmferry.conductor.rows import request_of
from vmferry.core.convergence.orders import Orders, SetBandwidth
from vmferry.core.errors import NotFound, Refused
from vmferry.core.handover.states import SourceState
from vmferry.core.ids import HandoverId
from vmferry.core.units import MIB, BytesPerSecond

__all__ = ["made", "slow_link"]

FIVE, SEVEN, NINE = (BytesPerSecond(count * MIB) for count in (5, 7, 9))


def bandwidth(host: Host) -> BytesPerSecond | None:
    """Return what the source's QEMU is limited to."""
    qemu = qemu_of(host, host.hypervisor.link)  # type: ignore[attr-defined]
    assert qemu is not None
    return qemu.bandwidth


async def test_it_changes_while_pages_are_sent(hosts: tuple[Host, Host], slow_link: WatchedLink) -> None:
    """Down, up again, and as much as the link gives."""
    here, there = hosts
    source = await here.migrate(there, bandwidth=NINE)
    await wait_until(lambda: source.state is SourceState.PRECOPY, "it is sending")
    assert bandwidth(here) == NINE
    for asked, limit in ((FIVE, FIVE), (SEVEN, SEVEN), (None, UNLIMITED)):
        await here.handovers.limit(source.request.handover, asked)
        assert bandwidth(here) == limit
    here.link = FIVE
    await here.handovers.limit(source.request.handover, None)
    assert bandwidth(here) == FIVE
    slow_link.release()
    await wait_finished(here, there)


async def test_a_policys_own_limit_holds_below_it(
    hosts: tuple[Host, Host], slow_link: WatchedLink, made: Callable[[Orders], Choice]
) -> None:
    """What the policy ordered is not lifted, and what is asked for is never gone beyond."""
    here, there = hosts
    source = await here.migrate(there, choice=made((SetBandwidth(SEVEN, "a rule"),)))
    await wait_until(lambda: source.state is SourceState.PRECOPY, "it is sending")
    for asked, limit in ((NINE, SEVEN), (FIVE, FIVE), (None, SEVEN)):
        await here.handovers.limit(source.request.handover, asked)
        assert bandwidth(here) == limit
    slow_link.release()
    await wait_finished(here, there)


async def test_it_waits_for_the_stream(hosts: tuple[Host, Host], slow_link: WatchedLink) -> None:
    """Asked for while the destination reserves, it holds once pages are sent."""
    here, there = hosts
    here.hold.ask(SourceState.RESERVED)
    source = await here.migrate(there, bandwidth=NINE)
    await here.hold.wait_reached(SourceState.RESERVED)
    asking = asyncio.create_task(here.handovers.limit(source.request.handover, FIVE))
    await asyncio.sleep(0)
    here.hold.let_go(SourceState.RESERVED)
    await asking
    assert bandwidth(here) == FIVE
    slow_link.release()
    await wait_finished(here, there)


async def test_an_agent_that_comes_later_keeps_it(hosts: tuple[Host, Host], slow_link: WatchedLink) -> None:
    """The journal has it, so a policy that begins anew is told of it too."""
    here, there = hosts
    source = await here.migrate(there, bandwidth=NINE)
    await wait_until(lambda: source.state is SourceState.PRECOPY, "it is sending")
    await here.handovers.limit(source.request.handover, FIVE)
    await here.restart()
    row = here.journal.handover(source.request.handover, "source")
    assert row is not None
    assert request_of(row).bandwidth == FIVE
    slow_link.release()
    await wait_finished(here, there)


async def test_nothing_is_changed_when_nothing_is_sent(hosts: tuple[Host, Host]) -> None:
    """A hand-over that is over, or that nobody knows, is refused with its state."""
    here, there = hosts
    source = await here.migrate(there)
    await wait_finished(here, there)
    with pytest.raises(Refused, match=r"is done: nothing more is sent"):
        await here.handovers.limit(source.request.handover, FIVE)
    with pytest.raises(NotFound, match=HOST_B):
        await there.handovers.limit(source.request.handover, FIVE)
    with pytest.raises(NotFound):
        await here.handovers.limit(HandoverId("nobodys"), FIVE)
