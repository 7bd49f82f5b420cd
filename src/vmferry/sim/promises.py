"""What a hand-over promises: at any moment, and when everything has healed and nothing moves any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmferry.core.handover.replay import replay
from vmferry.core.handover.states import FACTS, DestinationState, Owner, Side, SourceState
from vmferry.sim.agent import SimAgent
from vmferry.sim.qemu import Fate, Violation

if TYPE_CHECKING:
    from vmferry.sim.world import World


def check_owner(world: World) -> None:
    """Hold that at most one QEMU runs, at most one host owns, and that they are the same host.

    Raises:
        Violation: two run, two own, or one runs that does not own.
    """
    running = [side for side, agent in world.agents.items() if agent.qemu is not None and agent.qemu.running]
    if len(running) > 1:
        raise Violation("two QEMUs run the guest")
    tokens = {side: agent.journal.token for side, agent in world.agents.items()}
    newest = max(token.epoch for token in tokens.values() if token is not None)
    owners = [side for side, token in tokens.items() if token and token.owner is side and token.epoch == newest]
    if len(owners) > 1:
        raise Violation(f"two owners: {tokens}")
    if running and running != owners:
        raise Violation(f"QEMU at the {running[0]} runs, owners are {owners}: {tokens}")
    if running and world.disk.lessee is not running[0]:
        raise Violation(f"QEMU at the {running[0]} runs, and the lease of its disk is {world.disk.lessee}'s")


def check_agent(agent: SimAgent) -> None:
    """Hold that the journal replays to the state that was lived, and that state and token name the same owner.

    Raises:
        Violation: they differ.
    """
    journal = agent.journal
    if journal.state is None:
        return
    again = replay(agent.side, journal.rows).state
    lived = agent.machine is None or agent.unwritten or agent.machine.state is again
    if again is not journal.state or not lived:
        raise Violation(f"replay of the {agent.side} gives {again}, not {journal.state}")
    owner = Side.SOURCE if FACTS[journal.state].owner is Owner.SOURCE else Side.DESTINATION
    if journal.token is not None and journal.token.owner is not owner:
        raise Violation(f"{agent.side} is in {journal.state} and its token says {journal.token}")


def check_end(world: World) -> None:
    """Hold what must be true at rest: nothing hangs, nothing is left over, and the guest is where its states say.

    Raises:
        Violation: it is not so.
    """
    for agent in world.agents.values():
        if agent.journal.opened and not agent.journal.finished:
            raise Violation(f"the {agent.side} hangs: {world.describe()}")
    fate, state = world.fate(), world.source.state
    if fate is Fate.HELD:
        raise Violation(f"nobody runs the guest: {world.describe()}")
    given_up = state in (SourceState.CRASHED, SourceState.LOST)
    if (fate is Fate.LOST) is not (given_up or _died_since(world)):
        raise Violation(f"guest is {fate}, but the source says {state}: {world.describe()}")
    if fate is Fate.LOST and not _may_be_lost(world):
        raise Violation(f"lost without need: {world.describe()}")
    _check_leftovers(world)


def _died_since(world: World) -> bool:
    """Tell whether the guest's QEMU died after the hand-over was over: a guest crash like any other."""
    at_source = world.source.state in (SourceState.ABORTED, SourceState.RETURNED)
    home = world.source if at_source else world.destination
    over = at_source or world.destination.state is DestinationState.RUNNING or world.source.state is SourceState.DONE
    return over and (home.qemu is None or not home.qemu.alive)


def _may_be_lost(world: World) -> bool:
    """Tell whether what happened allows a loss: the last pages, or one death where a state needed that QEMU."""
    if world.stream.failed_late and not world.stream.loaded:
        return True
    came_back = world.refused and world.destination.state is DestinationState.RETURNED
    if world.stream.postcopy and world.stream.loaded and came_back:
        return True  # whole, to a source that has not heard that it is
    if len(world.deaths) == 1 and not world.fenced and not world.refused:
        return world.deaths[0].needed
    return bool(world.deaths)


def _check_leftovers(world: World) -> None:
    home = Side.DESTINATION if world.destination.state is DestinationState.RUNNING else Side.SOURCE
    for side, agent in world.agents.items():
        lives = agent.qemu is not None and agent.qemu.alive
        if side is not home and lives:
            raise Violation(f"a QEMU is left at the {side}: {world.describe()}")
        if (world.disk.lessee is side) is not lives:
            raise Violation(f"the lease of the disk is {world.disk.lessee}'s: {world.describe()}")
