"""What libvirt says of a domain's job, as a reading of a migration in our units. Pure.

Source: libvirt include/libvirt/libvirt-domain.h (VIR_DOMAIN_JOB_*), src/qemu/qemu_migration_job.c; as 9.0 says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds
from vmferry.libvirt.facts import JobKind

#: A job that runs is `active`: libvirt does not say when the guest stands still for the last pages.
_STATUS = {
    JobKind.NONE: MigrationStatus.NONE,
    JobKind.BOUNDED: MigrationStatus.ACTIVE,
    JobKind.UNBOUNDED: MigrationStatus.ACTIVE,
    JobKind.COMPLETED: MigrationStatus.COMPLETED,
    JobKind.FAILED: MigrationStatus.FAILED,
    JobKind.CANCELLED: MigrationStatus.CANCELLED,
}
_KINDS = tuple(JobKind)
#: What a job is for, in libvirt's order (virDomainJobOperation).
_OPERATIONS = (
    *("of libvirt's", "its start", "saving it", "restoring it", "a migration that comes in", "a migration out"),
    *("a snapshot", "a return to a snapshot", "a dump of its memory", "a backup", "the removal of a snapshot"),
)


def sample_of(stats: Mapping[str, Any], *, in_postcopy: bool = False) -> MigrationSample:
    """Return one reading; what libvirt did not say stays None or 0.

    A job that has not sent a page yet, as libvirt connects and prepares, is `setup`.

    Args:
        stats: of `virDomainGetJobStats`.
        in_postcopy: the guest has left, its pages follow.
    """
    status = _STATUS[_kind(stats)]
    total = _number(stats, "memory_total")
    if status is MigrationStatus.ACTIVE:
        status = MigrationStatus.SETUP if not total else MigrationStatus.POSTCOPY_ACTIVE if in_postcopy else status
    page = _number(stats, "memory_page_size") or 4096
    over = status is MigrationStatus.COMPLETED
    downtime = _ms(stats, "downtime")
    return MigrationSample(
        status=status,
        error=stats.get("errmsg") or None,
        rounds=_number(stats, "memory_iteration"),
        transferred_bytes=Bytes(_number(stats, "memory_processed")),
        remaining_bytes=Bytes(_number(stats, "memory_remaining")),
        total_bytes=Bytes(total),
        page_bytes=Bytes(page),
        duplicate_pages=_number(stats, "memory_constant"),
        normal_pages=_number(stats, "memory_normal"),
        dirty_bytes_per_second=BytesPerSecond(_number(stats, "memory_dirty_rate") * page),
        bandwidth=BytesPerSecond(_number(stats, "memory_bps")),
        total_ms=_ms(stats, "time_elapsed"),
        setup_ms=_ms(stats, "setup_time"),
        # the same word for what is expected while it runs
        downtime_ms=downtime if over else None,
        expected_downtime_ms=None if over else downtime,
        throttle_percent=stats.get("auto_converge_throttle"),
        postcopy_requests=_number(stats, "memory_postcopy_requests"),
    )


def job_text(stats: Mapping[str, Any]) -> str | None:
    """Return what works on a domain, in words; None: nothing.

    Args:
        stats: of `virDomainGetJobStats`.
    """
    if _kind(stats) not in (JobKind.BOUNDED, JobKind.UNBOUNDED):
        return None
    number = _number(stats, "operation")
    what = _OPERATIONS[number] if number < len(_OPERATIONS) else f"operation {number}"
    return f"{what}, for {_number(stats, 'time_elapsed') / 1000:.1f} s"


def _kind(stats: Mapping[str, Any]) -> JobKind:
    number = _number(stats, "type")
    return _KINDS[number] if number < len(_KINDS) else JobKind.NONE


def _number(stats: Mapping[str, Any], name: str) -> int:
    return max(int(stats.get(name, 0)), 0)


def _ms(stats: Mapping[str, Any], name: str) -> Milliseconds | None:
    return Milliseconds(float(stats[name])) if name in stats else None
