"""What each fault in each state of a hand-over must end in: one table for fakes, for real QEMUs and for real processes.

A cell is played like this: the side is held in the state (it is journalled, its orders are not begun yet), the other
side comes to rest, the fault strikes, the hold ends. The cut is healed when nothing moves any more. Then the guest runs
exactly once at the owner (*one*), or nowhere because the only QEMU that held it died (*lost*); in some cells nobody
runs it while the fault lasts (*held*), and it is never taken for lost meanwhile.

Source: docs/handover.md, invariant 3; core/handover/table.py.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vmferry.core.handover.states import AnyState, DestinationState, Side, SourceState


class Fault(enum.StrEnum):
    """What strikes."""

    SOURCE_AGENT = "source-agent-restarts"  #: killed and started again
    DESTINATION_AGENT = "destination-agent-restarts"
    BOTH_AGENTS = "both-agents-restart"  #: both are away at the same time
    SOURCE_QEMU = "source-qemu-dies"  #: kill -9
    DESTINATION_QEMU = "destination-qemu-dies"
    CUT = "network-cut-and-healed"  #: agents and streams; longer than every deadline


class Blow(enum.StrEnum):
    """What brings a hand-over on to a way that it does not take by itself."""

    CANCEL = "cancel"
    KILL_SOURCE_QEMU = "kill-source-qemu"
    KILL_DESTINATION_QEMU = "kill-destination-qemu"


class Fate(enum.StrEnum):
    """What becomes of the guest."""

    ONE = "one"  #: it runs, exactly once
    LOST = "lost"  #: it runs nowhere: a crash, noted at its owner


@dataclass(frozen=True, slots=True)
class Expected:
    """The end of one cell; `why` is for the reader of a failed test and of the documentation."""

    fate: Fate
    owner: Side  #: where the token is in the end
    why: str
    held: bool = False  #: while the fault lasts the guest runs nowhere


_S, _T, _F = SourceState, DestinationState, Fault

#: How to get into a state that a smooth hand-over does not enter: hold it there, strike, let it go on.
ROUTES: Mapping[AnyState, tuple[AnyState, Blow]] = {
    _S.ORPHANED: (_S.SWITCHOVER, Blow.KILL_SOURCE_QEMU),
    _S.ABORTING: (_S.PRECOPY, Blow.CANCEL),
    _S.ABORTED: (_S.PRECOPY, Blow.CANCEL),
    _S.RETURNING: (_S.LOADED, Blow.KILL_DESTINATION_QEMU),
    _S.RETURNED: (_S.LOADED, Blow.KILL_DESTINATION_QEMU),
    _S.CRASHED: (_S.PRECOPY, Blow.KILL_SOURCE_QEMU),
    _S.LOST: (_T.STARTING, Blow.KILL_DESTINATION_QEMU),
    _T.DISCARDING: (_S.PRECOPY, Blow.CANCEL),
    _T.DISCARDED: (_S.PRECOPY, Blow.CANCEL),
    _T.GIVING_BACK: (_T.ACQUIRED, Blow.KILL_DESTINATION_QEMU),
    _T.RETURNED: (_T.ACQUIRED, Blow.KILL_DESTINATION_QEMU),
    _T.LOST: (_T.STARTING, Blow.KILL_DESTINATION_QEMU),
}

_MOVES = Expected(Fate.ONE, Side.DESTINATION, "it goes on")
_STAYS = Expected(Fate.ONE, Side.SOURCE, "undone before the commit")
_UNTOUCHED = Expected(Fate.ONE, Side.SOURCE, "nobody had touched the guest")
_WAITED = Expected(
    Fate.ONE, Side.DESTINATION, "its word had come: committed, and told until the destination answers", held=True
)
_BACK = Expected(Fate.ONE, Side.SOURCE, "the destination proves that it never ran: the token goes back")
_BACK_LATER = Expected(Fate.ONE, Side.SOURCE, "the token goes back as soon as the destination can say so", held=True)
_CRASH = Expected(Fate.LOST, Side.SOURCE, "only the source had the guest")
_SAVED = Expected(Fate.ONE, Side.DESTINATION, "the source died when it stood still; the destination has everything")
_LOST_THERE = Expected(Fate.LOST, Side.DESTINATION, "it may have run there: the source's copy is never revived")

_RESTARTS = (_F.SOURCE_AGENT, _F.DESTINATION_AGENT, _F.BOTH_AGENTS)
_NO_QEMU_DIES = (*_RESTARTS, _F.CUT)

Cells = Mapping[tuple[AnyState, Fault], Expected]


def _row(state: AnyState, *cells: tuple[Iterable[Fault] | Fault, Expected]) -> dict[tuple[AnyState, Fault], Expected]:
    row: dict[tuple[AnyState, Fault], Expected] = {}
    for faults, expected in cells:
        for fault in (faults,) if isinstance(faults, Fault) else faults:
            row[state, fault] = expected
    return row


#: (state, fault) -> how it ends. A missing cell cannot be: that QEMU does not exist then, or is dead already.
OUTCOMES: Cells = {
    # -- the source is held ---------------------------------------------------------------------------------------
    **_row(
        _S.CHECKING,
        ((_F.SOURCE_AGENT, _F.BOTH_AGENTS), _UNTOUCHED),
        (_F.DESTINATION_AGENT, _MOVES),
        (_F.SOURCE_QEMU, _CRASH),
        (_F.CUT, _UNTOUCHED),
    ),
    **_row(
        _S.RESERVING,
        ((_F.SOURCE_AGENT, _F.BOTH_AGENTS), _STAYS),
        (_F.DESTINATION_AGENT, _MOVES),
        (_F.SOURCE_QEMU, _CRASH),
        (_F.CUT, Expected(Fate.ONE, Side.SOURCE, "nobody answers: refused")),
    ),
    **_row(
        _S.COPYING_DISKS,
        ((_F.SOURCE_AGENT, _F.BOTH_AGENTS), Expected(Fate.ONE, Side.SOURCE, "nobody watched the mirrors: dropped")),
        (_F.DESTINATION_AGENT, _MOVES),
        (_F.SOURCE_QEMU, _CRASH),
        (_F.DESTINATION_QEMU, _STAYS),
        (_F.CUT, Expected(Fate.ONE, Side.SOURCE, "the mirrors fail")),
    ),
    **_row(
        _S.DETACHING,
        ((_F.SOURCE_AGENT, _F.BOTH_AGENTS), Expected(Fate.ONE, Side.SOURCE, "given up, and its devices given again")),
        (_F.DESTINATION_AGENT, _MOVES),
        (_F.SOURCE_QEMU, _CRASH),
        (_F.DESTINATION_QEMU, _STAYS),
        (_F.CUT, Expected(Fate.ONE, Side.SOURCE, "QEMU cannot connect")),
    ),
    **_row(
        _S.RESERVED,
        ((_F.SOURCE_AGENT, _F.BOTH_AGENTS), _STAYS),
        (_F.DESTINATION_AGENT, _MOVES),
        (_F.SOURCE_QEMU, _CRASH),
        (_F.DESTINATION_QEMU, _STAYS),
        (_F.CUT, Expected(Fate.ONE, Side.SOURCE, "QEMU cannot connect")),
    ),
    **_row(
        _S.PRECOPY,
        (_RESTARTS, Expected(Fate.ONE, Side.DESTINATION, "QEMU went on; the new agent asks and steers on")),
        (_F.SOURCE_QEMU, _CRASH),
        (_F.DESTINATION_QEMU, _STAYS),
        (_F.CUT, Expected(Fate.ONE, Side.SOURCE, "QEMU had paused it meanwhile: no longer than the deadline")),
    ),
    **_row(
        _S.PRE_SWITCHOVER,
        ((_F.SOURCE_AGENT, _F.BOTH_AGENTS), _STAYS),
        (_F.DESTINATION_AGENT, _MOVES),
        (_F.SOURCE_QEMU, _CRASH),
        (_F.DESTINATION_QEMU, _STAYS),
        (_F.CUT, Expected(Fate.ONE, Side.SOURCE, "it stands still no longer than the deadline")),
    ),
    **_row(
        _S.SWITCHOVER,
        ((_F.SOURCE_AGENT, _F.BOTH_AGENTS), Expected(Fate.ONE, Side.SOURCE, "nobody watched: it may have run on")),
        (_F.DESTINATION_AGENT, _MOVES),
        (_F.SOURCE_QEMU, _SAVED),
        (_F.DESTINATION_QEMU, _STAYS),
        (_F.CUT, _WAITED),
    ),
    **_row(
        _S.SOURCE_COMPLETED,
        (_RESTARTS, Expected(Fate.ONE, Side.DESTINATION, "a completed source stands still for good: asked again")),
        (_F.SOURCE_QEMU, _SAVED),
        (_F.DESTINATION_QEMU, _STAYS),
        (_F.CUT, _WAITED),
    ),
    **_row(
        _S.DESTINATION_LOADED,
        ((_F.SOURCE_AGENT, _F.BOTH_AGENTS), Expected(Fate.ONE, Side.SOURCE, "nobody watched: it may have run on")),
        (_F.DESTINATION_AGENT, _MOVES),
        (_F.SOURCE_QEMU, _SAVED),
        (_F.DESTINATION_QEMU, _BACK),
        (_F.CUT, Expected(Fate.ONE, Side.SOURCE, "the source did not complete within the deadline", held=True)),
    ),
    **_row(
        _S.LOADED,
        (_RESTARTS, Expected(Fate.ONE, Side.DESTINATION, "nothing was released: the destination is asked again")),
        (_F.SOURCE_QEMU, _SAVED),
        (_F.DESTINATION_QEMU, _BACK),
        (_F.CUT, _WAITED),
    ),
    **_row(
        _S.ORPHANED,
        (_RESTARTS, _SAVED),
        (_F.DESTINATION_QEMU, Expected(Fate.LOST, Side.SOURCE, "both QEMUs that held it died before the commit")),
        (_F.CUT, Expected(Fate.ONE, Side.DESTINATION, "its word decides, whenever it comes", held=True)),
    ),
    **_row(
        _S.COMMITTED,
        (_RESTARTS, _MOVES),
        (_F.SOURCE_QEMU, Expected(Fate.ONE, Side.DESTINATION, "the source's QEMU is a cold copy by now")),
        (_F.DESTINATION_QEMU, _BACK),
        (_F.CUT, _WAITED),
    ),
    **{
        cell: expected
        for state in (_S.RUNNING, _S.DONE)
        for cell, expected in {
            **_row(state, ((*_NO_QEMU_DIES,), _MOVES)),
            **_row(state, (_F.DESTINATION_QEMU, Expected(Fate.LOST, Side.DESTINATION, "a guest that ran crashed"))),
        }.items()
    },
    (_S.RUNNING, _F.SOURCE_QEMU): Expected(Fate.ONE, Side.DESTINATION, "it was about to be ended"),
    **{
        cell: expected
        for state in (_S.ABORTING, _S.ABORTED, _T.DISCARDING, _T.DISCARDED)
        for cell, expected in _row(state, (_NO_QEMU_DIES, _STAYS), (_F.SOURCE_QEMU, _CRASH)).items()
    },
    **{
        cell: expected
        for state in (_S.RETURNING, _S.RETURNED)
        for cell, expected in _row(state, (_NO_QEMU_DIES, _BACK), (_F.SOURCE_QEMU, _CRASH)).items()
    },
    **_row(_S.CRASHED, (_NO_QEMU_DIES, _CRASH)),
    **_row(_S.LOST, (_NO_QEMU_DIES, _LOST_THERE)),
    # -- the destination is held ----------------------------------------------------------------------------------
    **_row(
        _T.PREPARING,
        ((_F.SOURCE_AGENT, _F.DESTINATION_AGENT, _F.BOTH_AGENTS), _STAYS),
        (_F.SOURCE_QEMU, _CRASH),
        (_F.CUT, Expected(Fate.ONE, Side.SOURCE, "nobody answers: refused")),
    ),
    **_row(
        _T.RECEIVING,
        (_RESTARTS, Expected(Fate.ONE, Side.DESTINATION, "the source has completed and asks; QEMU is asked again")),
        (_F.SOURCE_QEMU, _SAVED),
        (_F.DESTINATION_QEMU, _STAYS),
        (_F.CUT, Expected(Fate.ONE, Side.SOURCE, "no word of the destination within the deadline")),
    ),
    **_row(
        _T.LOADED,
        (_RESTARTS, _MOVES),
        (_F.SOURCE_QEMU, _SAVED),
        (_F.DESTINATION_QEMU, _BACK),
        (_F.CUT, Expected(Fate.ONE, Side.DESTINATION, "the commit had reached it")),
    ),
    **_row(
        _T.ACQUIRED,
        (_NO_QEMU_DIES, _MOVES),
        (_F.SOURCE_QEMU, _SAVED),
        (_F.DESTINATION_QEMU, _BACK),
    ),
    **_row(
        _T.STARTING,
        (_NO_QEMU_DIES, _MOVES),
        (_F.SOURCE_QEMU, _SAVED),
        (_F.DESTINATION_QEMU, _LOST_THERE),
    ),
    **_row(
        _T.RUNNING,
        (_NO_QEMU_DIES, _MOVES),
        (_F.DESTINATION_QEMU, Expected(Fate.LOST, Side.DESTINATION, "a guest that ran crashed")),
    ),
    **_row(
        _T.GIVING_BACK,
        (_RESTARTS, _BACK),
        (_F.SOURCE_QEMU, _CRASH),
        (_F.CUT, _BACK_LATER),
    ),
    **_row(_T.RETURNED, (_NO_QEMU_DIES, _BACK), (_F.SOURCE_QEMU, _CRASH)),
    **_row(_T.LOST, (_NO_QEMU_DIES, _LOST_THERE)),
}
