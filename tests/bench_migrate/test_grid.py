"""The pure parts of `./run bench migrate`: the test of cells, the order, what is left out, and the comparison."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

cells = importlib.import_module("grid.cells")
rounds = importlib.import_module("grid.rounds")
stats = importlib.import_module("grid.stats")
wire = importlib.import_module("grid.wire")
figures = importlib.import_module("grid.figures")
base = importlib.import_module("movers.base")
observe = importlib.import_module("grid.observe")
virsh = importlib.import_module("movers.virsh")


def move(mover: str, number: int = 1, **other: Any) -> Any:
    """Return a move that arrived within the goal, but for what is said otherwise."""
    fields: dict[str, Any] = dict.fromkeys(figures.Figures.__dataclass_fields__)
    fields |= {"cell": "1G/idle", "mover": mover, "round": number, "arrived": True, "total_ms": 1000.0, "gap_ms": 100.0}
    fields |= {"wire_bytes": 1, "oracle": "oracle clean pages=1", "took_s": 10.0, "more": {}}
    return figures.Figures(**(fields | other))


@pytest.mark.parametrize(
    ("name", "possible"),
    [("idle", True), ("writes 0.8x", True), ("writes 1.5x", False), ("writes 3x", False), ("compiles", None)],
)
def test_a_cell_can_be_met_when_what_is_dirtied_in_the_gap_fits_in_the_gap(name: str, possible: bool | None) -> None:
    """The stated test decides by the workload's own rate; a compiler's is not known."""
    for link in ("100M", "1G"):
        (cell,) = cells.chosen([f"{link}/{name}"], short=False)
        assert cells.feasibility(cell).by_precopy is possible


def test_a_hot_spot_dirties_less_than_it_writes() -> None:
    """Pages that are hit again are sent once: nine writes in ten go to a tenth of the pages."""
    cell = cells.Cell("x", cells.LINKS["1G"], 512, 256, 200, pattern="hotspot")
    assert 25.6 * 0.9 < cells.dirtied_mib(cell, 1.0) < 25.6 + 20
    assert cells.dirtied_mib(cell, 1e6) == pytest.approx(256)


def test_the_same_seed_gives_the_same_order_and_every_pair_once() -> None:
    """The order is data: it can be said and repeated; another seed gives another."""
    grid, movers = cells.all_cells(), ["a", "b", "c"]
    first = list(rounds.schedule(grid, movers, 2, 1))
    assert first == list(rounds.schedule(grid, movers, 2, 1))
    assert first != list(rounds.schedule(grid, movers, 2, 2))
    pairs = {(block.round, block.cell.id, mover) for block in first for mover in block.movers}
    assert len(pairs) == 2 * len(grid) * 3


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    """What is in the file is not run again; a file of other settings is refused."""
    (cell,) = cells.chosen(["1G/idle"], short=False)
    block = rounds.Block(1, cell, ("a", "b", "c"))
    record = rounds.Record.begin({"seed": 1}, tmp_path / "x.jsonl", resume=False)
    record.add(move("b"))
    record.add_failure(block, "c", "did not boot", 3.0)
    again = rounds.Record.begin({"seed": 1}, tmp_path / "x.jsonl", resume=True)
    assert again.missing(block) == ["a"]
    assert (again.moves, again.failed, again.measured_s) == (record.moves, record.failed, 13.0)
    with pytest.raises(SystemExit, match="of another run"):
        rounds.Record.begin({"seed": 2}, tmp_path / "x.jsonl", resume=True)


def test_a_run_goes_on_from_its_result(tmp_path: Path) -> None:
    """On another machine there is no file, but the result that was committed."""
    (cell,) = cells.chosen(["1G/idle"], short=False)
    row = {"cell": cell.id, "mover": "c", "round": 1, "why": "did not boot", "took_s": 3.0}
    result = tmp_path / "x.json"
    result.write_text(json.dumps({"key": {"seed": 1}, "moves": [move("b").as_json()], "not_measured": [row]}))
    for _ in range(2):  # the second time from the file that the first one made
        record = rounds.Record.begin({"seed": 1}, tmp_path / "x.jsonl", resume=True, result=result)
        assert record.missing(rounds.Block(1, cell, ("a", "b", "c"))) == ["a"]
    with pytest.raises(SystemExit, match="of another run"):
        rounds.Record.begin({"seed": 2}, tmp_path / "y.jsonl", resume=True, result=result)


@pytest.mark.parametrize(
    ("mover", "rows", "out_in"),
    [
        ("virsh", [{"arrived": False}], 2),
        ("virsh", [{}, {"arrived": False}], 3),
        ("virsh", [{"gap_ms": 301.0}, {"gap_ms": 900.0}], 3),
        ("virsh", [{"gap_ms": 601.0}], 2),
        ("virsh", [{"gap_ms": 600.0}], None),
        ("virsh", [{"total_ms": 3001.0}], 2),
        ("virsh", [{"total_ms": 3000.0}], None),
        ("vmferry post-copy", [{"gap_ms": 601.0, "total_ms": 3001.0}], None),
        ("virsh", [{"gap_ms": 301.0}, {"gap_ms": 300.0}, {"gap_ms": 301.0}], None),
        ("virsh", [{"total_ms": 1600.0}, {"total_ms": 1501.0}], 3),
        ("virsh", [{"total_ms": 1600.0}, {"total_ms": 1499.0}], None),
        ("vmferry post-copy", [{"gap_ms": 301.0, "total_ms": 9000.0}, {"gap_ms": 900.0, "total_ms": 9000.0}], None),
        ("vmferry post-copy", [{"arrived": False}], None),
        ("vmferry post-copy", [{"arrived": False}, {"arrived": False}], 3),
    ],
)
def test_who_cannot_win_is_not_run_again(mover: str, rows: list[dict[str, Any]], out_in: int | None) -> None:
    """A rule that was fixed beforehand saves the time of rounds that would change nothing; ours stays in."""
    (cell,) = cells.chosen(["1G/idle"], short=False)
    record = rounds.Record({})
    for number, row in enumerate(rows, 1):
        record.add(move("vmferry", number))
        record.add(move(mover, number, **row))
    last = len(rows) + 1
    assert (mover not in record.missing(rounds.Block(last, cell, (mover,)))) is (out_in == last)
    if out_in is not None:
        assert record.missing(rounds.Block(out_in - 1, cell, ("another",))) == ["another"]


def test_ours_is_compared_in_pairs_with_the_best_that_met_the_goal() -> None:
    """A faster mover whose gap was too long is no rival; the ratio is that of the same rounds."""
    (cell,) = cells.chosen(["1G/idle"], short=False)
    moves = [
        made
        for number in range(1, 6)
        for made in (
            move("vmferry", number, total_ms=1040.0),
            move("quick", number, total_ms=500.0, gap_ms=400.0),
            move("best", number, total_ms=1000.0),
            move("slow", number, total_ms=1500.0),
        )
    ]
    (contest,) = stats.contests([cell], moves, ["vmferry"])
    assert (contest.rival, contest.met, contest.pairs, contest.enough) == ("best", True, 5, True)
    assert contest.ratio.median == pytest.approx(1.04)


def test_who_may_not_use_postcopy_is_compared_with_its_like_too() -> None:
    """The best of all is shown, and beside it the best that takes no more risk."""
    (cell,) = cells.chosen(["1G/idle"], short=False)
    moves = [move("vmferry"), move("vmferry post-copy", total_ms=500.0), move("qemu", total_ms=990.0)]
    ours = ["vmferry", "vmferry post-copy"]
    plain, behind = stats.contests([cell], moves, ours, ["vmferry post-copy"])
    assert (plain.rival, plain.met, plain.like, plain.like_met) == ("vmferry post-copy", False, "qemu", True)
    assert (behind.rival, behind.like) == ("qemu", "qemu")


def test_who_has_no_help_in_the_guest_is_compared_with_its_like_too() -> None:
    """A guest that holds its own writes moves sooner; the mover that it helps has nobody above it."""
    (cell,) = cells.chosen(["1G/idle"], short=False)
    moves = [move("vmferry"), move("vmferry 40-writes", total_ms=500.0), move("qemu", total_ms=990.0)]
    plain, with_help = stats.contests([cell], moves, ["vmferry", "vmferry 40-writes"], [], ["vmferry 40-writes"])
    assert (plain.rival, plain.met, plain.like, plain.like_met) == ("vmferry 40-writes", False, "qemu", True)
    assert (with_help.rival, with_help.like) == ("qemu", "qemu")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arrived": False, "total_ms": None}, "arrived in 0 of 1"),
        ({"oracle": "oracle DIRTY first=1"}, "memory was not whole"),
        ({"oracle": "oracle silent: no answer"}, "memory was not whole"),
        ({"gap_ms": 301.0}, "gap 301 ms"),
        ({"total_ms": 1060.0}, "1.06 times as long as best"),
    ],
)
def test_a_miss_has_its_reason(change: dict[str, Any], reason: str) -> None:
    """Every way in which ours can miss the goal is told apart."""
    (cell,) = cells.chosen(["1G/idle"], short=False)
    (contest,) = stats.contests([cell], [move("vmferry", **change), move("best")], ["vmferry"])
    assert not contest.met
    assert reason in contest.reason


def test_without_postcopy_ours_need_not_do_what_cannot_be_done() -> None:
    """A cell that the test excludes is contested only by the one that may use post-copy."""
    (cell,) = cells.chosen(["1G/writes 3x"], short=False)
    moves = [move(name, cell=cell.id) for name in ("vmferry", "vmferry post-copy")]
    found = stats.contests([cell], moves, ["vmferry", "vmferry post-copy"], ["vmferry post-copy"])
    assert [contest.ours for contest in found] == ["vmferry post-copy"]


def test_the_link_is_used_fully_when_bytes_over_rate_is_the_time() -> None:
    """A stream of 10 MiB/s over a link of 10 MiB/s has an efficiency of one; a pause in it counts."""
    mib = 2**20
    full = [wire.Sample(at * 10**8, at * mib, 0) for at in range(21)]
    assert wire.wire_of(full).efficiency(10 * mib) == pytest.approx(1.0, abs=0.08)
    pause = [wire.Sample(s.at_ns + (10**9 if s.at_ns > 10**9 else 0), s.sent, 0) for s in full]
    assert wire.wire_of(pause).efficiency(10 * mib) == pytest.approx(2 / 3, abs=0.08)
    assert wire.wire_of(full[:1]).efficiency(10 * mib) is None


def test_lost_work_is_time_of_undisturbed_work() -> None:
    """A guest that did half of its work in four seconds lost two; without work there is nothing to say."""
    second = 10**9
    at = observe.Progress
    quiet, start = at(0, 0), at(2 * second, 200)
    assert base.lost_work(quiet, start, at(6 * second, 400)) == pytest.approx((2000.0, 0.5))
    assert base.lost_work(quiet, at(2 * second, 0), at(6 * second, 0)) is None


def test_libvirts_words_are_read_with_their_units() -> None:
    """`virsh domjobinfo` prints figures with units; words without a figure are passed over."""
    text = "Job type:         Completed\nMemory processed: 1.500 MiB\nTotal downtime:   330          ms\nIteration: 8\n"
    found = virsh.job_info(text)
    assert (found["Memory processed"], found["Total downtime"], found["Iteration"]) == (1.5 * 2**20, 330.0, 8.0)
    assert "Job type" not in found
