"""What a daemon tells by itself, as values."""

from __future__ import annotations

import pytest

from vmferry.core.migration import MigrationStatus
from vmferry.libvirt.moves.happenings import JobEnded, Turn, Turned, job_ended, turned


@pytest.mark.parametrize(
    ("event", "turn"),
    [(0, Turn.DEFINED), (3, Turn.SUSPENDED), (4, Turn.RESUMED), (5, Turn.STOPPED), (8, Turn.CRASHED)],
)
def test_the_numbers_are_libvirts(event: int, turn: Turn) -> None:
    """Libvirt's order of its lifecycle events is ours (virDomainEventType); the detail is kept as it is."""
    assert turned(event, 7) == Turned(turn, 7)


@pytest.mark.parametrize("event", [9, 1000, -1])
def test_what_a_newer_libvirt_tells_is_not_taken_for_something_else(event: int) -> None:
    """A number that is not known is `UNKNOWN`."""
    assert turned(event, 0).turn is Turn.UNKNOWN


@pytest.mark.parametrize(
    ("stats", "status"),
    [
        ({}, MigrationStatus.COMPLETED),
        ({"success": True}, MigrationStatus.COMPLETED),
        ({"success": False}, MigrationStatus.FAILED),
    ],
)
def test_the_end_of_a_job_is_a_reading(stats: dict[str, object], status: MigrationStatus) -> None:
    """Libvirt tells it with the job's last statistics, without a type (seen with 9.0)."""
    ended = job_ended({"memory_total": 4096, "downtime": 12, **stats})
    assert isinstance(ended, JobEnded)
    assert (ended.sample.status, ended.sample.total_bytes) == (status, 4096)


def test_the_downtime_of_a_job_that_is_over_is_what_it_was() -> None:
    """The same word is what is expected while a job runs."""
    assert job_ended({"downtime": 12}).sample.downtime_ms == 12.0
