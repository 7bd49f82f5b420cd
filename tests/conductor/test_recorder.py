"""The recorder: one write per transition, and the arithmetic of ownership."""

from __future__ import annotations

import pytest

from vmferry.conductor.recorder import JournalRecorder, Parties, changed_token
from vmferry.core.errors import Broken
from vmferry.core.handover.events import AnyEvent, DestinationEvent, Happened, SourceEvent
from vmferry.core.handover.machine import Machine, TokenChange, Transition
from vmferry.core.handover.states import AnyState, DestinationState, Side, SourceState
from vmferry.core.ids import Epoch, GuestName, HandoverId, HostName
from vmferry.core.progress import StateEntered
from vmferry.core.units import Milliseconds
from vmferry.ports.store import Token
from vmferry.testing.conformance_store import make_guest_row, make_handover_row
from vmferry.testing.fake_journal import FakeJournal

A, B = HostName("host-a"), HostName("host-b")
PARTIES = Parties(HandoverId("h1"), GuestName("web-7"), A, B)


@pytest.mark.parametrize("running", [True, False])
def test_token_goes_and_stays(running: bool) -> None:
    """Release and acquisition are the same token, one epoch further; the intent changes no owner."""
    token = Token(Epoch(5), A, running)
    released = changed_token(token, TokenChange.RELEASE, PARTIES)
    assert released == changed_token(token, TokenChange.ACQUIRE, PARTIES) == Token(Epoch(6), B, running)
    assert changed_token(released, TokenChange.INTEND, PARTIES) == Token(Epoch(6), B, running, cont_intent=True)


@pytest.mark.parametrize("running", [True, False])
def test_token_comes_back(running: bool) -> None:
    """A return is one epoch further at both, runs as before, and forgets the intent."""
    token = Token(Epoch(6), B, running, cont_intent=True)
    returned = changed_token(token, TokenChange.RETURN, PARTIES)
    assert returned == changed_token(token, TokenChange.TAKE_BACK, PARTIES) == Token(Epoch(7), A, running)


def test_claim_does_not_run() -> None:
    """A guest that a person claimed is here, and stands."""
    assert changed_token(Token(Epoch(6), B, running=True), TokenChange.CLAIM, PARTIES) == Token(Epoch(7), A, False)


def make_recorder(journal: FakeJournal, side: Side, told: list[StateEntered]) -> JournalRecorder:
    """Return a recorder whose clock ticks with each reading."""
    clock = iter(range(100))
    return JournalRecorder(side, PARTIES, journal, told.append, lambda: Milliseconds(float(next(clock))))


def test_commit_is_one_write() -> None:
    """Event, state and token of the commit stand after one write, and the hand-over is not finished by it."""
    journal = FakeJournal()
    journal.put_guest(make_guest_row())
    journal.open_handover(make_handover_row())
    journal.calls.clear()
    told: list[StateEntered] = []
    recorder = make_recorder(journal, Side.SOURCE, told)
    machine = Machine(Side.SOURCE, SourceState.LOADED)
    happened = Happened(SourceEvent.OWNERSHIP_RELEASED)
    transition = machine.handle(happened)
    recorder.record(happened, transition)
    assert journal.calls == ["append"]
    assert told == []
    row, guest = journal.handover(PARTIES.handover, "source"), journal.guest(PARTIES.guest)
    assert row is not None
    assert guest is not None
    assert (row.state, row.finished) == ("committed", False)
    assert (guest.token.owner, guest.token.epoch) == (B, make_guest_row().token.epoch + 1)
    recorder.entered(happened, transition)
    assert [(event.state, event.owner) for event in told] == [("committed", B)]


def test_commit_without_the_guest_is_refused() -> None:
    """Ownership never moves without a token to write: nothing is journalled."""
    journal = FakeJournal()
    journal.open_handover(make_handover_row())
    recorder = make_recorder(journal, Side.SOURCE, [])
    happened = Happened(SourceEvent.OWNERSHIP_RELEASED)
    with pytest.raises(Broken, match="not in the journal"):
        recorder.record(happened, Machine(Side.SOURCE, SourceState.LOADED).handle(happened))
    assert list(journal.events(PARTIES.handover, "source")) == []


def test_each_state_is_told_with_its_own_time() -> None:
    """States that are told late are told with the moment at which each was durable."""
    journal = FakeJournal()
    journal.put_guest(make_guest_row())
    journal.open_handover(make_handover_row())
    told: list[StateEntered] = []
    recorder = make_recorder(journal, Side.SOURCE, told)
    machine = Machine(Side.SOURCE, SourceState.SOURCE_COMPLETED)
    happened = [Happened(SourceEvent.DESTINATION_LOADED), Happened(SourceEvent.OWNERSHIP_RELEASED)]
    transitions = [(one, machine.handle(one)) for one in happened]
    for one, transition in transitions:
        recorder.record(one, transition)
    for one, transition in transitions:
        recorder.entered(one, transition)
    assert [(event.state, event.at_ms) for event in told] == [("loaded", 0.0), ("committed", 1.0)]


def test_other_events_leave_the_row_alone() -> None:
    """An event that moves no ownership does not even read the guest."""
    journal = FakeJournal()
    journal.open_handover(make_handover_row(side="destination"))
    happened = Happened(DestinationEvent.QEMU_LISTENS)
    transition = Machine(Side.DESTINATION, DestinationState.PREPARING).handle(happened)
    make_recorder(journal, Side.DESTINATION, []).record(happened, transition)
    row = journal.handover(PARTIES.handover, "destination")
    assert row is not None
    assert row.state == "receiving"


def passed(side: Side, state: AnyState, *kinds: AnyEvent) -> list[tuple[Happened, Transition]]:
    """Return what the events do, one after the other."""
    machine = Machine(side, state)
    return [(happened, machine.handle(happened)) for happened in map(Happened, kinds)]


def test_deferred_entry_is_written_with_the_next() -> None:
    """Acquisition and intent stand after one write, in order; before it the token is where it was."""
    journal = FakeJournal()
    journal.put_guest(make_guest_row())
    journal.open_handover(make_handover_row(side="destination"))
    before = journal.guest(GuestName("web-7"))
    assert before is not None
    journal.calls.clear()
    recorder = make_recorder(journal, Side.DESTINATION, [])
    first, second = passed(
        Side.DESTINATION, DestinationState.LOADED, DestinationEvent.COMMIT_RECEIVED, DestinationEvent.INTENT_RECORDED
    )
    recorder.record(*first)
    assert journal.calls == []
    assert journal.guest(GuestName("web-7")) == before
    recorder.record(*second)
    assert journal.calls == ["append"]
    assert [row.state for row in journal.events(PARTIES.handover, "destination")] == ["acquired", "starting"]
    after = journal.guest(GuestName("web-7"))
    assert after is not None
    assert after.token == Token(Epoch(before.token.epoch + 1), B, before.token.running, cont_intent=True)


def test_what_was_kept_survives_a_refused_write() -> None:
    """A write that the journal refuses keeps what was deferred: it is written with the next one, once."""
    journal = FakeJournal()
    journal.put_guest(make_guest_row())
    journal.open_handover(make_handover_row())
    recorder = make_recorder(journal, Side.SOURCE, [])
    first, second = passed(
        Side.SOURCE, SourceState.SOURCE_COMPLETED, SourceEvent.DESTINATION_LOADED, SourceEvent.OWNERSHIP_RELEASED
    )
    recorder.record(*first)
    for write in (recorder.write_down, lambda: recorder.record(*second)):
        journal.fail_next = Broken("disk is full")
        with pytest.raises(Broken):
            write()
        assert journal.events(PARTIES.handover, "source") == []
    recorder.record(*second)
    recorder.write_down()
    assert [row.state for row in journal.events(PARTIES.handover, "source")] == ["loaded", "committed"]
