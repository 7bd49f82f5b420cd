"""A QEMU in memory, as far as a hand-over sees it, and the guest, the disk and the stream that two of them share.

It does what the real one was seen to do, the unpleasant parts above all: it restarts its vCPUs by itself when the
stream is cut in `device`, it stays in `pre-switchover` for ever, it accepts a `cont` that comes too early, it takes
image locks at `cont` and drops them in `device`. What post-copy adds stands in postcopy.py. Every step is one call of
`advance`: anything can happen between two.

Source: QEMU 10.0.2, as in docs/handover.md.
"""

from __future__ import annotations

from collections.abc import Callable

from vmferry.core.handover.states import Side
from vmferry.core.migration import POSTCOPY, MigrationStatus, RunState
from vmferry.sim.postcopy import PostcopyQemu
from vmferry.sim.shared import Disk, Fact, Fate, Guest, Stream, Violation

__all__ = ["Disk", "Fact", "Fate", "Guest", "SimQemu", "Stream", "Violation"]

_UNDER_WAY = (MigrationStatus.SETUP, MigrationStatus.ACTIVE, MigrationStatus.PRE_SWITCHOVER, MigrationStatus.DEVICE)


class SimQemu(PostcopyQemu):
    """One QEMU process.

    Args:
        side: on whose host.
        guest: whose memory it holds, or will hold.
        disk: the shared image.
        stream: the connection to the other one.
        tell: takes what it says.
    """

    def __init__(self, side: Side, guest: Guest, disk: Disk, stream: Stream, tell: Callable[[Fact], None]) -> None:
        self.side = side
        self.alive = True
        self.status = MigrationStatus.NONE
        self.devices = False  #: it has devices of its host
        self._guest, self._disk, self._stream, self._tell = guest, disk, stream, tell
        self._resuming = False  #: it will restart its vCPUs by itself
        self._early_cont = False
        self.postcopy_ordered = False
        self.copy = guest.present if side is Side.SOURCE else -1
        self.run = RunState.INMIGRATE
        if side is Side.SOURCE:
            self.run = RunState.RUNNING if guest.runs else RunState.PAUSED

    @property
    def running(self) -> bool:
        """Tell whether its vCPUs run."""
        return self.alive and self.run is RunState.RUNNING

    @property
    def under_way(self) -> bool:
        """Tell whether a migration has begun and not said its last word."""
        return self.status in _UNDER_WAY or self._resuming

    # -- orders over QMP ------------------------------------------------------------------------------------------

    def migrate(self) -> None:
        """Start sending."""
        if self.devices:
            raise Violation("a guest that has devices of its host is sent")
        self.status = MigrationStatus.SETUP

    def migrate_continue(self) -> bool:
        """Leave pre-switchover; the disks go inactive."""
        if self.status is not MigrationStatus.PRE_SWITCHOVER:
            return False
        self.status = MigrationStatus.DEVICE
        self._disk.drop(self.side)
        return True

    def migrate_cancel(self) -> None:
        """Give up: at once before `device`, in `device` by closing the connection."""
        if self.status in POSTCOPY or self.is_crossing:
            raise Violation(f"cancel in post-copy's {self.status}: 10.0 hangs for ever, 7.2 starts a second copy")
        if self.status in _UNDER_WAY:
            self._stream.broken = True
            if self.status is not MigrationStatus.DEVICE:
                self.status = MigrationStatus.CANCELLED
                self._resuming = self._stands_still()

    def cont(self) -> bool:
        """Start the vCPUs; False when QEMU refuses. During loading it is accepted, and obeyed at the end of it."""
        if self.run is RunState.INMIGRATE:
            self._early_cont = True
            return True
        fetches = self.side is Side.DESTINATION and self.status is MigrationStatus.POSTCOPY_ACTIVE
        return (fetches or self.status not in (*_UNDER_WAY, *POSTCOPY)) and self._start()

    def kill(self) -> None:
        """Die."""
        if not self.alive:
            return
        self.alive = False
        self._disk.drop(self.side)
        self._disk.end_lease(self.side)
        if self.status is not MigrationStatus.NONE or self.side is Side.DESTINATION:
            self._stream.broken = True
        self._tell(Fact.EXITED)

    # -- what it does by itself -----------------------------------------------------------------------------------

    def power_off(self) -> bool:
        """Have the guest power itself off; False when it does not run."""
        if not self.running:
            return False
        self._guest.ended = True
        self.run = RunState.SHUTDOWN
        self._tell(Fact.ENDED)
        return True

    def advance(self) -> bool:
        """Do the next thing; False when there is nothing to do."""
        if not self.alive:
            return False
        return self._load() if self.side is Side.DESTINATION else self._send()

    def _send(self) -> bool:
        if self._resuming:
            self._resuming = False
            self._start()
            return True
        if self.status in (MigrationStatus.SETUP, MigrationStatus.ACTIVE):
            return self._copy_rounds()
        if self.status in POSTCOPY:
            return self.send_pages()
        return self.status is MigrationStatus.DEVICE and (
            self.begin_postcopy() if self._stream.postcopy else self._send_last()
        )

    def _copy_rounds(self) -> bool:
        if self._stream.broken:
            return self._fail()
        ends_anyway = self.status is MigrationStatus.ACTIVE and self.postcopy_ordered and self._stream.has_room
        if not (self._stream.up or ends_anyway):
            return False
        if self.status is MigrationStatus.SETUP:
            self.status = MigrationStatus.ACTIVE
            self._tell(Fact.BEGAN)
        elif not (self._stream.converges or self.postcopy_ordered):
            return False
        else:
            self.status = MigrationStatus.PRE_SWITCHOVER
            self._stream.postcopy = self.postcopy_ordered  # ordered from now on, it comes too late
            if self.run is RunState.RUNNING:
                self.run = RunState.FINISH_MIGRATE
            self._tell(Fact.PAUSED)
        return True

    def _send_last(self) -> bool:
        stream = self._stream
        if stream.sent and not stream.return_path:
            return self._complete()
        if stream.broken:
            return self._fail()
        if not stream.up:
            return False
        if not stream.sent:
            stream.sent, stream.copy = True, self.copy
            return True
        return stream.loaded and self._complete()

    def _complete(self) -> bool:
        self.status = MigrationStatus.COMPLETED
        if self.run is RunState.FINISH_MIGRATE:
            self.run = RunState.POSTMIGRATE
        self._tell(Fact.COMPLETED)
        return True

    def _fail(self) -> bool:
        self.status = MigrationStatus.FAILED
        self._resuming = self._stands_still()
        self._tell(Fact.FAILED)  # before the vCPUs run again
        return True

    def _load(self) -> bool:
        stream = self._stream
        if self.status in POSTCOPY:
            return self.receive_pages()
        if self.run is not RunState.INMIGRATE or self.status is MigrationStatus.FAILED:
            return False
        if stream.sent and (stream.rest_arrives or not stream.broken):
            self.copy, self.run = stream.copy, RunState.PAUSED
            if stream.postcopy:
                self.status, stream.arrived = MigrationStatus.POSTCOPY_ACTIVE, True
                self._tell(Fact.POSTCOPY)
            else:
                self.status, stream.loaded = MigrationStatus.COMPLETED, True
                self._tell(Fact.COMPLETED)
            if self._early_cont:
                self._start()
            return True
        if not stream.broken:
            return False
        self.status = MigrationStatus.FAILED
        self._tell(Fact.FAILED)
        self.kill()
        return True

    def _stands_still(self) -> bool:
        return self.run is RunState.FINISH_MIGRATE

    def _start(self) -> bool:
        if self.run is RunState.RUNNING:
            return True
        if not self._disk.take(self.side):
            return False
        if self.copy != self._guest.present:
            raise Violation(f"QEMU at the {self.side} runs a copy of the past: {self.copy}, not {self._guest.present}")
        if self._disk.lessee is not self.side:
            raise Violation(f"QEMU at the {self.side} runs, and the lease of its disk is {self._disk.lessee}'s")
        self._guest.present += 1
        self.copy = self._guest.present
        self.run = RunState.RUNNING
        return True
