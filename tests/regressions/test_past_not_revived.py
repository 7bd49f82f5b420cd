"""The destination's copy is the past as soon as the source's vCPUs may have run again; it must never be started.

Found by the sweep over two faults in tests/property: a source agent that restarts in SWITCHOVER restores the source's
QEMU; when that died before the agent had written it down, ABORTING led to ORPHANED, and the destination's word, true
but old, to a commit.
"""

from vmferry.core.handover.states import DestinationState, Side, SourceState
from vmferry.sim.qemu import Fate
from vmferry.sim.world import World


def test_death_while_aborting_is_a_crash() -> None:
    """A source that was restored and then dies takes the guest with it: what the destination loaded is discarded."""
    world = World()
    world.live_until(lambda: world.destination.state is DestinationState.LOADED)
    assert world.source.state is not SourceState.LOADED
    world.cancel()
    qemu = world.source.qemu
    assert qemu is not None
    world.live_until(lambda: qemu.running)
    assert world.source.state is SourceState.ABORTING
    world.kill_qemu(Side.SOURCE)
    assert world.settle() is Fate.LOST
    assert (world.source.state, world.destination.state) == (SourceState.CRASHED, DestinationState.DISCARDED)


def test_failure_heard_after_the_death_counts() -> None:
    """A `failed` that is heard only after the death still says that the vCPUs may have run: no orphan is saved."""
    world = World()
    world.live_until(lambda: world.source.state is SourceState.SWITCHOVER)
    qemu = world.source.qemu
    assert qemu is not None
    while world.destination.state is not DestinationState.LOADED:
        assert world.destination.take() or world.advance_qemu(Side.DESTINATION) or world.destination.carry_out()
    world.break_stream(rest_arrives=True)
    while not qemu.running:
        assert world.advance_qemu(Side.SOURCE)
    world.kill_qemu(Side.SOURCE)
    world.source.inbox.reverse()  # the runner breaks its promise and tells the death first
    assert world.settle() is Fate.LOST
    assert world.source.state is SourceState.CRASHED
