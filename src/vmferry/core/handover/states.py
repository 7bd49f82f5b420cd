"""The states of a hand-over, on either side: what each means, who owns the guest in it and who is needed.

*owner* is the host whose vCPUs may run. *needs* are the QEMU processes whose loss in this state can lose the guest,
as far as this side knows: the loss of one that neither side needs never does.
A *deadline* ends every state that waits for a process which may never answer (the destination's comes as
PREPARATION_FAILED); states without one wait for a person, for the network or for the peer, and hold the guest rather
than guess, or undo (ABORTING, RETURNING) and have nowhere else to go.

Source: docs/handover.md, "The six steps and the commit point".
"""

from __future__ import annotations

from dataclasses import dataclass

from vmferry.core.handover.words import Word
from vmferry.core.progress import Step


class Side(Word):
    """Which of the two machines."""

    SOURCE = "source"
    DESTINATION = "destination"


class Owner(Word):
    """Whose vCPUs may run."""

    SOURCE = "source"
    DESTINATION = "destination"


class SourceState(Word):
    """The source's machine: the conductor's view of the whole hand-over."""

    #: The destination is asked and every blocker collected; nothing is touched.
    CHECKING = "checking"
    #: The destination was asked to hold memory, port, disk and name and to start its QEMU.
    RESERVING = "reserving"
    #: The destination listens; images that the hosts do not share are copied there while the guest runs.
    COPYING_DISKS = "copying-disks"
    #: The destination listens; the guest is asked to let devices of its host go that cannot move.
    DETACHING = "detaching"
    #: The destination listens; the source's QEMU is set up and told to send.
    RESERVED = "reserved"
    #: RAM is sent in rounds while the guest runs.
    PRECOPY = "precopy"
    #: vCPUs stopped; disks still active and locked at the source; `migrate-continue` not sent yet.
    PRE_SWITCHOVER = "pre-switchover"
    #: `migrate-continue` sent: last pages and device state. On a cut stream QEMU restarts its vCPUs by itself.
    SWITCHOVER = "switchover"
    #: The source's QEMU says completed; the destination has not said so yet.
    SOURCE_COMPLETED = "source-completed"
    #: The destination says loaded; the source's QEMU has not said completed yet.
    DESTINATION_LOADED = "destination-loaded"
    #: Both say so. The release is being journalled.
    LOADED = "loaded"
    #: The source's QEMU died when it stood still and the destination may hold everything: its word decides.
    ORPHANED = "orphaned"
    #: Post-copy: ordered for the end of this round; the guest still runs here.
    POSTCOPY_ORDERED = "postcopy-ordered"
    #: Post-copy: vCPUs stopped; the stream is checked, `migrate-continue` sent, both words are awaited: no way back.
    POSTCOPY_CROSSING = "postcopy-crossing"
    #: `released(epoch+1, destination)` is journalled. The source's QEMU gets `quit` and nothing else.
    COMMITTED = "committed"
    #: Post-copy: `released(epoch+1, destination)` is journalled; the source's QEMU has pages that are still to be sent.
    POSTCOPY_COMMITTED = "postcopy-committed"
    #: Post-copy: the guest runs at the destination and fetches what is missing from here.
    POSTCOPY_RUNNING = "postcopy-running"
    #: Post-copy: the stream is broken, vCPUs wait at pages that are missing; it is recovered for as long as it takes.
    POSTCOPY_PAUSED = "postcopy-paused"
    #: The destination says that the guest runs there; the source is being tidied up.
    RUNNING = "running"
    #: Everything is over and tidy; the guest is the destination's.
    DONE = "done"
    #: Something failed, or was cancelled, before the commit: the source's QEMU is brought back to running.
    ABORTING = "aborting"
    #: The guest runs at the source as before.
    ABORTED = "aborted"
    #: The destination proved that it never ran the guest and gave the token back; the source starts it again.
    RETURNING = "returning"
    #: The guest runs at the source, one epoch further.
    RETURNED = "returned"
    #: The source's QEMU died before the commit, the destination has nothing that may be used: a crash at its owner.
    CRASHED = "crashed"
    #: The destination's QEMU died after the intent to start: a guest crash at its new owner.
    LOST = "lost"


class DestinationState(Word):
    """The destination's machine."""

    #: Memory, port and name are held; QEMU is being started with -S -incoming defer.
    PREPARING = "preparing"
    #: QEMU listens, or loads.
    RECEIVING = "receiving"
    #: QEMU says completed + paused. It has not run and must not without the token.
    LOADED = "loaded"
    #: Post-copy: QEMU says postcopy-active + paused. It has not run and must not without the token.
    POSTCOPY_LOADED = "postcopy-loaded"
    #: Post-copy: `acquired(epoch+1)` and the intent to send `cont` are journalled, in one write.
    POSTCOPY_STARTING = "postcopy-starting"
    #: Post-copy: the vCPUs run, pages are missing; a broken stream is listened for anew.
    POSTCOPY_RUNNING = "postcopy-running"
    #: `acquired(epoch+1)` is journalled; nothing was started.
    ACQUIRED = "acquired"
    #: The intent to send `cont` is journalled: from here the guest may have run.
    STARTING = "starting"
    #: The vCPUs run (or stand, if the token says that the guest was paused).
    RUNNING = "running"
    #: The arrival is being undone: QEMU killed, reservation given back.
    DISCARDING = "discarding"
    #: Nothing is left of the arrival.
    DISCARDED = "discarded"
    #: The token reached a host that never started the guest: QEMU is ended before the token goes back.
    GIVING_BACK = "giving-back"
    #: QEMU is proven dead and never ran; `returned(epoch+2, source)` is journalled.
    RETURNED = "returned"
    #: QEMU died after the intent: a guest crash; the source's copy is never revived.
    LOST = "lost"


AnyState = SourceState | DestinationState


@dataclass(frozen=True, slots=True)
class Facts:
    """What a state means to everybody outside the machine."""

    owner: Owner
    needs: frozenset[Side]
    step: Step | None
    deadline_ms: int | None = None
    final: bool = False


_S, _D = Owner.SOURCE, Owner.DESTINATION
_SRC, _DST, _NONE = frozenset({Side.SOURCE}), frozenset({Side.DESTINATION}), frozenset[Side]()
_BOTH = _SRC | _DST

#: Facts of every state; a test holds that none is missing.
FACTS: dict[AnyState, Facts] = {
    SourceState.CHECKING: Facts(_S, _SRC, Step.RESERVE, 30_000),
    SourceState.RESERVING: Facts(_S, _SRC, Step.RESERVE, 60_000),
    SourceState.COPYING_DISKS: Facts(_S, _SRC, Step.COPY),
    SourceState.DETACHING: Facts(_S, _SRC, Step.RESERVE, 90_000),
    SourceState.RESERVED: Facts(_S, _SRC, Step.COPY, 60_000),
    SourceState.PRECOPY: Facts(_S, _SRC, Step.ROUNDS),
    SourceState.PRE_SWITCHOVER: Facts(_S, _SRC, Step.PAUSE, 5_000),
    SourceState.SWITCHOVER: Facts(_S, _SRC, Step.LAST_PAGES, 30_000),
    SourceState.SOURCE_COMPLETED: Facts(_S, _SRC, Step.LAST_PAGES, 15_000),
    SourceState.DESTINATION_LOADED: Facts(_S, _SRC, Step.LAST_PAGES, 15_000),
    SourceState.LOADED: Facts(_S, _NONE, Step.LAST_PAGES, 15_000),
    SourceState.ORPHANED: Facts(_S, _DST, Step.LAST_PAGES),
    SourceState.POSTCOPY_ORDERED: Facts(_S, _SRC, Step.ROUNDS),
    SourceState.POSTCOPY_CROSSING: Facts(_S, _BOTH, Step.LAST_PAGES),
    SourceState.POSTCOPY_COMMITTED: Facts(_D, _BOTH, Step.HANDOVER),
    SourceState.POSTCOPY_RUNNING: Facts(_D, _BOTH, Step.HANDOVER),
    SourceState.POSTCOPY_PAUSED: Facts(_D, _BOTH, Step.HANDOVER),
    SourceState.COMMITTED: Facts(_D, _NONE, Step.HANDOVER),
    SourceState.RUNNING: Facts(_D, _DST, Step.HANDOVER),
    SourceState.DONE: Facts(_D, _DST, None, final=True),
    SourceState.ABORTING: Facts(_S, _SRC, None),
    SourceState.ABORTED: Facts(_S, _SRC, None, final=True),
    SourceState.RETURNING: Facts(_S, _SRC, None),
    SourceState.RETURNED: Facts(_S, _SRC, None, final=True),
    SourceState.CRASHED: Facts(_S, _NONE, None, final=True),
    SourceState.LOST: Facts(_D, _NONE, None, final=True),
    DestinationState.PREPARING: Facts(_S, _SRC, Step.RESERVE, 60_000),
    DestinationState.RECEIVING: Facts(_S, _SRC, Step.ROUNDS),
    DestinationState.LOADED: Facts(_S, _NONE, Step.LAST_PAGES),
    DestinationState.POSTCOPY_LOADED: Facts(_S, _BOTH, Step.LAST_PAGES),
    DestinationState.POSTCOPY_STARTING: Facts(_D, _BOTH, Step.HANDOVER),
    DestinationState.POSTCOPY_RUNNING: Facts(_D, _BOTH, Step.HANDOVER),
    DestinationState.ACQUIRED: Facts(_D, _NONE, Step.HANDOVER),
    DestinationState.STARTING: Facts(_D, _DST, Step.HANDOVER),
    DestinationState.RUNNING: Facts(_D, _DST, None, final=True),
    DestinationState.DISCARDING: Facts(_S, _SRC, None),
    DestinationState.DISCARDED: Facts(_S, _SRC, None, final=True),
    DestinationState.GIVING_BACK: Facts(_D, _SRC, None),
    DestinationState.RETURNED: Facts(_S, _SRC, None, final=True),
    DestinationState.LOST: Facts(_D, _NONE, None, final=True),
}

#: Both hosts hold a part of the guest, or may in a moment: no cancel, no pause and no stop, by anybody.
POSTCOPY_STATES: frozenset[AnyState] = frozenset(state for state, facts in FACTS.items() if facts.needs == _BOTH)

#: States whose entry may become durable later than its effects begin, at the latest with the next entry: what they
#: order only asks, or names the query that tells whether it happened, and a machine that has forgotten the entry comes
#: back to it or ends where forgetting does no harm. The guest stands still in each of them, and a durable write is a
#: tenth of what the whole commit may cost.
DEFERRED: frozenset[AnyState] = frozenset(
    {
        SourceState.PRE_SWITCHOVER,
        SourceState.SWITCHOVER,
        SourceState.DESTINATION_LOADED,
        SourceState.LOADED,
        DestinationState.LOADED,
        DestinationState.ACQUIRED,
    }
)
