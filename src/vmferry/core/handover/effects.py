"""What a hand-over orders: imperative, idempotent, or with the query that tells whether it happened.

The runner carries effects out in the order given, after the state that ordered them is durable. A crash between the two
is met by `AGENT_RESTARTED`, whose effects ask first and act then; a hand-over counts as finished only when the last
effect of its final state was carried out. An effect not carried out yet when a later step orders others is dropped.
"""

from __future__ import annotations

from vmferry.core.handover.words import Word


class SourceEffect(Word):
    """Orders of the source's machine. Undo, and why a repeat is harmless, stand behind each."""

    CHECK = "check"  #: collect facts and blockers. Touches nothing
    #: ask the destination to hold and listen, and set the source's QEMU up. Undo: DISCARD, RESTORE. Repeat: same id,
    #: same answer
    RESERVE = "reserve"
    COPY_DISKS = "copy-disks"  #: mirror images until every copy is in step. Undo: RESTORE, which drops the mirrors
    #: have the guest let go what cannot move; its cards are silent then. Undo: GIVE_DEVICES. Repeat: asks first
    DETACH_DEVICES = "detach-devices"
    #: `migrate`, or the word that devices must go first. Undo: RESTORE
    SEND = "send"
    STEER = "steer"  #: let the policy watch the rounds until the state is left. Repeat: asks the status first
    CONTINUE = "continue"  #: `migrate-continue`. Undo: RESTORE
    BEGIN_POSTCOPY = "begin-postcopy"  #: `migrate-start-postcopy`. Undo: RESTORE. Repeat: harmless
    CROSS = "cross"  #: check the stream, `migrate-continue`, await both words; ends with the commit. Repeat: asks first
    FOLLOW_PAGES = "follow-pages"  #: post-copy: watch until completed; a broken stream is recovered. Repeat: asks first
    AWAIT_DESTINATION = "await-destination"  #: ask the destination until it says loaded, failed or dead
    RELEASE = "release"  #: last checks before the commit; the event it ends with is the commit. A dead QEMU passes them
    #: give the disks' leases back, then hand the token over; repeated until the destination answers
    TELL_DESTINATION = "tell-destination"
    END_SOURCE = "end-source"  #: `quit` the source's QEMU, free what it held, forget the guest. Repeat: harmless
    DISCARD = "discard"  #: tell the destination to let go; best effort, it also asks by itself
    RESTORE = "restore"  #: cancel; wait for QEMU's final word; `cont` if stopped and it ran. Repeat: asks first
    TAKE_BACK = "take-back"  #: take the leases again, `cont` at the source under the returned token. Repeat: asks first
    NOTE_CRASH = "note-crash"  #: end what is left of its QEMU, mark the guest as crashed here; name, disks, token stay
    #: have the devices that the guest wants plugged in again, however long that takes; waits for none. Repeat: harmless
    GIVE_DEVICES = "give-devices"
    REPORT = "report"  #: measure, write the report, tell the watchers


class DestinationEffect(Word):
    """Orders of the destination's machine."""

    PREPARE = "prepare"  #: start QEMU, set it up, listen. Undo: CLEAN_UP
    WATCH = "watch"  #: watch QEMU, and ask the source what became of it when nothing is heard. Repeat: asks first
    #: ask first whether QEMU lives, and take the disks' leases; the event it ends with is the intent to `cont`.
    #: Undo: CLEAN_UP. Repeat: harmless
    RECORD_INTENT = "record-intent"
    START = "start"  #: `cont` if the token says that the guest ran; else nothing. Repeat: asks the run state first
    AWAIT_PAGES = (
        "await-pages"  #: post-copy: watch until completed; listen anew when the source asks. Repeat: asks first
    )
    ANNOUNCE = "announce"  #: tell the network; the arrival is a guest of this host like any other now. Repeat: harmless
    GIVE_DEVICES = "give-devices"  #: have the devices that the guest wants plugged in; waits for none. Repeat: harmless
    CLEAN_UP = "clean-up"  #: kill QEMU, prove it dead, free everything. Repeat: harmless
    NOTE_CRASH = "note-crash"  #: end what is left of its QEMU, mark the guest as crashed here; name, disks, token stay


AnyEffect = SourceEffect | DestinationEffect
