"""What post-copy adds to a QEMU in memory: pages that are owed, streams that break and are recovered.

Source: QEMU 10.0.2 and 7.2.22, as in docs/design/postcopy.md.
"""

from __future__ import annotations

from collections.abc import Callable

from vmferry.core.handover.states import Side
from vmferry.core.migration import POSTCOPY, MigrationStatus, RunState
from vmferry.sim.shared import Fact, Stream

_M = MigrationStatus


class PostcopyQemu:
    """The part of a QEMU that knows of post-copy; SimQemu is the rest."""

    side: Side
    alive: bool
    status: MigrationStatus
    run: RunState
    postcopy_ordered: bool
    copy: int
    _stream: Stream
    _tell: Callable[[Fact], None]

    @property
    def is_crossing(self) -> bool:
        """Tell whether it is between pre-copy and post-copy, where nothing leads back."""
        return self.status is _M.DEVICE and self._stream.postcopy and self.side is Side.SOURCE

    @property
    def is_on_the_way(self) -> bool:
        """Tell whether the stream must hold now: it stands still for post-copy, and has not got there."""
        waits = self.status is _M.PRE_SWITCHOVER and self._stream.postcopy
        return waits or self.is_crossing or (self.status in POSTCOPY and not self._stream.arrived)

    @property
    def is_stranded(self) -> bool:
        """Tell whether the stream broke there, and QEMU 10.0 will never say another word about it."""
        return self.is_crossing and self._stream.broken and self._stream.strands

    @property
    def needs_other(self) -> bool:
        """Tell whether the guest in this QEMU misses pages that only the other one has."""
        return self.side is Side.DESTINATION and self.status in POSTCOPY

    @property
    def gave_up(self) -> bool:
        """Tell whether it can never run the guest again by itself."""
        return self.side is Side.SOURCE and (self.status in POSTCOPY or self.is_stranded)

    # -- orders over QMP ------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop the vCPUs; nothing but `cont` lets them run again."""
        if self.run is RunState.RUNNING:
            self.run = RunState.PAUSED

    def start_postcopy(self) -> None:
        """End the rounds; `migrate-continue` will begin post-copy."""
        self.postcopy_ordered = True

    def pause_postcopy(self) -> None:
        """Break the stream here; behind a cut the other side does not notice. Too late when its last word is here."""
        stream = self._stream
        if self.status is not _M.POSTCOPY_ACTIVE or self._last_word_is_here():
            return
        if not stream.broken:
            stream.broken = True
            if not stream.up:
                stream.unaware = Side.DESTINATION if self.side is Side.SOURCE else Side.SOURCE
        self._break_off()

    def recover_listen(self) -> bool:
        """Wait for the recovered stream; False when QEMU refuses."""
        if self.status is not _M.POSTCOPY_PAUSED:
            return False
        self._stream.listens = True
        return True

    def resume_stream(self) -> None:
        """Connect anew; where nobody listens, or nothing passes, it stays paused."""
        stream = self._stream
        if self.status is _M.POSTCOPY_PAUSED and stream.listens and stream.up:
            stream.broken, stream.listens, stream.unaware = False, False, None
            stream.rest_arrives = True
            self.status = _M.POSTCOPY_RECOVER

    # -- what it does by itself -----------------------------------------------------------------------------------

    def begin_postcopy(self) -> bool:
        """Cross from `device` to postcopy-active (source)."""
        stream = self._stream
        if stream.broken:
            if stream.strands:
                return False
            self.status = _M.FAILED
            if self.run is RunState.FINISH_MIGRATE:
                self.run = RunState.POSTMIGRATE
            self._tell(Fact.FAILED)
            return True
        if not stream.up:
            return False
        stream.sent, stream.copy = True, self.copy
        self.status = _M.POSTCOPY_ACTIVE
        self._tell(Fact.POSTCOPY)
        return True

    def send_pages(self) -> bool:
        """Send what is owed, and complete when the destination has said so (source)."""
        stream = self._stream
        if self.status is _M.POSTCOPY_PAUSED:
            return False
        if self._last_word_is_here():
            return self._complete()
        if self._meets_a_break():
            return True
        if not (stream.up and stream.arrived):
            return False
        return self._has_recovered() or self._send_page()

    def _send_page(self) -> bool:
        owed = self._stream.owed > 0
        self._stream.owed -= owed
        return owed

    def receive_pages(self) -> bool:
        """Complete when nothing is missing any more (destination)."""
        stream = self._stream
        if self.status is _M.POSTCOPY_PAUSED:
            if stream.listens or stream.broken:
                return False
            self.status = _M.POSTCOPY_RECOVER  # the source has connected
            return True
        if self._last_word_is_here():
            self.status, stream.loaded = _M.COMPLETED, True
            self._tell(Fact.PAGES)
            return True
        return self._meets_a_break() or (stream.up and self._has_recovered())

    def _last_word_is_here(self) -> bool:
        """Tell whether all that was missing has reached this side, or will, whatever becomes of the stream."""
        stream = self._stream
        said = stream.loaded if self.side is Side.SOURCE else not stream.owed
        return said and stream.up and (stream.rest_arrives or not stream.broken) and stream.unaware is not self.side

    def _meets_a_break(self) -> bool:
        if not self._stream.broken or self._stream.unaware is self.side:
            return False
        self._break_off()
        return True

    def _break_off(self) -> None:
        stream = self._stream
        if self.side is Side.SOURCE and stream.strands and stream.arrived and not stream.owed:
            stream.failed_late = True
            self._fail()  # and lets the vCPUs run, if it was QEMU itself that had stopped them
            return
        self.status = _M.POSTCOPY_PAUSED
        stream.listens = False
        self._tell(Fact.BROKE)

    def _has_recovered(self) -> bool:
        if self.status is not _M.POSTCOPY_RECOVER:
            return False
        self.status = _M.POSTCOPY_ACTIVE
        self._tell(Fact.RECOVERED)
        return True

    def _complete(self) -> bool:
        raise NotImplementedError

    def _fail(self) -> bool:
        raise NotImplementedError
