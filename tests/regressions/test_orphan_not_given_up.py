"""A guest that the destination holds whole is not lost with its source, neither by a restart nor by a deadline.

Found by the sweep: LOADED needs no QEMU of the source, but a restart of its agent led to ABORTING, and so did a
deadline or a cancel after the death had been ignored; there the guest was given up.
"""

import pytest

from vmferry.core.handover.events import SourceEvent
from vmferry.core.handover.states import Side, SourceState
from vmferry.sim.qemu import Fate
from vmferry.sim.world import World


@pytest.mark.parametrize("state", [SourceState.SOURCE_COMPLETED, SourceState.LOADED])
def test_power_loss_after_completed(state: SourceState) -> None:
    """The source's host loses power when everything was sent: after its reboot the guest goes on at the destination."""
    world = World()
    world.live_until(lambda: world.source.state is state)
    world.kill_host(Side.SOURCE)
    assert world.settle() is Fate.ONE
    assert world.source.state is SourceState.DONE


@pytest.mark.parametrize("event", [SourceEvent.DEADLINE_PASSED, SourceEvent.CANCEL_REQUESTED])
def test_no_way_back_to_a_dead_qemu(event: SourceEvent) -> None:
    """With the source's QEMU dead and everything at the destination, no deadline and no cancel gives the guest up."""
    world = World()
    world.live_until(lambda: world.source.state is SourceState.LOADED)
    world.kill_qemu(Side.SOURCE)
    world.source.take()
    assert world.source.state is SourceState.ORPHANED
    world.source.post(event)
    assert world.settle() is Fate.ONE


def test_restart_asks_the_destination_again() -> None:
    """A restart in LOADED wants a fresh word before it commits: when nobody answers, the guest stays at the source."""
    world = World()
    world.live_until(lambda: world.source.state is SourceState.LOADED)
    world.kill_agent(Side.SOURCE)
    world.cut()
    world.restart_agent(Side.SOURCE)
    world.live(20)
    assert str(world.source.state) == "source-completed"
    assert world.pass_deadline(Side.SOURCE)
    world.live(20)
    assert str(world.source.state) == "aborted"
    assert world.source.qemu is not None
    assert world.source.qemu.running
    assert world.settle() is Fate.ONE
