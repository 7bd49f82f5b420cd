"""The destination's agent in memory: how each of its orders is carried out, one small step per call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from vmferry.core.handover.effects import DestinationEffect
from vmferry.core.handover.events import AnyEvent, DestinationEvent
from vmferry.core.handover.machine import Transition
from vmferry.core.handover.states import AnyState, DestinationState, Side
from vmferry.core.migration import POSTCOPY, MigrationStatus, RunState
from vmferry.sim.agent import SimAgent
from vmferry.sim.network import Network, Word
from vmferry.sim.pages import FETCHING, DestinationPages
from vmferry.sim.qemu import Disk, Fact, Guest, SimQemu

_F, _T, _Y = DestinationEvent, DestinationState, DestinationEffect

_WATCHED = (_T.RECEIVING, _T.LOADED, _T.POSTCOPY_LOADED)
#: what the destination says of itself when it is asked
_LOADED_WORDS: Mapping[AnyState | None, Word] = {
    _T.LOADED: Word.LOADED,
    _T.DISCARDING: Word.FAILED,
    _T.DISCARDED: Word.FAILED,
}
_COMMIT_WORDS: Mapping[AnyState | None, Word] = {
    _T.POSTCOPY_RUNNING: Word.RUNNING,
    _T.RUNNING: Word.RUNNING,
    _T.RETURNED: Word.RETURNED,
    _T.LOST: Word.LOST,
}


class SimDestination(SimAgent):
    """The host that receives."""

    events: ClassVar[Mapping[Fact, AnyEvent]] = {
        Fact.COMPLETED: _F.STREAM_LOADED,
        Fact.FAILED: _F.STREAM_FAILED,
        Fact.EXITED: _F.QEMU_DIED,
        Fact.POSTCOPY: _F.POSTCOPY_LOADED,
        Fact.PAGES: _F.PAGES_COMPLETED,
    }
    died = _F.QEMU_DIED
    restarted = _F.AGENT_RESTARTED

    def __init__(self, network: Network, guest: Guest, disk: Disk, start_qemu: Callable[[], SimQemu]) -> None:
        super().__init__(Side.DESTINATION, network)
        self._guest = guest
        self._disk = disk
        self._start_qemu = start_qemu
        self._pages = DestinationPages(self)
        self.acts = {
            _Y.PREPARE: self._prepare,
            _Y.WATCH: self._watch,
            _Y.RECORD_INTENT: self._record_intent,
            _Y.START: self._start,
            _Y.AWAIT_PAGES: self._await_pages,
            _Y.ANNOUNCE: lambda: True,
            _Y.GIVE_DEVICES: lambda: True,
            _Y.CLEAN_UP: self._clean_up,
            _Y.NOTE_CRASH: self._note_crash,
        }

    # -- messages -------------------------------------------------------------------------------------------------

    def receive(self, word: Word) -> None:
        """Take an order or a question of the source's."""
        if word is Word.RESERVE:
            self._receive_reserve()
        elif self.machine is None:
            return
        elif word is Word.ASK_LOADED:
            self._answer(_LOADED_WORDS)
        elif word is Word.COMMIT:
            self.post(_F.COMMIT_RECEIVED)
            self._answer(_COMMIT_WORDS)
        elif word is Word.ASK_CROSSING:
            self._pages.answer_crossing()
        elif word in (Word.ASK_PAGES, Word.LISTEN, Word.SOURCE_GONE):
            self._pages.answer_following(word)
        elif word is Word.DISCARD:
            self.post(_F.DISCARD_RECEIVED)

    def _receive_reserve(self) -> None:
        """Open once; the same hand-over again gets the same answer."""
        if not self.journal.opened:
            self.open()
        elif self.state in (_T.DISCARDING, _T.DISCARDED):
            self.say(Word.REFUSED)
        elif self.state is not _T.PREPARING:
            self.say(Word.RESERVED)

    def _answer(self, words: Mapping[AnyState | None, Word]) -> None:
        if self.state in words:
            self.say(words[self.state])

    def entered(self, transition: Transition) -> None:
        """Answer the reservation that was waiting."""
        if transition.before is _T.PREPARING:
            self.say(Word.RESERVED if transition.after is _T.RECEIVING else Word.REFUSED)
        if transition.after is _T.POSTCOPY_LOADED:
            self._pages.answer_crossing()  # the source's question was waiting for this
        if transition.after is _T.POSTCOPY_RUNNING and transition.before is _T.POSTCOPY_STARTING:
            self._answer(_COMMIT_WORDS)

    def poll(self) -> None:
        """Ask the source what became of it."""
        if _Y.WATCH in self.lasting and self.state in _WATCHED:
            self.say(Word.ASK_VERDICT)
        if self.state in FETCHING:
            self._pages.miss_answers()
        if self.state in (_T.POSTCOPY_STARTING, _T.POSTCOPY_RUNNING):
            self._pages.look()
        if self.state is _T.POSTCOPY_STARTING and _Y.START in self.lasting:
            self._start()

    def source_fenced(self) -> None:
        """Take a person's word that the source is off."""
        self.post(_F.SOURCE_FENCED)
        self._pages.source_is_gone = True
        if self.state in (_T.POSTCOPY_STARTING, _T.POSTCOPY_RUNNING):
            self._pages.look()

    def kill(self) -> None:
        """Die, and forget what was heard."""
        super().kill()
        self._pages.source_is_gone = False

    # -- orders ---------------------------------------------------------------------------------------------------

    @property
    def _process(self) -> SimQemu | None:
        return self.qemu if self.qemu is not None and self.qemu.alive else None

    def _prepare(self) -> bool:
        if self.qemu is None:
            self.qemu = self._start_qemu()
            return False
        self.post(_F.QEMU_LISTENS)
        return True

    def _watch(self) -> bool:
        """Ask first: the agent may have been away."""
        self.lasting.add(_Y.WATCH)
        qemu = self._process
        if qemu is None:
            self.post(_F.QEMU_DIED)
        elif qemu.status is MigrationStatus.COMPLETED and self.state is _T.RECEIVING:
            self.post(_F.STREAM_LOADED, only_in=_T.RECEIVING)
        elif qemu.status in POSTCOPY and self.state is _T.RECEIVING:
            self.post(_F.POSTCOPY_LOADED)
        elif qemu.status is MigrationStatus.COMPLETED:
            self.post(_F.PAGES_COMPLETED)
        return True

    def _await_pages(self) -> bool:
        self.lasting.add(_Y.AWAIT_PAGES)
        self._pages.look()
        return True

    def _record_intent(self) -> bool:
        """A QEMU found dead now never ran. The intent joins the queue: something may come before it."""
        if self._process is None:
            self.post(_F.QEMU_DIED)
        elif self._disk.take_lease(Side.DESTINATION):
            self.post(_F.INTENT_RECORDED)
        else:
            self.post(_F.START_REFUSED, only_in=_T.ACQUIRED)
        return True

    def _start(self) -> bool:
        qemu = self._process
        if qemu is None:
            self.post(_F.QEMU_DIED)
        elif qemu.run in (RunState.RUNNING, RunState.SHUTDOWN):
            self.post(_F.GUEST_STARTED)
        elif not self._disk.take_lease(Side.DESTINATION):
            self._start_refused()
        elif not self._guest.runs:
            self.post(_F.GUEST_STARTED)
        elif self.order_cont():
            return False
        else:
            self._start_refused()
        return True

    def _start_refused(self) -> None:
        if self.state is _T.POSTCOPY_STARTING:
            self.lasting.add(_Y.START)  # the source cannot take it back: tried again until it works
        else:
            self.post(_F.START_REFUSED)

    def _clean_up(self) -> bool:
        if self._process is not None:
            self._process.kill()
            return False
        self.post(_F.CLEANED_UP)
        return True

    def _note_crash(self) -> bool:
        if self._process is not None:
            self._process.kill()
        return True
