"""What becomes of the guest when something dies in a given state: foretold by living through it.

The fault comes right after the state was journalled and before its orders begin. What follows is lived through without
help first, as long as the fault lasts, and then to the end, when everything has healed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vmferry.core.handover.states import POSTCOPY_STATES, AnyState, DestinationState, Side, SourceState
from vmferry.core.migration import MigrationStatus
from vmferry.sim.agent import SimAgent
from vmferry.sim.qemu import Fate
from vmferry.sim.world import World

_S, _D = Side.SOURCE, Side.DESTINATION
_LONG = 60  #: steps after which nothing more happens without help, other than by a deadline


SHORT_CUT = "link cut shortly"


def _cut(world: World) -> None:
    world.cut(loud=True)
    world.break_stream(rest_arrives=True)


def _cut_full(world: World) -> None:
    world.stream.has_room = False
    world.cut(brief=True)


def _cut_late(world: World) -> None:
    world.network.late = True
    world.cut(brief=True)


#: What a fault may be besides: who connects during a cut waits, or is told at once that there is no way; QEMU can
#: send on for a while, or cannot; and TCP repeats a question soon after a cut, or seconds later.
_ALSO: Mapping[str, Sequence[Callable[[World], None]]] = {
    SHORT_CUT: (lambda world: world.cut(loud=True), _cut_full, _cut_late)
}


#: What is done. A long cut outlasts every deadline and TCP's patience; a short one does not.
CELLS: Mapping[str, Callable[[World], None]] = {
    "source agent": lambda world: world.kill_agent(_S),
    "destination agent": lambda world: world.kill_agent(_D),
    "source QEMU": lambda world: world.kill_qemu(_S),
    "destination QEMU": lambda world: world.kill_qemu(_D),
    "source agent and QEMU": lambda world: world.kill_host(_S),
    "destination agent and QEMU": lambda world: world.kill_host(_D),
    "link cut": _cut,
    SHORT_CUT: lambda world: world.cut(brief=True),
}

#: The states that a hand-over goes through, on either side: first those of an undisturbed one.
WAYS: Mapping[Side, Sequence[AnyState]] = {
    _S: (
        SourceState.CHECKING,
        SourceState.RESERVING,
        SourceState.DETACHING,
        SourceState.RESERVED,
        SourceState.PRECOPY,
        SourceState.PRE_SWITCHOVER,
        SourceState.SWITCHOVER,
        SourceState.SOURCE_COMPLETED,
        SourceState.DESTINATION_LOADED,
        SourceState.LOADED,
        SourceState.COMMITTED,
        SourceState.RUNNING,
        SourceState.DONE,
        SourceState.ABORTING,
        SourceState.ORPHANED,
        SourceState.RETURNING,
    ),
    _D: (
        DestinationState.PREPARING,
        DestinationState.RECEIVING,
        DestinationState.LOADED,
        DestinationState.ACQUIRED,
        DestinationState.STARTING,
        DestinationState.RUNNING,
        DestinationState.DISCARDING,
        DestinationState.GIVING_BACK,
    ),
}

#: The states that post-copy adds to the way.
POSTCOPY_WAYS: Mapping[Side, Sequence[AnyState]] = {
    _S: (
        SourceState.POSTCOPY_ORDERED,
        SourceState.POSTCOPY_CROSSING,
        SourceState.POSTCOPY_COMMITTED,
        SourceState.POSTCOPY_RUNNING,
        SourceState.POSTCOPY_PAUSED,
    ),
    _D: (
        DestinationState.POSTCOPY_LOADED,
        DestinationState.POSTCOPY_STARTING,
        DestinationState.POSTCOPY_RUNNING,
    ),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fault comes."""

    side: Side
    state: AnyState
    continued: bool = False  #: POSTCOPY_CROSSING is two: `migrate-continue` is out, and nothing has arrived yet

    def __str__(self) -> str:
        """Return how people call it, beside its side."""
        return f"{self.state} continued" if self.continued else str(self.state)


#: Every place on either side.
PLACES: Mapping[Side, Sequence[Place]] = {
    side: tuple(
        Place(side, state, continued)
        for state in (*WAYS[side], *POSTCOPY_WAYS[side])
        for continued in ((False, True) if state is SourceState.POSTCOPY_CROSSING else (False,))
    )
    for side in Side
}

#: How states beside that way are reached: what happens where.
DETOURS: Mapping[AnyState, tuple[AnyState, Callable[[World], None]]] = {
    SourceState.ABORTING: (SourceState.PRE_SWITCHOVER, World.cancel),
    SourceState.ORPHANED: (SourceState.SOURCE_COMPLETED, lambda world: world.kill_qemu(_S)),
    SourceState.RETURNING: (DestinationState.ACQUIRED, lambda world: world.kill_qemu(_D)),
    DestinationState.DISCARDING: (SourceState.PRECOPY, World.cancel),
    DestinationState.GIVING_BACK: (DestinationState.ACQUIRED, lambda world: world.kill_qemu(_D)),
    SourceState.POSTCOPY_PAUSED: (SourceState.POSTCOPY_RUNNING, lambda world: world.break_stream(rest_arrives=False)),
}

_ASKS_ONCE = (SourceState.POSTCOPY_ORDERED, SourceState.POSTCOPY_CROSSING)
_BY_POSTCOPY = POSTCOPY_STATES | {SourceState.POSTCOPY_ORDERED}
#: Pages enough that a post-copy lasts, however far the QEMUs have gone ahead.
_PAGES = 24


class Moment(enum.Enum):
    """When a fault comes, after its state was journalled."""

    EARLY = enum.auto()  #: at once
    LATE = enum.auto()  #: when the QEMUs have gone as far as they go
    LAST = enum.auto()  #: when the other side has, too, by what this side's agent said before


def foretell(place: Place, fault: str) -> str:
    """Return what becomes of the guest: "source", "destination" or "lost", after where it is meanwhile.

    Agents are brought back by their supervisor a moment later; the link is healed at the end. Where several
    answers are given, it depends on how far the QEMUs had come, on whether a cut is told to who connects, and on
    whether a dead agent was missed.
    """
    faults = [CELLS[fault], *_ALSO.get(fault, ())]
    deadlines = fault != SHORT_CUT
    # the source asks once before `migrate-continue`, and has a way back: a dead agent may be missed there or not
    aways = (_LONG, 0) if place.state in _ASKS_ONCE and not place.continued else (_LONG,)
    moments = (Moment.EARLY, Moment.LATE) if place.continued else Moment  # the destination's QEMU is kept from reading
    answers = [
        _foretell(place, done, moment=moment, deadlines=deadlines, away=away)
        for done in faults
        for moment in moments
        for away in aways
    ]
    return " or ".join(dict.fromkeys(answers))


def _foretell(place: Place, fault: Callable[[World], None], *, moment: Moment, deadlines: bool, away: int) -> str:
    late = moment is not Moment.EARLY
    world = _continued() if place.continued else _bring_to(place.side, place.state, late=late)
    go_ahead = (_S,) if place.continued else Side
    while late and any(world.advance_qemu(each) for each in go_ahead):
        pass
    if moment is Moment.LAST:
        _others_go_on(world, place.side)
    fault(world)
    if world.network.up:
        world.live(away)  # an agent takes a moment to start
        for each in Side:
            world.restart_agent(each)
    meanwhile = _wait_without_help(world, deadlines=deadlines)
    world.settle()
    end = _where(world)
    return end if meanwhile == end else f"{meanwhile}, then {end}"


def _bring_to(side: Side, state: AnyState, *, late: bool) -> World:
    """Live until a state is entered: with QEMUs that go ahead of their agents, or that wait for them."""
    world = World(postcopy=state in _BY_POSTCOPY, pages=_PAGES, devices=state is SourceState.DETACHING)
    if state is SourceState.DESTINATION_LOADED:
        return _with_source_in_device(world)
    if state in DETOURS:
        before, done = DETOURS[state]
        world = _bring_to(_side_of(before), before, late=late)
        done(world)
    while world.agents[side].state is not state:
        if late:
            world.live(1)
        else:
            _go_on(world)
    world.agents[side].write_down()  # where the lab holds a hand-over, its state is durable
    return world


def _continued() -> World:
    """Bring the source to where `migrate-continue` is out and nothing has arrived."""
    world = _bring_to(_S, SourceState.POSTCOPY_CROSSING, late=False)
    while world.source.qemu is not None and world.source.qemu.status is MigrationStatus.PRE_SWITCHOVER:
        _serve(world)
    return world


def _go_on(world: World) -> None:
    choices = world.choices()
    if choices:
        choices[0][1]()
    elif not any(world.advance_qemu(each) for each in Side):
        world.poll()


def _with_source_in_device(world: World) -> World:
    """Bring the source to where the destination has said so first."""
    world.live_until(lambda: world.source.state is SourceState.SWITCHOVER)
    while world.source.state is not SourceState.DESTINATION_LOADED:
        if not world.stream.sent:
            world.advance_qemu(_S)
        world.advance_qemu(_D)
        _serve(world)
    world.source.write_down()
    return world


def _serve(world: World) -> None:
    for _, choice in world.choices()[:1]:
        choice()
    if not world.choices():
        world.poll()


def _others_go_on(world: World, held: Side) -> None:
    """Let everything happen but what the agent of one side does; requests to it are answered, and that is all."""
    other = world.agents[_D if held is _S else _S]
    _run_dry(world, other)
    if other is world.source:  # its questions repeat at once, the destination's after seconds
        other.poll()
        _run_dry(world, other)


def _run_dry(world: World, agent: SimAgent) -> None:
    for _ in range(_LONG):
        messages = list(world.network.messages)
        for message in messages:
            world.deliver(message)
        moved = any(world.advance_qemu(each) for each in Side)
        if not (messages or moved or agent.take() or agent.take_reply() or agent.carry_out()):
            return
        world.check()


def _side_of(state: AnyState) -> Side:
    return _S if isinstance(state, SourceState) else _D


def _wait_without_help(world: World, *, deadlines: bool) -> str:
    """Live on as long as the fault lasts."""
    for _ in range(3 if deadlines else 0):
        world.live(_LONG)
        for side in Side:
            world.pass_deadline(side)
    world.live(_LONG)
    return _where(world)


def _where(world: World) -> str:
    fate = world.fate()
    if fate is not Fate.ONE:
        return str(fate.value)
    return str(next(agent.side for agent in world.agents.values() if _runs(agent)))


def _runs(agent: SimAgent) -> bool:
    return agent.qemu is not None and agent.qemu.running
