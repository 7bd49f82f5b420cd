"""What can happen to a hand-over: facts, past tense. Who saw it and what it carries, nothing else.

An event never says what to do about it; that is the table's. Events are journalled as JSON, so the names are stable.

Order matters in two places. What a QEMU said is told before its death is: QEMU says `failed` before it restarts its
vCPUs, and whether they ran decides what a death means. And at the source `AGENT_RESTARTED` is the first event of a new
agent, before anything that it finds: it says that nobody watched for a while.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmferry.core.handover.words import Word


class SourceEvent(Word):
    """What the conductor can see, from the source's QEMU, the destination's agent, the operator or the clock."""

    CHECK_PASSED = "check-passed"  #: no blocker was found
    CHECK_FAILED = "check-failed"  #: blockers; nothing was touched
    DESTINATION_RESERVED = "destination-reserved"  #: it listens
    DESTINATION_AWAITS_DISKS = "destination-awaits-disks"  #: it listens, and has no copy yet of images to be copied
    DISKS_MIRRORED = "disks-mirrored"  #: every copy is in step with its image, and each write goes to both
    DEVICES_PLUGGED = "devices-plugged"  #: the guest has devices of this host that cannot move
    DEVICES_DETACHED = "devices-detached"  #: it has let all of them go
    DESTINATION_REFUSED = "destination-refused"  #: it said no, or nobody answered
    PRECOPY_BEGAN = "precopy-began"  #: source status `active`
    POSTCOPY_ORDERED = "postcopy-ordered"  #: by the policy, or by whoever asked for the move
    SOURCE_PAUSED = "source-paused"  #: source status `pre-switchover`
    SWITCHOVER_BEGAN = "switchover-began"  #: QEMU accepted `migrate-continue`
    SOURCE_COMPLETED = "source-completed"  #: source status `completed`, run state `postmigrate`
    DESTINATION_LOADED = "destination-loaded"  #: destination `completed` + `paused`, in its agent's own words
    STREAM_FAILED = "stream-failed"  #: source status `failed`, or `cancelled` not by us, or an order was refused
    DESTINATION_FAILED = "destination-failed"  #: its QEMU died or could not load, before any commit reached it
    SOURCE_QEMU_DIED = "source-qemu-died"  #: the process is proven dead, and all that it had said was told before
    GUEST_ENDED = "guest-ended"  #: the guest powered itself off or panicked at the source
    CANCEL_REQUESTED = "cancel-requested"  #: by the operator
    DEADLINE_PASSED = "deadline-passed"  #: of the state we are in
    AGENT_RESTARTED = "agent-restarted"  #: the machine was replayed from the journal
    IMAGE_LOCKED = "image-locked"  #: somebody else has locked a disk before the destination could
    OWNERSHIP_RELEASED = "ownership-released"  #: `released(epoch+1, destination)` is durable
    DESTINATION_RUNNING = "destination-running"  #: acquired and started, in its agent's own words
    STREAM_BROKE = "stream-broke"  #: post-copy: own status `postcopy-paused`
    STREAM_RECOVERED = "stream-recovered"  #: post-copy: own status `postcopy-active` again
    PAGES_ARRIVED = "pages-arrived"  #: post-copy: the destination has every page, in its agent's own words
    DESTINATION_RETURNED = "destination-returned"  #: `returned(epoch+2, source)` is durable there
    DESTINATION_LOST = "destination-lost"  #: its QEMU died after the intent to start
    DESTINATION_FENCED = "destination-fenced"  #: a person says that the destination host is off for certain
    SOURCE_RESUMED = "source-resumed"  #: undone: the guest is at the source as before
    TIDIED = "tidied"  #: the source's QEMU is gone, its resources are given back


class DestinationEvent(Word):
    """What the destination's agent can see, from its QEMU, the source's agent or itself."""

    QEMU_LISTENS = "qemu-listens"  #: started, set up, listening
    PREPARATION_FAILED = "preparation-failed"
    STREAM_LOADED = "stream-loaded"  #: own `completed` + `paused`
    STREAM_FAILED = "stream-failed"  #: own `failed`
    POSTCOPY_LOADED = "postcopy-loaded"  #: own `postcopy-active` + `paused`
    PAGES_COMPLETED = "pages-completed"  #: own `completed` after post-copy: nothing is missing any more
    SOURCE_GONE = "source-gone"  #: the source's QEMU is proven dead, the stream is broken, and pages are missing
    QEMU_DIED = "qemu-died"  #: the process is proven dead
    COMMIT_RECEIVED = "commit-received"  #: the source journalled its release
    DISCARD_RECEIVED = "discard-received"  #: the source gave up, or says that it did when asked
    SOURCE_FENCED = "source-fenced"  #: a person says that the source host is off for certain
    INTENT_RECORDED = "intent-recorded"  #: the intent to `cont` is durable
    GUEST_STARTED = "guest-started"  #: RESUME was seen, or the guest stays paused as the token says
    START_REFUSED = "start-refused"  #: no lease of a disk could be had, or QEMU refused `cont`: paused, it never ran
    CLEANED_UP = "cleaned-up"  #: QEMU proven dead, reservation given back
    AGENT_RESTARTED = "agent-restarted"  #: the machine was replayed; its orders find out what became of QEMU


AnyEvent = SourceEvent | DestinationEvent


@dataclass(frozen=True, slots=True)
class Happened:
    """One event; `why` is for people."""

    kind: AnyEvent
    why: str | None = None
