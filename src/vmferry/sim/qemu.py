"""A QEMU in memory, as far as a hand-over sees it, and the guest, the disk and the stream that two of them share.

It does what the real one was seen to do, the unpleasant parts above all: it restarts its vCPUs by itself when the
stream is cut in `device`, it stays in `pre-switchover` for ever, it accepts a `cont` that comes too early, it takes
image locks at `cont` and drops them in `device`. Every step is one call of `advance`: anything can happen between two.

Source: QEMU 10.0.2, as in design/handover.md.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from vmferry.core.handover.states import Side
from vmferry.core.migration import MigrationStatus, RunState


class Violation(AssertionError):
    """A promise of the hand-over was broken."""


class Fact(enum.Enum):
    """What a QEMU tells the agent that listens; told to nobody when none does."""

    BEGAN = "began"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    ENDED = "ended"
    EXITED = "exited"


class Fate(enum.Enum):
    """What became of the guest."""

    ONE = "one"  #: exactly one QEMU runs it (or stands, if it stood before)
    HELD = "held"  #: a QEMU holds it, nobody runs it yet
    LOST = "lost"  #: no QEMU holds it any more


@dataclass
class Guest:
    """The guest itself; `present` counts how often its state moved on: a copy with a smaller number is the past."""

    runs: bool = True  #: it ran when the hand-over began, else it was paused
    present: int = 0
    ended: bool = False  #: it powered itself off


@dataclass
class Disk:
    """The image and its lock."""

    holder: Side | None = Side.SOURCE
    refuses_destination: bool = False

    def take(self, side: Side) -> bool:
        """Lock the image for a QEMU; False when it is locked by another, or the storage refuses."""
        if self.holder not in (None, side) or (side is Side.DESTINATION and self.refuses_destination):
            return False
        self.holder = side
        return True

    def drop(self, side: Side) -> None:
        """Give the lock back."""
        if self.holder is side:
            self.holder = None


@dataclass
class Stream:
    """The migration's connection. Without a return path the source completes as soon as everything is sent."""

    return_path: bool = True
    up: bool = True  #: packets pass now
    sent: bool = False
    loaded: bool = False
    broken: bool = False
    rest_arrives: bool = True  #: what was sent before the break is still read by the destination
    copy: int = -1


_UNDER_WAY = (MigrationStatus.SETUP, MigrationStatus.ACTIVE, MigrationStatus.PRE_SWITCHOVER, MigrationStatus.DEVICE)


class SimQemu:
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
        self._guest, self._disk, self._stream, self._tell = guest, disk, stream, tell
        self._resuming = False  #: it will restart its vCPUs by itself
        self._early_cont = False
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
        return self.status not in _UNDER_WAY and self._start()

    def kill(self) -> None:
        """Die."""
        if not self.alive:
            return
        self.alive = False
        self._disk.drop(self.side)
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
        return self.status is MigrationStatus.DEVICE and self._send_last()

    def _copy_rounds(self) -> bool:
        if self._stream.broken:
            return self._fail()
        if not self._stream.up:
            return False
        if self.status is MigrationStatus.SETUP:
            self.status = MigrationStatus.ACTIVE
            self._tell(Fact.BEGAN)
        else:
            self.status = MigrationStatus.PRE_SWITCHOVER
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
        if self.run is not RunState.INMIGRATE or self.status is MigrationStatus.FAILED:
            return False
        if stream.sent and (stream.rest_arrives or not stream.broken):
            self.copy, stream.loaded = stream.copy, True
            self.status, self.run = MigrationStatus.COMPLETED, RunState.PAUSED
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
        self._guest.present += 1
        self.copy = self._guest.present
        self.run = RunState.RUNNING
        return True
