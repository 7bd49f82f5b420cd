"""The table: (state, event) -> step. Nothing else decides anything about a hand-over.

Theory of operation
===================
Each side has a machine of its own, because each side must know what to do when the other is gone. The source's is the
conductor: it asks, sends, and decides the commit. The destination's receives, and starts the guest when, and only when,
the token reaches it.

There is one commit point: `OWNERSHIP_RELEASED` in the source's journal. Before it the guest is the source's, whatever
happens elsewhere: every failure leads to ABORTING, which ends with the guest running at the source, or, if the source's
QEMU died, in LOST. After it the source's QEMU is a cold copy that may be revived only when the destination
*proves* that it never started (RETURNING); else it is ended.

Why both must say so (LOADED): the destination's `completed` + `paused` alone is not enough, since a source still in
`device` restarts its vCPUs by itself when the stream is cut. The source's `completed` alone is not enough, since
without a return path it only means "sent". When the source's QEMU is *dead* the first half of that danger is gone, so
the destination's word then suffices (ORPHANED).

Ownership changes with the event that is journalled, in one write: the release with OWNERSHIP_RELEASED, the
acquisition with COMMIT_RECEIVED in LOADED, the intent with INTENT_RECORDED, the return with the event that leads to the
destination's RETURNED, the taking back with DESTINATION_RETURNED (machine.py, `TOKEN_CHANGES`).

The intent: between ACQUIRED and STARTING the destination journals that it is about to send `cont`. A QEMU found
dead before the intent never ran, and the token goes back. Found dead after it, it may have run: that is a guest crash,
and the source's copy, by then older than what the world has seen, is never revived.

Nothing is resolved by a time-out that could make two owners: deadlines exist only in states whose owner is certain and
whose end is decided here. COMMITTED and ORPHANED, and the destination's LOADED and ACQUIRED, wait as long as it takes.

An event that is late, doubled or stray is listed in `IGNORED` for its state: it moves nothing. Anything not listed in
either is our bug: `IllegalTransition`.

Source: design/handover.md; each QEMU fact was tried on 10.0.2 and most on 7.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vmferry.core.handover.effects import AnyEffect, DestinationEffect, SourceEffect
from vmferry.core.handover.events import AnyEvent, DestinationEvent, SourceEvent
from vmferry.core.handover.states import AnyState, DestinationState, SourceState


@dataclass(frozen=True, slots=True)
class Step:
    """Where an event leads, and what is to be done there, in this order."""

    next: AnyState
    effects: tuple[AnyEffect, ...] = ()


Key = tuple[AnyState, AnyEvent]

_S, _E, _X = SourceState, SourceEvent, SourceEffect
_ABORT = Step(_S.ABORTING, (_X.RESTORE,))
_UNTOUCHED = Step(_S.ABORTED, (_X.REPORT,))
_CRASHED = Step(_S.CRASHED, (_X.DISCARD, _X.NOTE_CRASH, _X.REPORT))
#: The source's QEMU may have sent everything before it died: only the destination knows.
_ORPHANED = Step(_S.ORPHANED, (_X.AWAIT_DESTINATION,))
_LOADED = Step(_S.LOADED, (_X.RELEASE,))

#: What ends a hand-over before the commit while the source's QEMU lives.
_FAILURES = (_E.STREAM_FAILED, _E.DESTINATION_FAILED, _E.GUEST_ENDED, _E.CANCEL_REQUESTED)
_STOPPED_FAILURES = (*_FAILURES, _E.AGENT_RESTARTED, _E.DEADLINE_PASSED)


def _all(state: AnyState, events: Iterable[AnyEvent], step: Step) -> dict[Key, Step]:
    return {(state, event): step for event in events}


SOURCE_TABLE: Mapping[Key, Step] = {
    # 1 check and reserve: the guest never noticed
    (_S.CHECKING, _E.CHECK_PASSED): Step(_S.RESERVING, (_X.RESERVE,)),
    **_all(
        _S.CHECKING,
        (_E.CHECK_FAILED, _E.GUEST_ENDED, _E.CANCEL_REQUESTED, _E.AGENT_RESTARTED, _E.DEADLINE_PASSED),
        _UNTOUCHED,
    ),
    (_S.CHECKING, _E.SOURCE_QEMU_DIED): _CRASHED,
    (_S.RESERVING, _E.DESTINATION_RESERVED): Step(_S.RESERVED, (_X.SEND,)),
    (_S.RESERVING, _E.DESTINATION_REFUSED): _ABORT,
    (_S.RESERVING, _E.SOURCE_QEMU_DIED): _CRASHED,
    **_all(_S.RESERVING, _STOPPED_FAILURES, _ABORT),
    # 2, 3 first round and more rounds: `migrate_cancel`, the guest runs on; an agent that comes back steers on
    (_S.RESERVED, _E.PRECOPY_BEGAN): Step(_S.PRECOPY, (_X.STEER,)),
    (_S.RESERVED, _E.SOURCE_QEMU_DIED): _CRASHED,
    **_all(_S.RESERVED, _STOPPED_FAILURES, _ABORT),
    (_S.PRECOPY, _E.SOURCE_PAUSED): Step(_S.PRE_SWITCHOVER, (_X.AWAIT_DESTINATION, _X.CONTINUE)),
    (_S.PRECOPY, _E.AGENT_RESTARTED): Step(_S.PRECOPY, (_X.STEER,)),
    (_S.PRECOPY, _E.SOURCE_QEMU_DIED): _CRASHED,
    **_all(_S.PRECOPY, _FAILURES, _ABORT),
    # 4 ripe: the guest stands still, so every wait has a deadline from here to LOADED
    (_S.PRE_SWITCHOVER, _E.SWITCHOVER_BEGAN): Step(_S.SWITCHOVER),
    (_S.PRE_SWITCHOVER, _E.SOURCE_QEMU_DIED): _ORPHANED,
    **_all(_S.PRE_SWITCHOVER, _STOPPED_FAILURES, _ABORT),
    # 5 last pages and device state
    (_S.SWITCHOVER, _E.SOURCE_COMPLETED): Step(_S.SOURCE_COMPLETED),
    (_S.SWITCHOVER, _E.DESTINATION_LOADED): Step(_S.DESTINATION_LOADED),
    (_S.SWITCHOVER, _E.SOURCE_QEMU_DIED): _ORPHANED,
    **_all(_S.SWITCHOVER, _STOPPED_FAILURES, _ABORT),
    (_S.SOURCE_COMPLETED, _E.DESTINATION_LOADED): _LOADED,
    (_S.SOURCE_COMPLETED, _E.SOURCE_QEMU_DIED): _ORPHANED,
    **_all(_S.SOURCE_COMPLETED, _STOPPED_FAILURES, _ABORT),
    (_S.DESTINATION_LOADED, _E.SOURCE_COMPLETED): _LOADED,
    # proven dead, it cannot restart its vCPUs any more: the destination's word suffices
    (_S.DESTINATION_LOADED, _E.SOURCE_QEMU_DIED): _LOADED,
    **_all(_S.DESTINATION_LOADED, _STOPPED_FAILURES, _ABORT),
    (_S.ORPHANED, _E.DESTINATION_LOADED): _LOADED,
    (_S.ORPHANED, _E.DESTINATION_FAILED): _CRASHED,
    (_S.ORPHANED, _E.DESTINATION_FENCED): _CRASHED,
    (_S.ORPHANED, _E.AGENT_RESTARTED): _ORPHANED,
    # the commit
    (_S.LOADED, _E.OWNERSHIP_RELEASED): Step(_S.COMMITTED, (_X.TELL_DESTINATION,)),
    **_all(
        _S.LOADED,
        (_E.DESTINATION_FAILED, _E.CANCEL_REQUESTED, _E.AGENT_RESTARTED, _E.DEADLINE_PASSED),
        _ABORT,
    ),
    # 6 from now on the source's QEMU gets `quit` and nothing else, unless the token comes back
    (_S.COMMITTED, _E.DESTINATION_RUNNING): Step(_S.RUNNING, (_X.END_SOURCE,)),
    (_S.COMMITTED, _E.DESTINATION_RETURNED): Step(_S.RETURNING, (_X.TAKE_BACK,)),
    (_S.COMMITTED, _E.DESTINATION_LOST): Step(_S.LOST, (_X.END_SOURCE, _X.REPORT)),
    (_S.COMMITTED, _E.DESTINATION_FENCED): Step(_S.CRASHED, (_X.NOTE_CRASH, _X.REPORT)),
    (_S.COMMITTED, _E.AGENT_RESTARTED): Step(_S.COMMITTED, (_X.TELL_DESTINATION,)),
    (_S.RUNNING, _E.TIDIED): Step(_S.DONE, (_X.REPORT,)),
    (_S.RUNNING, _E.AGENT_RESTARTED): Step(_S.RUNNING, (_X.END_SOURCE,)),
    # ways back
    (_S.ABORTING, _E.SOURCE_RESUMED): Step(_S.ABORTED, (_X.DISCARD, _X.REPORT)),
    (_S.ABORTING, _E.SOURCE_QEMU_DIED): _ORPHANED,
    (_S.ABORTING, _E.AGENT_RESTARTED): _ABORT,
    (_S.RETURNING, _E.SOURCE_RESUMED): Step(_S.RETURNED, (_X.REPORT,)),
    (_S.RETURNING, _E.SOURCE_QEMU_DIED): Step(_S.CRASHED, (_X.NOTE_CRASH, _X.REPORT)),
    (_S.RETURNING, _E.AGENT_RESTARTED): Step(_S.RETURNING, (_X.TAKE_BACK,)),
}

_T, _F, _Y = DestinationState, DestinationEvent, DestinationEffect
_DISCARD = Step(_T.DISCARDING, (_Y.CLEAN_UP,))
_GIVE_BACK = Step(_T.GIVING_BACK, (_Y.CLEAN_UP,))

DESTINATION_TABLE: Mapping[Key, Step] = {
    (_T.PREPARING, _F.QEMU_LISTENS): Step(_T.RECEIVING, (_Y.WATCH,)),
    **_all(
        _T.PREPARING,
        (_F.PREPARATION_FAILED, _F.QEMU_DIED, _F.DISCARD_RECEIVED, _F.SOURCE_FENCED, _F.AGENT_RESTARTED),
        _DISCARD,
    ),
    (_T.RECEIVING, _F.STREAM_LOADED): Step(_T.LOADED, (_Y.WATCH,)),
    **_all(_T.RECEIVING, (_F.STREAM_FAILED, _F.QEMU_DIED, _F.DISCARD_RECEIVED, _F.SOURCE_FENCED), _DISCARD),
    (_T.RECEIVING, _F.AGENT_RESTARTED): Step(_T.RECEIVING, (_Y.WATCH,)),
    # held: it has everything and owns nothing
    (_T.LOADED, _F.COMMIT_RECEIVED): Step(_T.ACQUIRED, (_Y.RECORD_INTENT,)),
    **_all(_T.LOADED, (_F.QEMU_DIED, _F.DISCARD_RECEIVED, _F.SOURCE_FENCED), _DISCARD),
    (_T.LOADED, _F.AGENT_RESTARTED): Step(_T.LOADED, (_Y.WATCH,)),
    # the token is here
    (_T.ACQUIRED, _F.INTENT_RECORDED): Step(_T.STARTING, (_Y.START,)),
    (_T.ACQUIRED, _F.QEMU_DIED): _GIVE_BACK,
    (_T.ACQUIRED, _F.AGENT_RESTARTED): Step(_T.ACQUIRED, (_Y.RECORD_INTENT,)),
    (_T.STARTING, _F.GUEST_STARTED): Step(_T.RUNNING, (_Y.ANNOUNCE,)),
    (_T.STARTING, _F.START_REFUSED): _GIVE_BACK,
    (_T.STARTING, _F.QEMU_DIED): Step(_T.LOST, (_Y.NOTE_CRASH,)),
    (_T.STARTING, _F.AGENT_RESTARTED): Step(_T.STARTING, (_Y.START,)),
    # the token reached a host that cannot start the guest any more: it goes back, never to waste
    **{(state, _F.COMMIT_RECEIVED): _GIVE_BACK for state in (_T.PREPARING, _T.RECEIVING, _T.DISCARDING)},
    (_T.DISCARDED, _F.COMMIT_RECEIVED): Step(_T.RETURNED),
    (_T.DISCARDING, _F.CLEANED_UP): Step(_T.DISCARDED),
    (_T.DISCARDING, _F.AGENT_RESTARTED): _DISCARD,
    (_T.GIVING_BACK, _F.CLEANED_UP): Step(_T.RETURNED),
    (_T.GIVING_BACK, _F.AGENT_RESTARTED): _GIVE_BACK,
}

#: Late, doubled or stray, and harmless: the state does not move. Final states ignore everything not in the tables.
IGNORED: Mapping[AnyState, frozenset[AnyEvent]] = {
    _S.CHECKING: frozenset({_E.DESTINATION_FENCED}),
    _S.RESERVING: frozenset({_E.DESTINATION_FENCED}),
    _S.RESERVED: frozenset({_E.DESTINATION_RESERVED, _E.DESTINATION_FENCED}),
    _S.PRECOPY: frozenset({_E.PRECOPY_BEGAN, _E.DEADLINE_PASSED, _E.DESTINATION_FENCED}),
    _S.PRE_SWITCHOVER: frozenset({_E.PRECOPY_BEGAN, _E.SOURCE_PAUSED, _E.DESTINATION_FENCED}),
    _S.SWITCHOVER: frozenset({_E.SOURCE_PAUSED, _E.SWITCHOVER_BEGAN, _E.DESTINATION_FENCED}),
    _S.SOURCE_COMPLETED: frozenset({_E.SOURCE_COMPLETED, _E.SOURCE_PAUSED, _E.DESTINATION_FENCED}),
    _S.DESTINATION_LOADED: frozenset({_E.DESTINATION_LOADED, _E.SOURCE_PAUSED, _E.DESTINATION_FENCED}),
    _S.ORPHANED: frozenset(
        {
            _E.SOURCE_QEMU_DIED,
            _E.CANCEL_REQUESTED,
            _E.STREAM_FAILED,
            _E.GUEST_ENDED,
            _E.DEADLINE_PASSED,
            _E.SOURCE_COMPLETED,
        }
    ),
    _S.LOADED: frozenset(
        {
            _E.SOURCE_QEMU_DIED,
            _E.SOURCE_COMPLETED,
            _E.DESTINATION_LOADED,
            _E.GUEST_ENDED,
            _E.STREAM_FAILED,
            _E.DESTINATION_FENCED,
        }
    ),
    _S.COMMITTED: frozenset(SourceEvent) - {event for state, event in SOURCE_TABLE if state == _S.COMMITTED},
    _S.RUNNING: frozenset(SourceEvent) - {event for state, event in SOURCE_TABLE if state == _S.RUNNING},
    _S.ABORTING: frozenset(SourceEvent)
    - {event for state, event in SOURCE_TABLE if state == _S.ABORTING}
    - {_E.OWNERSHIP_RELEASED, _E.DESTINATION_RUNNING, _E.DESTINATION_RETURNED, _E.DESTINATION_LOST, _E.TIDIED},
    _S.RETURNING: frozenset(SourceEvent)
    - {event for state, event in SOURCE_TABLE if state == _S.RETURNING}
    - {_E.OWNERSHIP_RELEASED, _E.DESTINATION_RUNNING, _E.TIDIED},
    _T.PREPARING: frozenset[AnyEvent](),
    _T.RECEIVING: frozenset({_F.QEMU_LISTENS}),
    _T.LOADED: frozenset({_F.STREAM_LOADED, _F.QEMU_LISTENS}),
    _T.ACQUIRED: frozenset({_F.STREAM_LOADED, _F.COMMIT_RECEIVED, _F.DISCARD_RECEIVED, _F.SOURCE_FENCED}),
    _T.STARTING: frozenset(
        {_F.STREAM_LOADED, _F.COMMIT_RECEIVED, _F.DISCARD_RECEIVED, _F.SOURCE_FENCED, _F.INTENT_RECORDED}
    ),
    _T.DISCARDING: frozenset(
        {
            _F.QEMU_LISTENS,
            _F.PREPARATION_FAILED,
            _F.STREAM_LOADED,
            _F.STREAM_FAILED,
            _F.QEMU_DIED,
            _F.DISCARD_RECEIVED,
            _F.SOURCE_FENCED,
        }
    ),
    _T.GIVING_BACK: frozenset(
        {
            _F.QEMU_LISTENS,
            _F.PREPARATION_FAILED,
            _F.STREAM_LOADED,
            _F.STREAM_FAILED,
            _F.QEMU_DIED,
            _F.COMMIT_RECEIVED,
            _F.DISCARD_RECEIVED,
            _F.SOURCE_FENCED,
        }
    ),
}
