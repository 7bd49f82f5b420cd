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

Which copy is the guest (ORPHANED, CRASHED): a source that failed in `device` restarts its vCPUs, and RESTORE starts
them too; from then on what the destination has loaded is the past, and starting it would undo what the world has seen
and run an old memory on a newer disk. So the destination's word saves a guest only while it is *known* that the
source's QEMU stood still until it died: an agent watched it all the time (no restart between PRE_SWITCHOVER and the
death), or its journalled `completed` says so (it never resumes by itself after that; hence SOURCE_COMPLETED and LOADED
wait on after a restart). In ABORTING nobody knows, and the guest has crashed at its owner.

Post-copy
=========
Where pre-copy cannot end, the rest follows the guest: vCPUs stop, the device state crosses, the guest runs at the
destination and fetches what is missing. It is ordered in PRECOPY and written down first, since an agent that comes back
must know which of the two `migrate-continue` will begin. From CROSSING on both QEMUs are needed and nothing leads back:
the source's refuses `cont` and must not be cancelled (10.0: hangs for ever, 7.2: would start a second copy). So there
is no deadline either: there is nothing that it could do for the guest.

The commit is where it is in pre-copy: both say so, the source `postcopy-active` (or one of the states behind it), from
which it never runs by itself, and the destination `postcopy-active` + paused. An earlier commit, before
`migrate-continue`, would give the guest to a host whose QEMU may have ended meanwhile, while the source's could go on.
Afterwards the stream may break and be recovered as often as it likes. A QEMU that dies takes the guest with it, unless
everything had arrived: that is the destination's word (PAGES_COMPLETED, PAGES_ARRIVED). When everything has arrived
before the commit, or the order came too late and QEMU went the way of pre-copy, the states of pre-copy take over
(SOURCE_COMPLETED, LOADED, COMMITTED): both QEMUs are then as they would be there.

Nothing is resolved by a time-out that could make two owners: deadlines exist only in states whose owner is certain and
whose end is decided here. COMMITTED and ORPHANED, and the destination's LOADED and ACQUIRED, wait as long as it takes.

A fact that could have come true by now and is not in the table is late, doubled or stray: `IGNORED`, it moves nothing.
A fact that cannot have come true yet, or that contradicts the state, is our bug: `IllegalTransition`. A release or an
intent that comes too late is ignored too: it was never written, so it never was.

Source: docs/handover.md; each QEMU fact was tried on 10.0.2 and most on 7.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vmferry.core.handover.effects import AnyEffect, DestinationEffect, SourceEffect
from vmferry.core.handover.events import AnyEvent, DestinationEvent, SourceEvent
from vmferry.core.handover.states import AnyState, DestinationState, Side, SourceState


@dataclass(frozen=True, slots=True)
class Step:
    """Where an event leads, and what is to be done there, in this order."""

    next: AnyState
    effects: tuple[AnyEffect, ...] = ()


Key = tuple[AnyState, AnyEvent]

_S, _E, _X = SourceState, SourceEvent, SourceEffect
_ABORT = Step(_S.ABORTING, (_X.RESTORE,))
#: Nothing is to be undone; devices may have gone meanwhile, and were not given again.
_UNTOUCHED = Step(_S.ABORTED, (_X.GIVE_DEVICES, _X.REPORT))
_ABORTED = Step(_S.ABORTED, (_X.GIVE_DEVICES, _X.DISCARD, _X.REPORT))
_RETURNED = Step(_S.RETURNED, (_X.GIVE_DEVICES, _X.REPORT))
_CRASHED = Step(_S.CRASHED, (_X.DISCARD, _X.NOTE_CRASH, _X.REPORT))
#: The source's QEMU may have sent everything before it died: only the destination knows.
_ORPHANED = Step(_S.ORPHANED, (_X.AWAIT_DESTINATION,))
#: The destination's word suffices, and there is no way back to a dead QEMU: no deadline and no cancel may lead there.
_ORPHAN_LOADED = Step(_S.ORPHANED, (_X.RELEASE,))
#: The source has completed and stands still for good; only the destination's word, a fresh one, is missing.
_COMPLETED = Step(_S.SOURCE_COMPLETED, (_X.AWAIT_DESTINATION,))
_COMMIT = Step(_S.COMMITTED, (_X.TELL_DESTINATION,))
_LOADED = Step(_S.LOADED, (_X.RELEASE,))
_ORDERED = Step(_S.POSTCOPY_ORDERED, (_X.BEGIN_POSTCOPY, _X.STEER))
_CROSSING = Step(_S.POSTCOPY_CROSSING, (_X.CROSS,))
_POSTCOPY_COMMIT = Step(_S.POSTCOPY_COMMITTED, (_X.TELL_DESTINATION, _X.FOLLOW_PAGES))
_PAGES_FOLLOW = Step(_S.POSTCOPY_RUNNING, (_X.FOLLOW_PAGES,))
_PAGES_WAIT = Step(_S.POSTCOPY_PAUSED, (_X.FOLLOW_PAGES,))
#: A person says that the other host is off: the memory is given up, name and disks are claimed.
_CLAIMED = Step(_S.CRASHED, (_X.NOTE_CRASH, _X.REPORT))
_LOST = Step(_S.LOST, (_X.END_SOURCE, _X.REPORT))

#: What ends a hand-over before the commit while the source's QEMU lives.
_FAILURES = (_E.STREAM_FAILED, _E.DESTINATION_FAILED, _E.GUEST_ENDED, _E.CANCEL_REQUESTED)
_TIMED_FAILURES = (*_FAILURES, _E.DEADLINE_PASSED)
_STOPPED_FAILURES = (*_TIMED_FAILURES, _E.AGENT_RESTARTED)


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
    (_S.RESERVING, _E.DESTINATION_AWAITS_DISKS): Step(_S.COPYING_DISKS, (_X.COPY_DISKS,)),
    (_S.RESERVING, _E.DESTINATION_REFUSED): _ABORT,
    (_S.RESERVING, _E.SOURCE_QEMU_DIED): _CRASHED,
    **_all(_S.RESERVING, _STOPPED_FAILURES, _ABORT),
    # disks that are not shared: no deadline, they may be large; an agent that comes back has not watched the mirrors
    (_S.COPYING_DISKS, _E.DISKS_MIRRORED): Step(_S.RESERVED, (_X.SEND,)),
    (_S.COPYING_DISKS, _E.SOURCE_QEMU_DIED): _CRASHED,
    **_all(_S.COPYING_DISKS, (*_FAILURES, _E.AGENT_RESTARTED), _ABORT),
    # 2, 3 first round and more rounds: `migrate_cancel`, the guest runs on; an agent that comes back steers on
    (_S.RESERVED, _E.PRECOPY_BEGAN): Step(_S.PRECOPY, (_X.STEER,)),
    (_S.RESERVED, _E.SOURCE_QEMU_DIED): _CRASHED,
    **_all(_S.RESERVED, _STOPPED_FAILURES, _ABORT),
    # devices of the host, which cannot move: the guest lets them go first, and has them again wherever it ends
    (_S.RESERVED, _E.DEVICES_PLUGGED): Step(_S.DETACHING, (_X.DETACH_DEVICES,)),
    (_S.DETACHING, _E.DEVICES_DETACHED): Step(_S.RESERVED, (_X.SEND,)),
    (_S.DETACHING, _E.SOURCE_QEMU_DIED): _CRASHED,
    **_all(_S.DETACHING, _STOPPED_FAILURES, _ABORT),
    (_S.PRECOPY, _E.SOURCE_PAUSED): Step(_S.PRE_SWITCHOVER, (_X.AWAIT_DESTINATION, _X.CONTINUE)),
    (_S.PRECOPY, _E.AGENT_RESTARTED): Step(_S.PRECOPY, (_X.STEER,)),
    (_S.PRECOPY, _E.SOURCE_QEMU_DIED): _CRASHED,
    # an agent that came back and had forgotten the pause (DEFERRED): it did not watch, so nothing is built on that word
    **_all(_S.PRECOPY, (*_FAILURES, _E.SOURCE_COMPLETED), _ABORT),
    # 4 ripe: the guest stands still, so every wait has a deadline from here to LOADED
    (_S.PRE_SWITCHOVER, _E.SWITCHOVER_BEGAN): Step(_S.SWITCHOVER),
    # the reply to `migrate-continue` may be overtaken by what it caused
    (_S.PRE_SWITCHOVER, _E.SOURCE_COMPLETED): Step(_S.SOURCE_COMPLETED),
    (_S.PRE_SWITCHOVER, _E.DESTINATION_LOADED): Step(_S.DESTINATION_LOADED),
    (_S.PRE_SWITCHOVER, _E.SOURCE_QEMU_DIED): _ORPHANED,
    **_all(_S.PRE_SWITCHOVER, _STOPPED_FAILURES, _ABORT),
    # 5 last pages and device state
    (_S.SWITCHOVER, _E.SOURCE_COMPLETED): Step(_S.SOURCE_COMPLETED),
    (_S.SWITCHOVER, _E.DESTINATION_LOADED): Step(_S.DESTINATION_LOADED),
    (_S.SWITCHOVER, _E.SOURCE_QEMU_DIED): _ORPHANED,
    **_all(_S.SWITCHOVER, _STOPPED_FAILURES, _ABORT),
    (_S.SOURCE_COMPLETED, _E.DESTINATION_LOADED): _LOADED,
    (_S.SOURCE_COMPLETED, _E.SOURCE_QEMU_DIED): _ORPHANED,
    (_S.SOURCE_COMPLETED, _E.AGENT_RESTARTED): _COMPLETED,
    **_all(_S.SOURCE_COMPLETED, _TIMED_FAILURES, _ABORT),
    (_S.DESTINATION_LOADED, _E.SOURCE_COMPLETED): _LOADED,
    # proven dead, it cannot restart its vCPUs any more: the destination's word suffices
    (_S.DESTINATION_LOADED, _E.SOURCE_QEMU_DIED): _ORPHAN_LOADED,
    **_all(_S.DESTINATION_LOADED, _STOPPED_FAILURES, _ABORT),
    (_S.ORPHANED, _E.DESTINATION_LOADED): _ORPHAN_LOADED,
    (_S.ORPHANED, _E.OWNERSHIP_RELEASED): _COMMIT,
    (_S.ORPHANED, _E.DESTINATION_FAILED): _CRASHED,
    (_S.ORPHANED, _E.DESTINATION_FENCED): _CRASHED,
    # said before it died and heard after it: it may have run on, or had ended
    **_all(_S.ORPHANED, (_E.STREAM_FAILED, _E.GUEST_ENDED), _CRASHED),
    (_S.ORPHANED, _E.AGENT_RESTARTED): _ORPHANED,
    # the commit
    (_S.LOADED, _E.OWNERSHIP_RELEASED): _COMMIT,
    (_S.LOADED, _E.IMAGE_LOCKED): _ABORT,
    (_S.LOADED, _E.SOURCE_QEMU_DIED): _ORPHANED,
    (_S.LOADED, _E.AGENT_RESTARTED): _COMPLETED,
    **_all(_S.LOADED, (_E.DESTINATION_FAILED, _E.CANCEL_REQUESTED, _E.DEADLINE_PASSED), _ABORT),
    # 6 from now on the source's QEMU gets `quit` and nothing else, unless the token comes back
    (_S.COMMITTED, _E.DESTINATION_RUNNING): Step(_S.RUNNING, (_X.END_SOURCE,)),
    (_S.COMMITTED, _E.DESTINATION_RETURNED): Step(_S.RETURNING, (_X.TAKE_BACK,)),
    (_S.COMMITTED, _E.DESTINATION_LOST): _LOST,
    (_S.COMMITTED, _E.DESTINATION_FENCED): _CLAIMED,
    (_S.COMMITTED, _E.AGENT_RESTARTED): _COMMIT,
    (_S.RUNNING, _E.TIDIED): Step(_S.DONE, (_X.REPORT,)),
    (_S.RUNNING, _E.AGENT_RESTARTED): Step(_S.RUNNING, (_X.END_SOURCE,)),
    # post-copy instead of 4 and 5
    (_S.PRECOPY, _E.POSTCOPY_ORDERED): _ORDERED,
    (_S.POSTCOPY_ORDERED, _E.SOURCE_PAUSED): _CROSSING,
    (_S.POSTCOPY_ORDERED, _E.AGENT_RESTARTED): _ORDERED,
    (_S.POSTCOPY_ORDERED, _E.SOURCE_QEMU_DIED): _CRASHED,
    **_all(_S.POSTCOPY_ORDERED, _FAILURES, _ABORT),
    (_S.POSTCOPY_CROSSING, _E.OWNERSHIP_RELEASED): _POSTCOPY_COMMIT,
    # everything has arrived already, or it went the way of pre-copy: both stand still, and the source can go back
    (_S.POSTCOPY_CROSSING, _E.SOURCE_COMPLETED): _COMPLETED,
    # before `migrate-continue`, or QEMU's own `failed`: the source still has all, and may run it
    (_S.POSTCOPY_CROSSING, _E.STREAM_FAILED): _ABORT,
    (_S.POSTCOPY_CROSSING, _E.AGENT_RESTARTED): _CROSSING,
    **_all(_S.POSTCOPY_CROSSING, (_E.DESTINATION_FAILED, _E.DESTINATION_FENCED, _E.SOURCE_QEMU_DIED), _CRASHED),
    # post-copy instead of 6: the source's QEMU is needed until the last page is there
    (_S.POSTCOPY_COMMITTED, _E.DESTINATION_RUNNING): _PAGES_FOLLOW,
    **_all(_S.POSTCOPY_COMMITTED, (_E.SOURCE_COMPLETED, _E.PAGES_ARRIVED), _COMMIT),
    (_S.POSTCOPY_COMMITTED, _E.DESTINATION_RETURNED): Step(_S.RETURNING, (_X.TAKE_BACK,)),
    **_all(_S.POSTCOPY_COMMITTED, (_E.AGENT_RESTARTED, _E.SOURCE_QEMU_DIED), _POSTCOPY_COMMIT),
    (_S.POSTCOPY_RUNNING, _E.STREAM_BROKE): _PAGES_WAIT,
    (_S.POSTCOPY_RUNNING, _E.AGENT_RESTARTED): _PAGES_FOLLOW,
    (_S.POSTCOPY_PAUSED, _E.STREAM_RECOVERED): _PAGES_FOLLOW,
    (_S.POSTCOPY_PAUSED, _E.AGENT_RESTARTED): _PAGES_WAIT,
    **{
        (state, event): Step(_S.RUNNING, (_X.END_SOURCE,))
        for state in (_S.POSTCOPY_RUNNING, _S.POSTCOPY_PAUSED)
        for event in (_E.SOURCE_COMPLETED, _E.PAGES_ARRIVED)
    },
    # broken for good; whether everything had arrived is the destination's word
    **{(state, _E.SOURCE_QEMU_DIED): _PAGES_WAIT for state in (_S.POSTCOPY_RUNNING, _S.POSTCOPY_PAUSED)},
    **{
        (state, event): step
        for state in (_S.POSTCOPY_COMMITTED, _S.POSTCOPY_RUNNING, _S.POSTCOPY_PAUSED)
        for event, step in ((_E.DESTINATION_LOST, _LOST), (_E.DESTINATION_FENCED, _CLAIMED))
    },
    # ways back
    (_S.ABORTING, _E.SOURCE_RESUMED): _ABORTED,
    # it may have run on before it died, so what the destination has may be the past
    (_S.ABORTING, _E.SOURCE_QEMU_DIED): _CRASHED,
    (_S.ABORTING, _E.AGENT_RESTARTED): _ABORT,
    (_S.RETURNING, _E.SOURCE_RESUMED): _RETURNED,
    (_S.RETURNING, _E.SOURCE_QEMU_DIED): Step(_S.CRASHED, (_X.NOTE_CRASH, _X.REPORT)),
    (_S.RETURNING, _E.AGENT_RESTARTED): Step(_S.RETURNING, (_X.TAKE_BACK,)),
    # the last orders once more, where a crash came between the end and them
    (_S.DONE, _E.AGENT_RESTARTED): Step(_S.DONE, (_X.REPORT,)),
    (_S.ABORTED, _E.AGENT_RESTARTED): _ABORTED,
    (_S.RETURNED, _E.AGENT_RESTARTED): _RETURNED,
    (_S.CRASHED, _E.AGENT_RESTARTED): _CRASHED,
    (_S.LOST, _E.AGENT_RESTARTED): _LOST,
}

_T, _F, _Y = DestinationState, DestinationEvent, DestinationEffect
_DISCARD = Step(_T.DISCARDING, (_Y.CLEAN_UP,))
_GIVE_BACK = Step(_T.GIVING_BACK, (_Y.CLEAN_UP,))
_RUNNING = Step(_T.RUNNING, (_Y.ANNOUNCE, _Y.GIVE_DEVICES))
_POSTCOPY_START = Step(_T.POSTCOPY_STARTING, (_Y.START, _Y.AWAIT_PAGES))

DESTINATION_TABLE: Mapping[Key, Step] = {
    (_T.PREPARING, _F.QEMU_LISTENS): Step(_T.RECEIVING, (_Y.WATCH,)),
    **_all(
        _T.PREPARING,
        (
            _F.PREPARATION_FAILED,
            _F.STREAM_FAILED,  # a stranger connected before we said that it listens
            _F.QEMU_DIED,
            _F.DISCARD_RECEIVED,
            _F.SOURCE_FENCED,
            _F.AGENT_RESTARTED,
        ),
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
    **_all(_T.ACQUIRED, (_F.QEMU_DIED, _F.START_REFUSED), _GIVE_BACK),
    (_T.ACQUIRED, _F.AGENT_RESTARTED): Step(_T.ACQUIRED, (_Y.RECORD_INTENT,)),
    (_T.STARTING, _F.GUEST_STARTED): _RUNNING,
    (_T.STARTING, _F.START_REFUSED): _GIVE_BACK,
    (_T.STARTING, _F.QEMU_DIED): Step(_T.LOST, (_Y.NOTE_CRASH,)),
    (_T.STARTING, _F.AGENT_RESTARTED): Step(_T.STARTING, (_Y.START,)),
    # post-copy: held; it has what it needs to run, and owns nothing
    (_T.RECEIVING, _F.POSTCOPY_LOADED): Step(_T.POSTCOPY_LOADED, (_Y.WATCH,)),
    (_T.POSTCOPY_LOADED, _F.COMMIT_RECEIVED): _POSTCOPY_START,
    (_T.POSTCOPY_LOADED, _F.PAGES_COMPLETED): Step(_T.LOADED, (_Y.WATCH,)),
    **_all(_T.POSTCOPY_LOADED, (_F.QEMU_DIED, _F.DISCARD_RECEIVED, _F.SOURCE_FENCED), _DISCARD),
    (_T.POSTCOPY_LOADED, _F.AGENT_RESTARTED): Step(_T.POSTCOPY_LOADED, (_Y.WATCH,)),
    # post-copy: the token is here; a refused `cont` is tried again, since the source cannot take the guest back
    (_T.POSTCOPY_STARTING, _F.GUEST_STARTED): Step(_T.POSTCOPY_RUNNING, (_Y.AWAIT_PAGES,)),
    (_T.POSTCOPY_STARTING, _F.PAGES_COMPLETED): Step(_T.STARTING, (_Y.START,)),
    (_T.POSTCOPY_STARTING, _F.AGENT_RESTARTED): _POSTCOPY_START,
    (_T.POSTCOPY_RUNNING, _F.PAGES_COMPLETED): _RUNNING,
    (_T.POSTCOPY_RUNNING, _F.AGENT_RESTARTED): Step(_T.POSTCOPY_RUNNING, (_Y.AWAIT_PAGES,)),
    **{
        (state, event): Step(_T.LOST, (_Y.NOTE_CRASH,))
        for state in (_T.POSTCOPY_STARTING, _T.POSTCOPY_RUNNING)
        for event in (_F.QEMU_DIED, _F.SOURCE_GONE)
    },
    # the token reached a host that cannot start the guest any more: it goes back, never to waste. In RECEIVING it is
    # early: LOADED was said and forgotten (DEFERRED), the next look finds it again, and the source asks again
    **{(state, _F.COMMIT_RECEIVED): _GIVE_BACK for state in (_T.PREPARING, _T.DISCARDING)},
    (_T.DISCARDED, _F.COMMIT_RECEIVED): Step(_T.RETURNED),
    (_T.DISCARDING, _F.CLEANED_UP): Step(_T.DISCARDED),
    (_T.DISCARDING, _F.AGENT_RESTARTED): _DISCARD,
    (_T.GIVING_BACK, _F.CLEANED_UP): Step(_T.RETURNED),
    (_T.GIVING_BACK, _F.AGENT_RESTARTED): _GIVE_BACK,
    (_T.RUNNING, _F.AGENT_RESTARTED): _RUNNING,
    (_T.LOST, _F.AGENT_RESTARTED): Step(_T.LOST, (_Y.NOTE_CRASH,)),
}

#: What a new hand-over of each side begins with.
OPENING: Mapping[Side, Step] = {
    Side.SOURCE: Step(_S.CHECKING, (_X.CHECK,)),
    Side.DESTINATION: Step(_T.PREPARING, (_Y.PREPARE,)),
}

_BY_CHECKING: frozenset[AnyEvent] = frozenset(
    {
        _E.CHECK_PASSED,
        _E.CHECK_FAILED,
        _E.SOURCE_QEMU_DIED,
        _E.GUEST_ENDED,
        _E.CANCEL_REQUESTED,
        _E.DEADLINE_PASSED,
        _E.AGENT_RESTARTED,
        _E.DESTINATION_FENCED,
    }
)
_BY_RESERVING = _BY_CHECKING | {
    _E.DESTINATION_RESERVED,
    _E.DESTINATION_AWAITS_DISKS,
    _E.DESTINATION_REFUSED,
    _E.DESTINATION_FAILED,
    _E.STREAM_FAILED,
}
_BY_COPYING = _BY_RESERVING | {_E.DISKS_MIRRORED}
_BY_DETACHING = _BY_COPYING | {_E.DEVICES_PLUGGED, _E.DEVICES_DETACHED}
_BY_RESERVED = _BY_DETACHING | {_E.PRECOPY_BEGAN}
_BY_PRECOPY = _BY_RESERVED | {_E.SOURCE_PAUSED, _E.SOURCE_COMPLETED, _E.DESTINATION_LOADED, _E.POSTCOPY_ORDERED}
_BY_PRE_SWITCHOVER = _BY_PRECOPY | {_E.SWITCHOVER_BEGAN}
_BY_LOADED = _BY_PRE_SWITCHOVER | {_E.OWNERSHIP_RELEASED, _E.IMAGE_LOCKED}
_BY_COMMITTED = _BY_LOADED | {_E.DESTINATION_RUNNING, _E.DESTINATION_RETURNED, _E.DESTINATION_LOST, _E.PAGES_ARRIVED}
_BY_POSTCOPY = _BY_COMMITTED | {_E.STREAM_BROKE, _E.STREAM_RECOVERED}

_BY_PREPARING: frozenset[AnyEvent] = frozenset(
    {
        _F.QEMU_LISTENS,
        _F.PREPARATION_FAILED,
        _F.STREAM_FAILED,
        _F.QEMU_DIED,
        _F.COMMIT_RECEIVED,
        _F.DISCARD_RECEIVED,
        _F.SOURCE_FENCED,
        _F.AGENT_RESTARTED,
    }
)
_BY_RECEIVING = _BY_PREPARING | {_F.STREAM_LOADED, _F.POSTCOPY_LOADED, _F.PAGES_COMPLETED}
#: it loaded, so it neither failed to prepare nor to load
_BY_LOADING = _BY_RECEIVING - {_F.PREPARATION_FAILED, _F.STREAM_FAILED}

#: What can have come true by the time a state is entered, on the way to it. Final states take anything.
POSSIBLE: Mapping[AnyState, frozenset[AnyEvent]] = {
    _S.CHECKING: _BY_CHECKING,
    _S.RESERVING: _BY_RESERVING,
    _S.COPYING_DISKS: _BY_COPYING,
    _S.DETACHING: _BY_DETACHING,
    _S.RESERVED: _BY_RESERVED,
    _S.PRECOPY: _BY_PRECOPY,
    _S.PRE_SWITCHOVER: _BY_PRE_SWITCHOVER,
    _S.SWITCHOVER: _BY_PRE_SWITCHOVER,
    _S.SOURCE_COMPLETED: _BY_PRE_SWITCHOVER,
    _S.DESTINATION_LOADED: _BY_PRE_SWITCHOVER,
    _S.LOADED: _BY_LOADED,
    _S.ORPHANED: _BY_LOADED,
    _S.POSTCOPY_ORDERED: _BY_PRECOPY,
    _S.POSTCOPY_CROSSING: _BY_LOADED | {_E.STREAM_BROKE},
    _S.POSTCOPY_COMMITTED: _BY_POSTCOPY,
    _S.POSTCOPY_RUNNING: _BY_POSTCOPY,
    _S.POSTCOPY_PAUSED: _BY_POSTCOPY,
    _S.COMMITTED: _BY_POSTCOPY,
    _S.RUNNING: _BY_POSTCOPY | {_E.TIDIED},
    _S.ABORTING: _BY_LOADED | {_E.SOURCE_RESUMED},
    _S.RETURNING: (_BY_POSTCOPY | {_E.SOURCE_RESUMED}) - {_E.DESTINATION_RUNNING},
    _T.PREPARING: _BY_PREPARING,
    _T.RECEIVING: _BY_RECEIVING,
    _T.LOADED: _BY_LOADING,
    _T.POSTCOPY_LOADED: _BY_LOADING,
    _T.POSTCOPY_STARTING: _BY_LOADING | {_F.GUEST_STARTED, _F.SOURCE_GONE},
    _T.POSTCOPY_RUNNING: _BY_LOADING | {_F.GUEST_STARTED, _F.SOURCE_GONE},
    _T.ACQUIRED: _BY_LOADING | {_F.INTENT_RECORDED, _F.START_REFUSED},
    _T.STARTING: _BY_LOADING | {_F.INTENT_RECORDED, _F.GUEST_STARTED, _F.START_REFUSED, _F.SOURCE_GONE},
    _T.DISCARDING: _BY_RECEIVING | {_F.CLEANED_UP},
    _T.GIVING_BACK: _BY_RECEIVING | {_F.INTENT_RECORDED, _F.START_REFUSED, _F.SOURCE_GONE, _F.CLEANED_UP},
}

_TABLES: Mapping[Key, Step] = {**SOURCE_TABLE, **DESTINATION_TABLE}

#: Late, doubled or stray, and harmless: the state does not move. Final states ignore everything not in the tables.
IGNORED: Mapping[AnyState, frozenset[AnyEvent]] = {
    state: frozenset(event for event in possible if (state, event) not in _TABLES)
    for state, possible in POSSIBLE.items()
}
