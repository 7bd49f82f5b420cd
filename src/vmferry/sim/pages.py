"""Post-copy at both agents in memory: how its orders are carried out, one look at a time.

Nobody tells an agent that a link is dead; here it looks at the network itself, whenever it asks again, for the time
that passes without an answer.
"""

from __future__ import annotations

from vmferry.core.handover.events import DestinationEvent, SourceEvent
from vmferry.core.handover.states import DestinationState, Side, SourceState
from vmferry.core.migration import POSTCOPY, MigrationStatus
from vmferry.sim.agent import SimAgent
from vmferry.sim.network import Word
from vmferry.sim.qemu import SimQemu

_E, _S = SourceEvent, SourceState
_F, _T = DestinationEvent, DestinationState
_M = MigrationStatus

#: States of a destination that misses no page.
_WHOLE = (_T.LOADED, _T.ACQUIRED, _T.STARTING, _T.RUNNING)
FOLLOWING = (_S.POSTCOPY_COMMITTED, _S.POSTCOPY_RUNNING, _S.POSTCOPY_PAUSED)
FETCHING = (_T.POSTCOPY_LOADED, _T.POSTCOPY_STARTING, _T.POSTCOPY_RUNNING)


class SourcePages:
    """The source's part.

    Args:
        agent: whose.
    """

    def __init__(self, agent: SimAgent) -> None:
        self._agent = agent

    @property
    def _process(self) -> SimQemu | None:
        qemu = self._agent.qemu
        return qemu if qemu is not None and qemu.alive else None

    def cross(self) -> None:
        """Look at the own QEMU, and ask the destination."""
        qemu = self._process
        if qemu is None:
            return
        if qemu.status in (_M.FAILED, _M.CANCELLED):
            self._agent.post(_E.STREAM_FAILED, only_in=_S.POSTCOPY_CROSSING)
        elif qemu.status is _M.COMPLETED:
            self._agent.post(_E.SOURCE_COMPLETED, only_in=_S.POSTCOPY_CROSSING)
        else:
            self._agent.say(Word.ASK_CROSSING)

    def miss_answer_crossing(self) -> None:
        """Give up while there is a way back: nobody answers, and the guest stands still."""
        qemu, network = self._process, self._agent.network
        answers = not network.late if network.up else network.brief
        if (network.refuses(Side.DESTINATION) or not answers) and qemu and qemu.status is _M.PRE_SWITCHOVER:
            self._agent.post(_E.STREAM_FAILED, only_in=_S.POSTCOPY_CROSSING)

    def hear_crossing(self, word: Word) -> None:
        """Take the destination's answer, beside what the own QEMU says now."""
        qemu = self._process
        if qemu is None:
            return
        if word is Word.FAILED:
            if qemu.status is _M.PRE_SWITCHOVER:
                self._agent.post(_E.STREAM_FAILED, only_in=_S.POSTCOPY_CROSSING)
            elif qemu.gave_up:
                self._agent.post(_E.DESTINATION_FAILED, only_in=_S.POSTCOPY_CROSSING)
        elif word is Word.RECEIVING and qemu.status is _M.PRE_SWITCHOVER:
            qemu.migrate_continue()
        elif word in (Word.POSTCOPY_LOADED, Word.LOADED) and qemu.status in (*POSTCOPY, _M.COMPLETED):
            self._agent.post(_E.OWNERSHIP_RELEASED, only_in=_S.POSTCOPY_CROSSING)

    def follow(self) -> None:
        """Look at the own QEMU, and tell the destination what it says."""
        qemu = self._process
        if qemu is None:
            self._agent.say(Word.SOURCE_GONE)
        elif qemu.status in (_M.FAILED, _M.CANCELLED):
            qemu.kill()
        elif qemu.status is _M.COMPLETED:
            self._agent.post(_E.SOURCE_COMPLETED)
        elif qemu.status is _M.POSTCOPY_PAUSED:
            self._agent.post(_E.STREAM_BROKE, only_in=_S.POSTCOPY_RUNNING)
            self._agent.say(Word.LISTEN)
        else:
            self._agent.post(_E.STREAM_RECOVERED, only_in=_S.POSTCOPY_PAUSED)
            self._agent.say(Word.ASK_PAGES)

    def miss_answers(self) -> None:
        """Break a stream that stands still behind a cut."""
        if not self._agent.network.up and self._process is not None:
            self._process.pause_postcopy()

    def hear_following(self, word: Word) -> None:
        """Take the destination's answer."""
        if word is Word.PAGES:
            self._agent.post(_E.PAGES_ARRIVED)
        elif word is Word.LISTENS and self._process is not None:
            self._process.resume_stream()
        elif word is Word.PAUSED and self._process is not None:
            self._process.pause_postcopy()


class DestinationPages:
    """The destination's part.

    Args:
        agent: whose.
    """

    def __init__(self, agent: SimAgent) -> None:
        self._agent = agent
        self.source_is_gone = False

    @property
    def _process(self) -> SimQemu | None:
        qemu = self._agent.qemu
        return qemu if qemu is not None and qemu.alive else None

    def look(self) -> None:
        """Ask the own QEMU what its events may have told."""
        qemu = self._process
        if qemu is None:
            self._agent.post(_F.QEMU_DIED)
        elif qemu.status is _M.COMPLETED:
            self._agent.post(_F.PAGES_COMPLETED)
        elif self.source_is_gone:
            qemu.pause_postcopy()
            if qemu.status is _M.POSTCOPY_PAUSED:
                self._agent.post(_F.SOURCE_GONE)

    def miss_answers(self) -> None:
        """Have this side alone notice that a link is dead, as its kernel may."""
        if not self._agent.network.up and self._process is not None:
            self._process.pause_postcopy()

    def answer_crossing(self) -> None:
        """Say how the arrival stands before the commit."""
        words = {_T.POSTCOPY_LOADED: Word.POSTCOPY_LOADED, _T.LOADED: Word.LOADED}
        words |= dict.fromkeys((_T.DISCARDING, _T.DISCARDED), Word.FAILED)
        if self._process is not None and self._process.status is not _M.FAILED:
            words[_T.RECEIVING] = Word.RECEIVING
        state = self._agent.state
        if isinstance(state, DestinationState) and state in words:
            self._agent.say(words[state])

    def answer_following(self, word: Word) -> None:
        """Take what the source says of its QEMU, and answer how this one stands."""
        if self._agent.state in _WHOLE:
            self._agent.say(Word.PAGES)
        elif self._agent.state is _T.LOST:
            self._agent.say(Word.LOST)
        elif self._agent.state in FETCHING and self._process is not None:
            self._go_on(self._process, word)

    def _go_on(self, qemu: SimQemu, word: Word) -> None:
        if word is Word.SOURCE_GONE:
            self.source_is_gone = True
            if self._agent.state is not _T.POSTCOPY_LOADED:
                self.look()
        elif word is Word.ASK_PAGES and qemu.status is _M.POSTCOPY_PAUSED:
            self._agent.say(Word.PAUSED)
        elif word is Word.LISTEN:
            qemu.pause_postcopy()
            if qemu.recover_listen():
                self._agent.say(Word.LISTENS)
