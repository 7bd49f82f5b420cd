"""A crash between the final state and its orders must not leave a QEMU behind.

Final states ignored AGENT_RESTARTED: an agent that died right after writing LOST never ended the source's QEMU, and a
fenced destination's source was marked as crashed while its QEMU stood there for ever.
"""

from vmferry.core.handover.states import DestinationState, Side, SourceState
from vmferry.sim.qemu import Fate
from vmferry.sim.world import World


def test_crash_right_after_lost() -> None:
    """The source's agent dies right after LOST was written: the next one ends the source's QEMU."""
    world = World()
    world.live_until(lambda: world.destination.state is DestinationState.STARTING)
    world.kill_qemu(Side.DESTINATION)
    world.live_until(lambda: world.source.state is SourceState.LOST)
    assert world.source.qemu is not None
    assert world.source.qemu.alive
    world.kill_agent(Side.SOURCE)
    assert world.settle() is Fate.LOST
    assert not world.source.qemu.alive


def test_fenced_destination_leaves_no_qemu() -> None:
    """After a person declared the destination fenced, the source's old copy is ended, not kept and not revived."""
    world = World()
    world.live_until(lambda: world.source.state is SourceState.COMMITTED)
    world.kill_host(Side.DESTINATION)
    world.fence(Side.DESTINATION)
    world.live_until(lambda: world.source.state is SourceState.CRASHED)
    assert world.settle() is Fate.LOST
    assert world.source.qemu is not None
    assert not world.source.qemu.alive
    token = world.source.journal.token
    assert token is not None
    assert (token.epoch, token.owner) == (2, Side.SOURCE)
