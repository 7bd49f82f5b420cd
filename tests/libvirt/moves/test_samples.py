"""What libvirt says of a job becomes a reading like QEMU's own."""

from __future__ import annotations

import pytest

from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.units import Milliseconds
from vmferry.libvirt.moves.samples import job_text, sample_of

#: Of libvirt 9.0, in the third round of a move.
RUNNING = {
    "type": 2,
    "operation": 5,
    "time_elapsed": 1500,
    "setup_time": 2,
    "downtime": 300,
    "memory_total": 554_508_288,
    "memory_processed": 400_000_000,
    "memory_remaining": 1_003_520,
    "memory_bps": 124_000_000,
    "memory_constant": 60_000,
    "memory_normal": 97_000,
    "memory_normal_bytes": 397_312_000,
    "memory_dirty_rate": 5_100,
    "memory_iteration": 3,
    "memory_page_size": 4096,
    "memory_postcopy_requests": 0,
}


def test_a_move_under_way() -> None:
    """Its figures, in our units; the downtime that it tells is what it expects."""
    sample = sample_of(RUNNING)
    assert (sample.status, sample.rounds, sample.page_bytes) == (MigrationStatus.ACTIVE, 3, 4096)
    assert (sample.transferred_bytes, sample.remaining_bytes, sample.total_bytes) == (
        400_000_000,
        1_003_520,
        554_508_288,
    )
    assert (sample.normal_pages, sample.duplicate_pages) == (97_000, 60_000)
    assert sample.dirty_bytes_per_second == 5_100 * 4096
    assert sample.bandwidth == 124_000_000
    assert (sample.expected_downtime_ms, sample.downtime_ms) == (Milliseconds(300), None)
    assert (sample.total_ms, sample.setup_ms) == (Milliseconds(1500), Milliseconds(2))


def test_a_move_that_is_over() -> None:
    """The same word is now what was measured; a failure has libvirt's words."""
    over = sample_of({**RUNNING, "type": 3, "downtime": 120})
    assert (over.status, over.expected_downtime_ms) == (MigrationStatus.COMPLETED, None)
    assert over.downtime_ms == Milliseconds(120)
    failed = sample_of({**RUNNING, "type": 4, "errmsg": "end of the stream"})
    assert (failed.status, failed.error) == (MigrationStatus.FAILED, "end of the stream")


@pytest.mark.parametrize(
    ("stats", "in_postcopy", "status"),
    [
        ({"type": 0}, False, MigrationStatus.NONE),
        ({"type": 2, "time_elapsed": 3}, False, MigrationStatus.SETUP),
        (RUNNING, True, MigrationStatus.POSTCOPY_ACTIVE),
        ({**RUNNING, "type": 5}, False, MigrationStatus.CANCELLED),
        ({"type": 77}, False, MigrationStatus.NONE),
        ({}, False, MigrationStatus.NONE),
    ],
)
def test_where_it_stands(stats: dict[str, int], in_postcopy: bool, status: MigrationStatus) -> None:
    """Without a page it prepares; what this version does not know is none."""
    assert sample_of(stats, in_postcopy=in_postcopy).status is status


def test_nothing_is_made_up() -> None:
    """What libvirt leaves out stays open, and nonsense is no number below zero."""
    assert sample_of({"type": 0}) == MigrationSample(MigrationStatus.NONE)
    assert sample_of({"type": 2, "memory_total": -1}).total_bytes == 0


@pytest.mark.parametrize(
    ("stats", "text"),
    [
        (RUNNING, "a migration out, for 1.5 s"),
        ({"type": 1, "operation": 9, "time_elapsed": 20_000}, "a backup, for 20.0 s"),
        ({"type": 2, "operation": 77}, "operation 77, for 0.0 s"),
        ({**RUNNING, "type": 3}, None),
        ({"type": 0}, None),
    ],
)
def test_what_works_on_a_domain(stats: dict[str, int], text: str | None) -> None:
    """A job that is over is none; one that this version does not know has its number."""
    assert job_text(stats) == text
