"""What a hypervisor says about a guest and its migration: plain facts in our units, whoever the hypervisor is.

A driver makes them at its edge; the core only reads them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds

_NO_BYTES = Bytes(0)
_STILL = BytesPerSecond(0)
_PAGE = Bytes(4096)


class RunState(enum.StrEnum):
    """Whether the vCPUs run, and if not why (QEMU's `RunState`, the ones we tell apart)."""

    RUNNING = "running"
    PAUSED = "paused"  #: stopped by order, or loaded and never started
    PRELAUNCH = "prelaunch"  #: started with -S, nothing loaded
    INMIGRATE = "inmigrate"  #: waiting for, or loading, an incoming stream
    FINISH_MIGRATE = "finish-migrate"  #: stopped for the last pages
    POSTMIGRATE = "postmigrate"  #: everything was sent; holds the whole guest, stopped
    SHUTDOWN = "shutdown"  #: the guest powered itself off (-no-shutdown keeps QEMU)
    PANICKED = "guest-panicked"
    IO_ERROR = "io-error"
    INTERNAL_ERROR = "internal-error"
    OTHER = "other"


class MigrationStatus(enum.StrEnum):
    """QEMU's `MigrationStatus`."""

    NONE = "none"
    SETUP = "setup"
    ACTIVE = "active"
    PRE_SWITCHOVER = "pre-switchover"
    DEVICE = "device"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    POSTCOPY_DEVICE = (
        "postcopy-device"  #: QEMU 10.2: device state is sent, the destination has not said yet that it loaded
    )
    POSTCOPY_ACTIVE = "postcopy-active"  #: source stopped for good, destination loaded; pages follow
    POSTCOPY_PAUSED = "postcopy-paused"  #: the stream broke; both wait until it is recovered
    POSTCOPY_RECOVER_SETUP = "postcopy-recover-setup"  #: source, 9.1 and later: connecting anew
    POSTCOPY_RECOVER = "postcopy-recover"  #: connected anew; they compare what has arrived
    WAIT_UNPLUG = "wait-unplug"
    OTHER = "other"


#: Both QEMUs hold a part of the guest: the loss of either loses it, and the source can never run it again.
POSTCOPY = frozenset(
    {
        MigrationStatus.POSTCOPY_ACTIVE,
        MigrationStatus.POSTCOPY_PAUSED,
        MigrationStatus.POSTCOPY_RECOVER_SETUP,
        MigrationStatus.POSTCOPY_RECOVER,
    }
)

#: The stream of a post-copy is broken: the destination's vCPUs wait for pages that cannot come.
POSTCOPY_BROKEN = POSTCOPY - {MigrationStatus.POSTCOPY_ACTIVE}


@dataclass(frozen=True, slots=True)
class MigrationSample:
    """One reading of a migration's progress; None is "QEMU did not say"."""

    status: MigrationStatus
    error: str | None = None
    rounds: int = 0  #: dirty-sync-count
    transferred_bytes: Bytes = _NO_BYTES  #: on the wire so far
    remaining_bytes: Bytes = _NO_BYTES
    total_bytes: Bytes = _NO_BYTES  #: the guest's RAM
    page_bytes: Bytes = _PAGE
    duplicate_pages: int = 0
    normal_pages: int = 0
    dirty_bytes_per_second: BytesPerSecond = _STILL  #: as QEMU measured it in the last round
    bandwidth: BytesPerSecond = _STILL
    total_ms: Milliseconds | None = None
    setup_ms: Milliseconds | None = None
    downtime_ms: Milliseconds | None = None
    expected_downtime_ms: Milliseconds | None = None
    throttle_percent: int | None = None  #: auto-converge's, as it is now
    postcopy_bytes: Bytes = _NO_BYTES  #: sent since post-copy began
    postcopy_requests: int = 0  #: pages that the destination asked for because a vCPU waited for them
    blocked_reasons: tuple[str, ...] = ()
