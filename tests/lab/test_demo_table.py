from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from vmferry.core.progress import Gap, Outcome, Report
from vmferry.core.units import MIB, Bytes, BytesPerSecond, Milliseconds
from vmferry.lab.demo_table import Move, moves_table

REPORT = Report(
    handover="h1",
    guest="web-7",
    source="host-a",
    destination="host-b",
    outcome=Outcome.MOVED,
    reason=None,
    guarantee="",
    acceleration="TCG",
    encrypted=True,
    total_ms=Milliseconds(2345.0),
    rounds=4,
    transferred_bytes=Bytes(600 * MIB),
    ram_bytes=Bytes(512 * MIB),
    bandwidth=BytesPerSecond(250 * MIB),
    downtime_limit_ms=Milliseconds(300.0),
    downtime_ms=Milliseconds(43.0),
    guest_gap=Gap(Milliseconds(61.5), Milliseconds(1.0), Milliseconds(4.0)),
    in_guest_stall_ms=None,
    network_outage=None,
    commit_ms=Milliseconds(7.3),
)
CLEAN = "oracle clean pages=16384 writes=4711"


def rendered(*moves: Move) -> str:
    """Return the table as text, wide enough for every row."""
    console = Console(width=160)
    with console.capture() as capture:
        console.print(moves_table(moves))
    return capture.get()


def row(text: str, name: str) -> str:
    """Return the row that begins with a name."""
    return next(line for line in text.splitlines() if name in line)


def test_every_measure_stands_in_the_table_with_its_unit_and_tag() -> None:
    """Both moves, their units and the acceleration tag are shown."""
    back = replace(REPORT, source="host-b", destination="host-a")
    outage = Gap(Milliseconds(80.0), Milliseconds(2.0), Milliseconds(6.0))
    text = rendered(Move(REPORT, outage, CLEAN), Move(back, outage, CLEAN))
    assert "Measured (TCG)" in text
    assert "host-a → host-b" in text
    assert "host-b → host-a" in text
    assert row(text, "total time").count("2.35 s") + row(text, "total time").count("2.34 s") == 2
    assert row(text, "guest_gap").count("61.5 ms ± 1.0 ms") == 2
    assert row(text, "network_outage").count("80.0 ms ± 2.0 ms") == 2
    quiet = [line for line in text.splitlines() if "without a move" in line]
    assert [line.count(baseline) for line, baseline in zip(quiet, ("4.0 ms", "6.0 ms"), strict=True)] == [2, 2]
    assert "7.3 ms" in row(text, "commit")
    assert "600.0 MiB" in row(text, "bytes sent")


def test_what_nobody_measured_says_so() -> None:
    """A missing figure reads "not measured", never zero."""
    text = rendered(Move(replace(REPORT, guest_gap=None, downtime_ms=None), None, CLEAN))
    for name in ("guest_gap", "network_outage", "stall in", "downtime"):
        assert "not measured" in row(text, name)


@pytest.mark.parametrize(
    ("outcome", "oracle", "clean"),
    [
        (Outcome.MOVED, CLEAN, True),
        (Outcome.MOVED, "oracle DIRTY first=7 kind=stale bad=1", False),
        (Outcome.ABORTED, CLEAN, False),
        (Outcome.MOVED, "", False),
    ],
)
def test_only_a_whole_arrival_is_clean(outcome: Outcome, oracle: str, clean: bool) -> None:
    """A move counts as clean only when the guest arrived and its oracle says so."""
    assert Move(replace(REPORT, outcome=outcome), None, oracle).is_clean is clean
