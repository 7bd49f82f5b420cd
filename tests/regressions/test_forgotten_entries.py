"""What a crash forgets of a deferred entry does no harm: it is found again, or undone while the guest is the source's.

Found by thinking the deferral through: a commit that met an arrival which had forgotten that it is loaded gave the
token back, to a source that was dead by then; and an agent that came back to a QEMU in `device` would have waited for
ever beside a guest that stands still.
"""

from vmferry.core.handover.states import DestinationState, Side, SourceState
from vmferry.core.migration import MigrationStatus
from vmferry.sim.network import Word
from vmferry.sim.qemu import Fate
from vmferry.sim.world import World


def test_commit_meets_an_arrival_that_forgot() -> None:
    """The source's QEMU dies, the destination says loaded, forgets it and hears the commit first: the guest lives."""
    world = World()
    world.live_until(lambda: world.source.state is SourceState.SWITCHOVER)
    while world.destination.state is not DestinationState.LOADED:
        assert world.destination.take() or world.advance_qemu(Side.SOURCE) or world.advance_qemu(Side.DESTINATION)
    assert world.destination.unwritten
    world.kill_qemu(Side.SOURCE)
    while world.source.state is not SourceState.COMMITTED:
        assert world.source.take() or world.source.carry_out() or hear(world)
    world.kill_agent(Side.DESTINATION)
    assert str(world.destination.state) == "receiving"
    world.restart_agent(Side.DESTINATION)
    world.destination.receive(Word.COMMIT)
    world.destination.inbox.rotate(1)  # before anything that the new agent finds
    assert world.settle() is Fate.ONE
    assert (world.source.state, world.destination.state) == (SourceState.DONE, DestinationState.RUNNING)


def hear(world: World) -> bool:
    """Deliver the oldest message, or have the agents ask."""
    if world.network.messages:
        world.deliver(world.network.messages[0])
    else:
        world.poll()
    return True


def test_agent_returns_while_qemu_sends_the_last_pages() -> None:
    """The pause was forgotten and QEMU is in `device`, where it would stay: the hand-over is given up by itself."""
    world = World()
    world.live_until(lambda: world.source.state is SourceState.SWITCHOVER)
    qemu = world.source.qemu
    assert qemu is not None
    while qemu.status is not MigrationStatus.DEVICE:
        assert world.advance_qemu(Side.SOURCE)
    world.kill_agent(Side.SOURCE)
    assert str(world.source.state) == "precopy"
    world.restart_agent(Side.SOURCE)
    while world.source.state is not SourceState.ABORTING:
        assert world.source.take() or world.source.carry_out()
    assert world.settle() is Fate.ONE
    assert str(world.source.state) == "aborted"
