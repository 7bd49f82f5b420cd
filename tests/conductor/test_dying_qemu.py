"""A QEMU that was killed exists until its memory is freed: it answers nothing, and is no QEMU that lives."""

from __future__ import annotations

from tests.conductor.fakes import WatchedLink, qemu_of
from tests.conductor.pair import GUEST, Host, wait_finished, wait_until

from vmferry.core.errors import Broken
from vmferry.core.handover.states import DestinationState
from vmferry.testing.fake_hypervisor import FakeHypervisor


async def test_no_intent_while_qemu_is_dying(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """Before the intent QEMU must say that it lives; if it dies instead, the token goes back."""
    here, there = hosts
    hypervisor = there.hypervisor
    assert isinstance(hypervisor, FakeHypervisor)
    there.hold.ask(DestinationState.ACQUIRED)
    await here.migrate(there)
    await there.hold.wait_reached(DestinationState.ACQUIRED)
    asked_before = len(hypervisor.calls)
    hypervisor.refuse_next("query_run_state", Broken("QMP connection is gone"))
    there.hold.let_go(DestinationState.ACQUIRED)
    await wait_until(lambda: len(hypervisor.calls) > asked_before, "the question whether QEMU lives")
    dying = qemu_of(there, link)
    assert dying is not None
    link.die(dying)
    await wait_finished(here, there)
    token = here.guests.row(GUEST).token
    assert (token.epoch, token.owner, token.running) == (3, here.name, True)
    assert len(link.running()) == 1
