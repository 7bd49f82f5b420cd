"""What two QEMUs in memory share: the guest, the disk and the stream; and what can be said of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmferry.core.handover.states import Side


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
    POSTCOPY = "postcopy"  #: source: postcopy-active; destination: and paused
    BROKE = "broke"  #: postcopy-paused
    RECOVERED = "recovered"  #: postcopy-active again
    PAGES = "pages"  #: destination: completed after post-copy


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
    """The image, its lock, and its lease: the lock is QEMU's own, the lease is taken and given back for a QEMU."""

    holder: Side | None = Side.SOURCE
    refuses_destination: bool = False
    lessee: Side | None = Side.SOURCE
    leases_refuse_destination: bool = False  #: its lock manager is gone
    leases_hang: bool = False  #: the source's lock manager answers nothing

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

    def take_lease(self, side: Side) -> bool:
        """Take the lease for a QEMU; False when another has it, or there are none to be had. Idempotent."""
        refused = side is Side.DESTINATION and self.leases_refuse_destination
        if self.lessee is None and not refused:
            self.lessee = side
        return self.lessee is side

    def give_lease(self, side: Side) -> bool:
        """Give the lease back; False when nobody takes it now. Idempotent."""
        if self.lessee is side and side is Side.SOURCE and self.leases_hang:
            return False
        self.end_lease(side)
        return True

    def end_lease(self, side: Side) -> None:
        """Have the lease end with its QEMU."""
        if self.lessee is side:
            self.lessee = None


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
    converges: bool = True  #: the rounds end by themselves
    has_room: bool = True  #: the sockets take what is sent behind a cut: rounds that were ordered to end do end
    postcopy: bool = False  #: the switchover began post-copy
    #: 10.0: broken in post-copy's `device` the source hangs there, and behind its last page it fails; 7.2: `failed` and
    #: can go on, and paused
    strands: bool = True
    arrived: bool = False  #: the destination is postcopy-active
    owed: int = 16  #: pages that are missing at the destination; with few, all have come before the commit
    listens: bool = False  #: the destination waits for the recovered stream
    failed_late: bool = False  #: the source failed behind its last page; what was still on its way is gone
    unaware: Side | None = None  #: the stream was broken at the other side, behind a cut: nobody told this one
