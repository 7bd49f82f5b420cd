"""Every event in every state of both machines, against grids written by hand, and what holds for the whole table."""

from collections import deque
from collections.abc import Iterable

import pytest

from vmferry.core.errors import IllegalTransition
from vmferry.core.handover.effects import AnyEffect, DestinationEffect, SourceEffect
from vmferry.core.handover.events import AnyEvent, DestinationEvent, Happened, SourceEvent
from vmferry.core.handover.machine import Machine, TokenChange, first_state
from vmferry.core.handover.replay import from_json, replay, to_json
from vmferry.core.handover.states import FACTS, POSTCOPY_STATES, AnyState, DestinationState, Owner, Side, SourceState
from vmferry.core.handover.table import DESTINATION_TABLE, OPENING, SOURCE_TABLE

S, E, X = SourceState, SourceEvent, SourceEffect
T, F, Y = DestinationState, DestinationEvent, DestinationEffect
TABLES = {Side.SOURCE: SOURCE_TABLE, Side.DESTINATION: DESTINATION_TABLE}
STATES: dict[Side, type[AnyState]] = {Side.SOURCE: S, Side.DESTINATION: T}
EVENTS: dict[Side, type[AnyEvent]] = {Side.SOURCE: E, Side.DESTINATION: F}

SOURCE_STATES: dict[str, AnyState] = {
    "CH": S.CHECKING, "RG": S.RESERVING, "RD": S.RESERVED, "PC": S.PRECOPY, "PS": S.PRE_SWITCHOVER,
    "SW": S.SWITCHOVER, "SC": S.SOURCE_COMPLETED, "DL": S.DESTINATION_LOADED, "LO": S.LOADED, "OR": S.ORPHANED,
    "CO": S.COMMITTED, "RU": S.RUNNING, "DO": S.DONE, "AB": S.ABORTING, "AD": S.ABORTED, "RT": S.RETURNING,
    "RE": S.RETURNED, "CR": S.CRASHED, "LT": S.LOST,
    "PO": S.POSTCOPY_ORDERED, "PX": S.POSTCOPY_CROSSING, "PM": S.POSTCOPY_COMMITTED, "PR": S.POSTCOPY_RUNNING,
    "PP": S.POSTCOPY_PAUSED, "CD": S.COPYING_DISKS, "DE": S.DETACHING,
}  # fmt: skip
SOURCE_EVENTS: dict[str, AnyEvent] = {
    "cp": E.CHECK_PASSED, "cf": E.CHECK_FAILED, "rs": E.DESTINATION_RESERVED, "rf": E.DESTINATION_REFUSED,
    "pb": E.PRECOPY_BEGAN, "sp": E.SOURCE_PAUSED, "sb": E.SWITCHOVER_BEGAN, "sc": E.SOURCE_COMPLETED,
    "dl": E.DESTINATION_LOADED, "sf": E.STREAM_FAILED, "df": E.DESTINATION_FAILED, "qd": E.SOURCE_QEMU_DIED,
    "ge": E.GUEST_ENDED, "cr": E.CANCEL_REQUESTED, "dp": E.DEADLINE_PASSED, "ar": E.AGENT_RESTARTED,
    "or": E.OWNERSHIP_RELEASED, "dr": E.DESTINATION_RUNNING, "dt": E.DESTINATION_RETURNED, "dk": E.DESTINATION_LOST,
    "fe": E.DESTINATION_FENCED, "re": E.SOURCE_RESUMED, "ti": E.TIDIED, "po": E.POSTCOPY_ORDERED,
    "bk": E.STREAM_BROKE, "rc": E.STREAM_RECOVERED, "pa": E.PAGES_ARRIVED,
    "ad": E.DESTINATION_AWAITS_DISKS, "dm": E.DISKS_MIRRORED, "il": E.IMAGE_LOCKED,
    "vp": E.DEVICES_PLUGGED, "vd": E.DEVICES_DETACHED,
}  # fmt: skip
DESTINATION_STATES: dict[str, AnyState] = {
    "PR": T.PREPARING, "RC": T.RECEIVING, "LO": T.LOADED, "AC": T.ACQUIRED, "ST": T.STARTING, "RU": T.RUNNING,
    "DG": T.DISCARDING, "DD": T.DISCARDED, "GB": T.GIVING_BACK, "RE": T.RETURNED, "LT": T.LOST,
    "XL": T.POSTCOPY_LOADED, "XS": T.POSTCOPY_STARTING, "XR": T.POSTCOPY_RUNNING,
}  # fmt: skip
DESTINATION_EVENTS: dict[str, AnyEvent] = {
    "ql": F.QEMU_LISTENS, "pf": F.PREPARATION_FAILED, "sl": F.STREAM_LOADED, "sf": F.STREAM_FAILED,
    "qd": F.QEMU_DIED, "cr": F.COMMIT_RECEIVED, "dr": F.DISCARD_RECEIVED, "fe": F.SOURCE_FENCED,
    "ir": F.INTENT_RECORDED, "gs": F.GUEST_STARTED, "sr": F.START_REFUSED, "cu": F.CLEANED_UP,
    "ar": F.AGENT_RESTARTED, "pl": F.POSTCOPY_LOADED, "pc": F.PAGES_COMPLETED, "sg": F.SOURCE_GONE,
}  # fmt: skip

#: state rows, event columns: where it leads, `.` = ignored, `!` = our bug
SOURCE_GRID = """
   cp cf rs ad dm vp vd rf pb po sp sb sc dl sf df qd ge cr dp ar il or dr bk rc pa dt dk fe re ti
CH RG AD  !  !  !  !  !  !  !  !  !  !  !  !  !  ! CR AD AD AD AD  !  !  !  !  !  !  !  !  .  !  !
RG  .  . RD CD  !  !  ! AB  !  !  !  !  !  ! AB AB CR AB AB AB AB  !  !  !  !  !  !  !  !  .  !  !
CD  .  .  .  . RD  !  !  .  !  !  !  !  !  ! AB AB CR AB AB  . AB  !  !  !  !  !  !  !  !  .  !  !
DE  .  .  .  .  .  . RD  .  !  !  !  !  !  ! AB AB CR AB AB AB AB  !  !  !  !  !  !  !  !  .  !  !
RD  .  .  .  .  . DE  .  . PC  !  !  !  !  ! AB AB CR AB AB AB AB  !  !  !  !  !  !  !  !  .  !  !
PC  .  .  .  .  .  .  .  .  . PO PS  ! AB  . AB AB CR AB AB  . PC  !  !  !  !  !  !  !  !  .  !  !
PS  .  .  .  .  .  .  .  .  .  .  . SW SC DL AB AB OR AB AB AB AB  !  !  !  !  !  !  !  !  .  !  !
SW  .  .  .  .  .  .  .  .  .  .  .  . SC DL AB AB OR AB AB AB AB  !  !  !  !  !  !  !  !  .  !  !
SC  .  .  .  .  .  .  .  .  .  .  .  .  . LO AB AB OR AB AB AB SC  !  !  !  !  !  !  !  !  .  !  !
DL  .  .  .  .  .  .  .  .  .  .  .  . LO  . AB AB OR AB AB AB AB  !  !  !  !  !  !  !  !  .  !  !
LO  .  .  .  .  .  .  .  .  .  .  .  .  .  .  . AB OR  . AB AB SC AB CO  !  !  !  !  !  !  .  !  !
OR  .  .  .  .  .  .  .  .  .  .  .  .  . OR CR CR  . CR  .  . OR  . CO  !  !  !  !  !  ! CR  !  !
PO  .  .  .  .  .  .  .  .  .  . PX  !  .  . AB AB CR AB AB  . PO  !  !  !  !  !  !  !  !  .  !  !
PX  .  .  .  .  .  .  .  .  .  .  .  . SC  . AB CR CR  .  .  . PX  . PM  !  .  !  !  !  ! CR  !  !
PM  .  .  .  .  .  .  .  .  .  .  .  . CO  .  .  . PM  .  .  . PM  .  . PR  .  . CO RT LT CR  !  !
PR  .  .  .  .  .  .  .  .  .  .  .  . RU  .  .  . PP  .  .  . PR  .  .  . PP  . RU  . LT CR  !  !
PP  .  .  .  .  .  .  .  .  .  .  .  . RU  .  .  . PP  .  .  . PP  .  .  .  . PR RU  . LT CR  !  !
CO  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  . CO  .  . RU  .  .  . RT LT CR  !  !
RU  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  . RU  .  .  .  .  .  .  .  .  .  ! DO
DO  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  . DO  .  .  .  .  .  .  .  .  .  .  .
AB  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  . CR  .  .  . AB  .  .  !  !  !  !  !  !  . AD  !
AD  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  . AD  .  .  .  .  .  .  .  .  .  .  .
RT  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  . CR  .  .  . RT  .  .  !  .  .  .  .  .  . RE  !
RE  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  . RE  .  .  .  .  .  .  .  .  .  .  .
CR  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  . CR  .  .  .  .  .  .  .  .  .  .  .
LT  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  . LT  .  .  .  .  .  .  .  .  .  .  .
"""
DESTINATION_GRID = """
   ql pf sl sf pl pc sg qd cr dr fe ir gs sr cu ar
PR RC DG  ! DG  !  !  ! DG GB DG DG  !  !  !  ! DG
RC  .  . LO DG XL  .  ! DG  . DG DG  !  !  !  ! RC
LO  .  !  .  !  .  .  ! DG AC DG DG  !  !  !  ! LO
XL  .  !  .  !  . LO  ! DG XS DG DG  !  !  !  ! XL
XS  .  !  .  !  . ST LT LT  .  .  .  ! XR  !  ! XS
XR  .  !  .  !  . RU LT LT  .  .  .  !  .  !  ! XR
AC  .  !  .  !  .  .  ! GB  .  .  . ST  ! GB  ! AC
ST  .  !  .  !  .  .  . LT  .  .  .  . RU GB  ! ST
RU  .  .  .  .  .  .  .  .  .  .  .  .  .  .  . RU
DG  .  .  .  .  .  .  !  . GB  .  .  !  !  ! DD DG
DD  .  .  .  .  .  .  .  . RE  .  .  .  .  .  .  .
GB  .  .  .  .  .  .  .  .  .  .  .  .  !  . RE GB
RE  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .
LT  .  .  .  .  .  .  .  .  .  .  .  .  .  .  . LT
"""

#: what is ordered on the way into a state, whatever the event
ORDERS: dict[AnyState, tuple[AnyEffect, ...]] = {
    S.RESERVING: (X.RESERVE,), S.COPYING_DISKS: (X.COPY_DISKS,), S.RESERVED: (X.SEND,),
    S.DETACHING: (X.DETACH_DEVICES,), S.PRECOPY: (X.STEER,),
    S.PRE_SWITCHOVER: (X.AWAIT_DESTINATION, X.CONTINUE), S.SWITCHOVER: (), S.SOURCE_COMPLETED: (),
    S.DESTINATION_LOADED: (), S.LOADED: (X.RELEASE,), S.ORPHANED: (X.AWAIT_DESTINATION,),
    S.COMMITTED: (X.TELL_DESTINATION,), S.RUNNING: (X.END_SOURCE,), S.DONE: (X.REPORT,), S.ABORTING: (X.RESTORE,),
    S.ABORTED: (X.GIVE_DEVICES, X.DISCARD, X.REPORT), S.RETURNING: (X.TAKE_BACK,),
    S.RETURNED: (X.GIVE_DEVICES, X.REPORT),
    S.POSTCOPY_ORDERED: (X.BEGIN_POSTCOPY, X.STEER), S.POSTCOPY_CROSSING: (X.CROSS,),
    S.POSTCOPY_COMMITTED: (X.TELL_DESTINATION, X.FOLLOW_PAGES), S.POSTCOPY_RUNNING: (X.FOLLOW_PAGES,),
    S.POSTCOPY_PAUSED: (X.FOLLOW_PAGES,), T.POSTCOPY_LOADED: (Y.WATCH,),
    T.POSTCOPY_STARTING: (Y.START, Y.AWAIT_PAGES), T.POSTCOPY_RUNNING: (Y.AWAIT_PAGES,),
    S.CRASHED: (X.DISCARD, X.NOTE_CRASH, X.REPORT), S.LOST: (X.END_SOURCE, X.REPORT),
    T.RECEIVING: (Y.WATCH,), T.LOADED: (Y.WATCH,), T.ACQUIRED: (Y.RECORD_INTENT,), T.STARTING: (Y.START,),
    T.RUNNING: (Y.ANNOUNCE, Y.GIVE_DEVICES), T.DISCARDING: (Y.CLEAN_UP,), T.DISCARDED: (), T.GIVING_BACK: (Y.CLEAN_UP,),
    T.RETURNED: (), T.LOST: (Y.NOTE_CRASH,),
}  # fmt: skip
#: except for these
OTHER_ORDERS: dict[tuple[AnyState, AnyEvent], tuple[AnyEffect, ...]] = {
    (S.CHECKING, E.CHECK_FAILED): (X.GIVE_DEVICES, X.REPORT),
    (S.CHECKING, E.GUEST_ENDED): (X.GIVE_DEVICES, X.REPORT),
    (S.CHECKING, E.CANCEL_REQUESTED): (X.GIVE_DEVICES, X.REPORT),
    (S.CHECKING, E.AGENT_RESTARTED): (X.GIVE_DEVICES, X.REPORT),
    (S.CHECKING, E.DEADLINE_PASSED): (X.GIVE_DEVICES, X.REPORT),
    (S.SOURCE_COMPLETED, E.AGENT_RESTARTED): (X.AWAIT_DESTINATION,),
    (S.LOADED, E.AGENT_RESTARTED): (X.AWAIT_DESTINATION,),
    (S.POSTCOPY_CROSSING, E.SOURCE_COMPLETED): (X.AWAIT_DESTINATION,),
    (S.POSTCOPY_COMMITTED, E.DESTINATION_FENCED): (X.NOTE_CRASH, X.REPORT),
    (S.POSTCOPY_RUNNING, E.DESTINATION_FENCED): (X.NOTE_CRASH, X.REPORT),
    (S.POSTCOPY_PAUSED, E.DESTINATION_FENCED): (X.NOTE_CRASH, X.REPORT),
    (S.ORPHANED, E.DESTINATION_LOADED): (X.RELEASE,),
    (S.DESTINATION_LOADED, E.SOURCE_QEMU_DIED): (X.RELEASE,),
    (S.COMMITTED, E.DESTINATION_FENCED): (X.NOTE_CRASH, X.REPORT),
    (S.RETURNING, E.SOURCE_QEMU_DIED): (X.NOTE_CRASH, X.REPORT),
}
#: the only transitions with which ownership, or the intent to use it, moves
TOKENS: dict[tuple[AnyState, AnyEvent], TokenChange] = {
    (S.LOADED, E.OWNERSHIP_RELEASED): TokenChange.RELEASE,
    (S.ORPHANED, E.OWNERSHIP_RELEASED): TokenChange.RELEASE,
    (S.COMMITTED, E.DESTINATION_RETURNED): TokenChange.TAKE_BACK,
    (S.COMMITTED, E.DESTINATION_FENCED): TokenChange.CLAIM,
    (S.POSTCOPY_CROSSING, E.OWNERSHIP_RELEASED): TokenChange.RELEASE,
    (S.POSTCOPY_COMMITTED, E.DESTINATION_RETURNED): TokenChange.TAKE_BACK,
    (S.POSTCOPY_COMMITTED, E.DESTINATION_FENCED): TokenChange.CLAIM,
    (S.POSTCOPY_RUNNING, E.DESTINATION_FENCED): TokenChange.CLAIM,
    (S.POSTCOPY_PAUSED, E.DESTINATION_FENCED): TokenChange.CLAIM,
    (T.POSTCOPY_LOADED, F.COMMIT_RECEIVED): TokenChange.ACQUIRE_TO_START,
    (T.LOADED, F.COMMIT_RECEIVED): TokenChange.ACQUIRE,
    (T.PREPARING, F.COMMIT_RECEIVED): TokenChange.ACQUIRE,
    (T.DISCARDING, F.COMMIT_RECEIVED): TokenChange.ACQUIRE,
    (T.ACQUIRED, F.INTENT_RECORDED): TokenChange.INTEND,
    (T.GIVING_BACK, F.CLEANED_UP): TokenChange.RETURN,
    (T.DISCARDED, F.COMMIT_RECEIVED): TokenChange.RETURN,
}


def read_grid(
    text: str, states: dict[str, AnyState], events: dict[str, AnyEvent]
) -> dict[tuple[AnyState, AnyEvent], AnyState | str]:
    """Return (state, event) -> where it leads, or one of the two marks."""
    head, *rows = [line.split() for line in text.strip().splitlines()]
    return {
        (states[row[0]], events[column]): states.get(cell, cell)
        for row in rows
        for column, cell in zip(head, row[1:], strict=True)
    }


GRIDS = {
    Side.SOURCE: read_grid(SOURCE_GRID, SOURCE_STATES, SOURCE_EVENTS),
    Side.DESTINATION: read_grid(DESTINATION_GRID, DESTINATION_STATES, DESTINATION_EVENTS),
}
PAIRS = [(side, state, event) for side in Side for state in STATES[side] for event in EVENTS[side]]


def name(value: object) -> str:
    """Return how pytest shall call a case."""
    return str(value)


@pytest.mark.parametrize(("side", "state", "event"), PAIRS, ids=name)
def test_every_event_in_every_state(side: Side, state: AnyState, event: AnyEvent) -> None:
    """Each pair moves where the grid says with the orders it says, is ignored, or is illegal; the last two move nothing."""  # noqa: E501 - one sentence
    expected = GRIDS[side][state, event]
    machine = Machine(side, state)
    if expected == "!":
        with pytest.raises(IllegalTransition, match=f"{event} cannot happen to the {side} machine in state {state}"):
            machine.handle(Happened(event))
        assert machine.state is state
        return
    transition = machine.handle(Happened(event))
    assert transition.before is state
    assert transition.after is machine.state
    assert transition.ignored is (expected == ".")
    if expected == ".":
        assert (machine.state, transition.effects, transition.token) == (state, (), None)
        return
    assert isinstance(expected, SourceState | DestinationState)
    assert machine.state is expected
    assert transition.effects == OTHER_ORDERS.get((state, event), ORDERS[expected])
    assert transition.token is TOKENS.get((state, event))


def test_the_grids_name_every_pair() -> None:
    """The grids above leave nothing out."""
    assert {(side, *key) for side in Side for key in GRIDS[side]} == set(PAIRS)


def test_every_state_has_facts() -> None:
    """Owner, needs, step and deadline are said of every state, and of nothing else."""
    assert set(FACTS) == {*S, *T}


def test_every_effect_is_ordered_somewhere() -> None:
    """No effect exists that no transition and no opening orders."""
    ordered = {effect for table in TABLES.values() for step in table.values() for effect in step.effects}
    ordered |= {effect for step in OPENING.values() for effect in step.effects}
    assert ordered == {*X, *Y}


@pytest.mark.parametrize("side", Side, ids=name)
def test_every_event_moves_something_somewhere(side: Side) -> None:
    """No event exists that is ignored everywhere."""
    assert {event for _, event in TABLES[side]} == set(EVENTS[side])


@pytest.mark.parametrize("side", Side, ids=name)
def test_every_state_is_reached_and_reaches_an_end(side: Side) -> None:
    """From the first state every state can be reached, and from every state a final one."""
    assert reachable(side, first_state(side)) == set(STATES[side])
    for state in STATES[side]:
        assert any(FACTS[end].final for end in reachable(side, state)), state


@pytest.mark.parametrize("side", Side, ids=name)
def test_final_states_have_no_exits(side: Side) -> None:
    """A final state is left by nothing but a commit that reaches a discarded arrival."""
    exits = {
        (state, event) for (state, event), step in TABLES[side].items() if FACTS[state].final and step.next is not state
    }
    assert exits == ({(T.DISCARDED, F.COMMIT_RECEIVED)} if side is Side.DESTINATION else set())


def test_owner_changes_only_with_the_token() -> None:
    """Whenever the owner changes, the token changes in the same transition."""
    for side, state, event in PAIRS:
        machine = Machine(side, state)
        if (state, event) in TABLES[side]:
            transition = machine.handle(Happened(event))
            moved = FACTS[transition.before].owner is not FACTS[transition.after].owner
            assert not moved or transition.token is not None, (state, event)


def test_no_way_to_the_destination_without_the_release() -> None:
    """Before OWNERSHIP_RELEASED, and at the destination before COMMIT_RECEIVED, every state is the source's."""
    for side, commit in ((Side.SOURCE, E.OWNERSHIP_RELEASED), (Side.DESTINATION, F.COMMIT_RECEIVED)):
        before = reachable(side, first_state(side), without={commit})
        assert {FACTS[state].owner for state in before} == {Owner.SOURCE}


def test_the_destination_starts_only_after_token_and_intent() -> None:
    """START is ordered where the intent was written: after INTENT_RECORDED, or with the token in post-copy."""
    starting = {key for key, step in DESTINATION_TABLE.items() if Y.START in step.effects}
    assert starting == {
        (T.ACQUIRED, F.INTENT_RECORDED),
        (T.STARTING, F.AGENT_RESTARTED),
        (T.POSTCOPY_LOADED, F.COMMIT_RECEIVED),
        (T.POSTCOPY_STARTING, F.AGENT_RESTARTED),
        (T.POSTCOPY_STARTING, F.PAGES_COMPLETED),
    }
    entries = {key for key, step in DESTINATION_TABLE.items() if step.next is T.ACQUIRED and key[0] is not T.ACQUIRED}
    assert entries == {(T.LOADED, F.COMMIT_RECEIVED)}


def test_after_the_commit_the_source_starts_only_what_came_back() -> None:
    """From COMMITTED on, RESTORE is never ordered, and TAKE_BACK only after DESTINATION_RETURNED."""
    after = reachable(Side.SOURCE, S.COMMITTED) | reachable(Side.SOURCE, S.POSTCOPY_COMMITTED)
    orders = {(key, effect) for key, step in SOURCE_TABLE.items() if key[0] in after for effect in step.effects}
    assert X.RESTORE not in {effect for _, effect in orders}
    assert {key for key, effect in orders if effect is X.TAKE_BACK} == {
        (S.COMMITTED, E.DESTINATION_RETURNED),
        (S.POSTCOPY_COMMITTED, E.DESTINATION_RETURNED),
        (S.RETURNING, E.AGENT_RESTARTED),
    }


def test_waits_that_stop_the_guest_have_deadlines() -> None:
    """Where the guest stands still before the commit, a deadline ends the wait; undoing and orphans excepted."""
    stopped = {S.PRE_SWITCHOVER, S.SWITCHOVER, S.SOURCE_COMPLETED, S.DESTINATION_LOADED, S.LOADED}
    for state in stopped:
        deadline_ms = FACTS[state].deadline_ms
        assert deadline_ms is not None, state
        assert deadline_ms <= 30_000, state
    for state in S:
        if FACTS[state].deadline_ms is not None:
            assert SOURCE_TABLE[state, E.DEADLINE_PASSED].next in (S.ABORTING, S.ABORTED), state


def test_no_way_back_once_both_are_needed() -> None:
    """From CROSSING on nothing but the source's own `failed` or `completed` leads back, no cancel, and no deadline."""
    assert {state for state in S if state in POSTCOPY_STATES} == {
        S.POSTCOPY_CROSSING, S.POSTCOPY_COMMITTED, S.POSTCOPY_RUNNING, S.POSTCOPY_PAUSED
    }  # fmt: skip
    for state in POSTCOPY_STATES:
        assert FACTS[state].deadline_ms is None, state
    back = {key for key, step in SOURCE_TABLE.items() if key[0] in POSTCOPY_STATES and X.RESTORE in step.effects}
    assert back == {(S.POSTCOPY_CROSSING, E.STREAM_FAILED)}
    assert not {key for key in SOURCE_TABLE if key[0] in POSTCOPY_STATES and key[1] is E.CANCEL_REQUESTED}


def test_no_deadline_where_time_could_make_two_owners() -> None:
    """COMMITTED, ORPHANED, and the destination once it holds everything, wait as long as it takes."""
    for state in (S.COMMITTED, S.ORPHANED, S.RUNNING, T.LOADED, T.ACQUIRED, T.STARTING, T.GIVING_BACK):
        assert FACTS[state].deadline_ms is None, state


@pytest.mark.parametrize(("side", "state", "event"), PAIRS, ids=name)
def test_events_survive_the_journal(side: Side, state: AnyState, event: AnyEvent) -> None:
    """An event read back from its journal row is the same event."""
    happened = Happened(event, f"seen in {state}")
    assert from_json(side, to_json(happened)) == happened


def test_replay_of_the_straight_way() -> None:
    """Replaying a journal gives the state that living through it gave."""
    way = [E.CHECK_PASSED, E.DESTINATION_RESERVED, E.PRECOPY_BEGAN, E.SOURCE_PAUSED, E.SWITCHOVER_BEGAN]
    way += [E.SOURCE_COMPLETED, E.DESTINATION_LOADED, E.OWNERSHIP_RELEASED, E.DESTINATION_RUNNING, E.TIDIED]
    live = Machine(Side.SOURCE)
    for index, event in enumerate(way, 1):
        live.handle(Happened(event))
        assert replay(Side.SOURCE, [to_json(Happened(kind)) for kind in way[:index]]).state is live.state
    assert live.state is S.DONE


def test_a_row_of_the_other_side_is_refused() -> None:
    """A journal row that this side cannot have written is an error, not another event."""
    with pytest.raises(ValueError, match="qemu-listens"):
        from_json(Side.SOURCE, to_json(Happened(F.QEMU_LISTENS)))


def reachable(side: Side, start: AnyState, without: Iterable[AnyEvent] = ()) -> set[AnyState]:
    """Return the states that can be reached, themselves included, if some events never happen."""
    barred = set(without)
    found, todo = {start}, deque([start])
    while todo:
        here = todo.popleft()
        for (state, event), step in TABLES[side].items():
            if state is here and event not in barred and step.next not in found:
                found.add(step.next)
                todo.append(step.next)
    return found
