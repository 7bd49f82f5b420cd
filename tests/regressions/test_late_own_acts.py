"""What an order of ours ends with may be overtaken by something else in the queue; it must not stop the machine.

A cancel that came between LOADED's release and its event made OWNERSHIP_RELEASED illegal in ABORTING, and the runner
ended with the guest stopped. The same with a QEMU that died before the intent was written, and with the answer to
`migrate-continue`, which QEMU's `completed` can overtake.
"""

from vmferry.core.handover.events import DestinationEvent, SourceEvent
from vmferry.core.handover.states import DestinationState, Side, SourceState
from vmferry.sim.qemu import Fate
from vmferry.sim.world import World


def test_cancel_overtakes_the_release() -> None:
    """A cancel that is handled before the release wins: nothing is released, the guest stays at the source."""
    world = World()
    world.live_until(lambda: world.source.state is SourceState.LOADED)
    world.cancel()
    world.source.carry_out()  # RELEASE: its event stands behind the cancel
    assert [event for event, _ in world.source.inbox] == [
        SourceEvent.CANCEL_REQUESTED,
        SourceEvent.OWNERSHIP_RELEASED,
    ]
    assert world.settle() is Fate.ONE
    assert world.source.state is SourceState.ABORTED
    assert world.source.journal.token is not None
    assert world.source.journal.token.epoch == 0


def test_death_overtakes_the_intent() -> None:
    """A QEMU that dies before the intent is written never ran: the guest goes back, no intent is written."""
    world = World()
    world.live_until(lambda: world.destination.state is DestinationState.ACQUIRED)
    world.kill_qemu(Side.DESTINATION)
    world.destination.post(DestinationEvent.INTENT_RECORDED)
    assert world.settle() is Fate.ONE
    assert (world.source.state, world.destination.state) == (SourceState.RETURNED, DestinationState.RETURNED)


def test_completed_overtakes_the_answer_to_continue() -> None:
    """QEMU's `completed` before the answer to the order that caused it is taken for what it is."""
    world = World()
    world.live_until(lambda: bool(world.source.replies))
    replies, world.source.replies = world.source.replies, []
    world.live_until(lambda: world.source.state is SourceState.SOURCE_COMPLETED)
    world.source.replies = replies
    assert world.settle() is Fate.ONE
    assert world.source.state is SourceState.DONE


def test_dead_before_the_intent_is_found_dead() -> None:
    """RECORD_INTENT looks first: a QEMU that died unseen in ACQUIRED is given back, not lost."""
    world = World()
    world.live_until(lambda: world.destination.state is DestinationState.ACQUIRED)
    world.kill_qemu(Side.DESTINATION)
    world.destination.inbox.clear()  # its death was not heard
    assert world.settle() is Fate.ONE
    assert world.source.state is SourceState.RETURNED
