"""The source's agent in memory: how each of its orders is carried out, one small step per call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vmferry.core.handover.effects import SourceEffect
from vmferry.core.handover.events import AnyEvent, SourceEvent
from vmferry.core.handover.states import Side, SourceState
from vmferry.core.migration import POSTCOPY, MigrationStatus, RunState
from vmferry.sim.agent import SimAgent, Token
from vmferry.sim.network import Network, Word
from vmferry.sim.pages import FOLLOWING, SourcePages
from vmferry.sim.qemu import Disk, Fact, Guest, SimQemu, Violation

_E, _S, _X = SourceEvent, SourceState, SourceEffect

_WAITS = (
    _S.PRE_SWITCHOVER,
    _S.SWITCHOVER,
    _S.SOURCE_COMPLETED,
    _S.DESTINATION_LOADED,
    _S.ORPHANED,
)
_HEARD: Mapping[Word, SourceEvent] = {
    Word.RESERVED: _E.DESTINATION_RESERVED,
    Word.REFUSED: _E.DESTINATION_REFUSED,
    Word.LOADED: _E.DESTINATION_LOADED,
    Word.FAILED: _E.DESTINATION_FAILED,
    Word.RUNNING: _E.DESTINATION_RUNNING,
    Word.RETURNED: _E.DESTINATION_RETURNED,
    Word.LOST: _E.DESTINATION_LOST,
}
_PAGE_WORDS = (Word.PAGES, Word.LISTENS, Word.PAUSED)


class SimSource(SimAgent):
    """The conductor's host."""

    events: ClassVar[Mapping[Fact, AnyEvent]] = {
        Fact.BEGAN: _E.PRECOPY_BEGAN,
        Fact.PAUSED: _E.SOURCE_PAUSED,
        Fact.COMPLETED: _E.SOURCE_COMPLETED,
        Fact.FAILED: _E.STREAM_FAILED,
        Fact.ENDED: _E.GUEST_ENDED,
        Fact.EXITED: _E.SOURCE_QEMU_DIED,
        Fact.BROKE: _E.STREAM_BROKE,
        Fact.RECOVERED: _E.STREAM_RECOVERED,
    }
    died = _E.SOURCE_QEMU_DIED
    restarted = _E.AGENT_RESTARTED

    def __init__(
        self, network: Network, guest: Guest, disk: Disk, *, postcopy: bool = False, devices: bool = False
    ) -> None:
        super().__init__(Side.SOURCE, network)
        self._guest = guest
        self._disk = disk
        self._postcopy = postcopy
        self._devices = devices
        self._pages = SourcePages(self)
        self.journal.token = Token(0, Side.SOURCE)
        self.acts = {
            _X.CHECK: self._check,
            _X.RESERVE: self._reserve,
            _X.SEND: self._send,
            _X.DETACH_DEVICES: self._detach_devices,
            _X.GIVE_DEVICES: self._give_devices,
            _X.STEER: self._steer,
            _X.CONTINUE: self._continue,
            _X.BEGIN_POSTCOPY: self._begin_postcopy,
            _X.CROSS: self._cross,
            _X.FOLLOW_PAGES: self._follow_pages,
            _X.AWAIT_DESTINATION: self._await_destination,
            _X.RELEASE: self._release,
            _X.TELL_DESTINATION: self._tell_destination,
            _X.END_SOURCE: self._end_source,
            _X.DISCARD: self._discard,
            _X.RESTORE: self._restore,
            _X.TAKE_BACK: self._take_back,
            _X.NOTE_CRASH: self._note_crash,
            _X.REPORT: lambda: True,
        }

    # -- messages -------------------------------------------------------------------------------------------------

    def receive(self, word: Word) -> None:
        """Take a message: a word of the destination's, or its question."""
        if word is Word.ASK_VERDICT:
            self._give_verdict()
        elif self.machine is None:
            return
        elif self.state is _S.POSTCOPY_CROSSING:
            self._pages.hear_crossing(word)
        elif word in _PAGE_WORDS:
            if self.state in FOLLOWING:
                self._pages.hear_following(word)
        elif word in _HEARD:
            self.post(_HEARD[word])

    def _give_verdict(self) -> None:
        token = self.journal.token
        if token is not None and token.owner is Side.DESTINATION:
            self._commit()
        elif self.state in (_S.ABORTED, _S.CRASHED):
            self.say(Word.DISCARD)

    def hear(self, fact: Fact) -> None:
        """Take what QEMU says; whoever awaits post-copy asks the destination again at once."""
        super().hear(fact)
        if fact is Fact.POSTCOPY and self.state is _S.POSTCOPY_CROSSING:
            self._pages.cross()

    def poll(self) -> None:
        """Ask the destination again."""
        if _X.AWAIT_DESTINATION in self.lasting and self.state in _WAITS:
            self.say(Word.ASK_LOADED)
        if _X.TELL_DESTINATION in self.lasting and self.state in (_S.COMMITTED, _S.POSTCOPY_COMMITTED):
            self._commit()
        if _X.CROSS in self.lasting and self.state is _S.POSTCOPY_CROSSING:
            self._pages.miss_answer_crossing()
            self._pages.cross()
        if _X.FOLLOW_PAGES in self.lasting and self.state in FOLLOWING:
            self._pages.miss_answers()
            self._pages.follow()

    # -- orders ---------------------------------------------------------------------------------------------------

    @property
    def _process(self) -> SimQemu | None:
        return self.qemu if self.qemu is not None and self.qemu.alive else None

    def _check(self) -> bool:
        self.post(_E.CHECK_FAILED if self.network.refuses(Side.DESTINATION) else _E.CHECK_PASSED)
        return True

    def _reserve(self) -> bool:
        """Ask once: whoever refuses the connection has refused the guest."""
        if self.network.refuses(Side.DESTINATION):
            self.post(_E.DESTINATION_REFUSED)
        else:
            self.say(Word.RESERVE)
        return True

    def _send(self) -> bool:
        if self._process is not None and self._process.devices:
            self.post(_E.DEVICES_PLUGGED)
        elif self.network.loud:
            self.post(_E.STREAM_FAILED)  # QEMU cannot connect and refuses the order
        elif self._process is not None:
            self._process.migrate()
        return True

    def _detach_devices(self) -> bool:
        if self._process is not None:
            self._process.devices = False
            self.post(_E.DEVICES_DETACHED)
        return True

    def _give_devices(self) -> bool:
        if self._process is not None:
            self._process.devices = self._devices
        return True

    def _steer(self) -> bool:
        """Ask first: the agent may have been away."""
        qemu = self._process
        if qemu is None:
            return True
        if qemu.run is RunState.SHUTDOWN:
            self.post(_E.GUEST_ENDED)
        elif qemu.status is MigrationStatus.PRE_SWITCHOVER:
            self.post(_E.SOURCE_PAUSED)
        elif not qemu.under_way or qemu.status is MigrationStatus.DEVICE:
            self.post(_E.STREAM_FAILED)
        elif self._postcopy and qemu.status is MigrationStatus.ACTIVE:
            self.post(_E.POSTCOPY_ORDERED, only_in=_S.PRECOPY)
        return True

    def _begin_postcopy(self) -> bool:
        if self._process is not None:
            self._process.stop()
            self._process.start_postcopy()
        return True

    def _cross(self) -> bool:
        self.lasting.add(_X.CROSS)
        self._pages.cross()
        return True

    def _follow_pages(self) -> bool:
        self.lasting.add(_X.FOLLOW_PAGES)
        self._pages.follow()
        return True

    def _continue(self) -> bool:
        if self._process is not None:
            self.replies.append(_E.SWITCHOVER_BEGAN if self._process.migrate_continue() else _E.STREAM_FAILED)
        return True

    def _await_destination(self) -> bool:
        self.lasting.add(_X.AWAIT_DESTINATION)
        self.say(Word.ASK_LOADED)
        return True

    def _release(self) -> bool:
        """Look once more, then commit. The commit joins the queue: something may come before it."""
        qemu = self._process
        if qemu is not None and (qemu.status is not MigrationStatus.COMPLETED or qemu.running):
            raise Violation(f"release while the source's QEMU is {qemu.status} and {qemu.run}")
        self.post(_E.OWNERSHIP_RELEASED)
        return True

    def _tell_destination(self) -> bool:
        self.lasting.add(_X.TELL_DESTINATION)
        self._commit()
        return True

    def _commit(self) -> None:
        """Give the lease back, then hand the token over; a lease that cannot be given back holds the guest."""
        if self._disk.give_lease(Side.SOURCE):
            self.say(Word.COMMIT)

    def _end_source(self) -> bool:
        if self._process is not None:
            self._process.kill()
            return False
        self.post(_E.TIDIED)
        return True

    def _discard(self) -> bool:
        self.say(Word.DISCARD)
        return True

    def _restore(self) -> bool:
        qemu = self._process
        if qemu is not None and qemu.under_way:
            qemu.migrate_cancel()
            return False
        return self._go_on(qemu)

    def _take_back(self) -> bool:
        """Start what came back; a QEMU that is in post-copy for good cannot run it, whatever its agent is told."""
        qemu = self._process
        if qemu is not None and qemu.status in POSTCOPY:
            qemu.pause_postcopy()
            if qemu.status is MigrationStatus.POSTCOPY_PAUSED:
                qemu.kill()
            return False
        if qemu is not None and not self._disk.take_lease(Side.SOURCE):
            raise Violation("the token came back, and the lease did not")
        return self._go_on(qemu)

    def _go_on(self, qemu: SimQemu | None) -> bool:
        """Ask first, `cont` if need be, and ask again."""
        if qemu is None:
            self.post(_E.SOURCE_QEMU_DIED)
            return True
        if self._guest.runs and qemu.run not in (RunState.RUNNING, RunState.SHUTDOWN):
            self.order_cont()
            return False
        self.post(_E.SOURCE_RESUMED)
        return True

    def _note_crash(self) -> bool:
        if self._process is not None:
            self._process.kill()
        return True
