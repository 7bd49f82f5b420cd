"""Writes the result: JSON for machines, a page with tables and plots for people."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from _bench import PAGES, conditions_text, table, write
from movers.base import AFTER_S, QUIET_S, Mover

from grid import plots
from grid.cells import GOAL_GAP_MS, UNLIMITED_MIB_S, Cell, feasibility
from grid.rounds import FAR, RACE_FACTOR, RACE_ROUNDS, Block, Record
from grid.stats import FACTOR, MIN_ROUNDS, Contest, Interval, Row, contests, interval, paired, rows_of

BAR_EFFICIENCY = 0.95
NAME = "migrate"
#: Guests of libvirt hosts under our policies, and with whom they are compared: ours on QEMU, and libvirt as it comes.
BESIDE = {
    "vmferry on libvirt": ("vmferry unencrypted", "virsh"),
    "vmferry on libvirt post-copy": ("vmferry post-copy unencrypted", "virsh post-copy"),
}


def write_all(
    found: Mapping[str, Any],
    asked: argparse.Namespace,
    cells: Sequence[Cell],
    movers: Sequence[Mover],
    record: Record,
    left: Sequence[Block],
) -> None:
    """Write JSON, page and plots."""
    rows = rows_of(record.moves)
    ours = [mover.name for mover in movers if mover.ours and mover.name.startswith("vmferry")]
    postcopy, helped = ([one.name for one in movers if getattr(one, by)] for by in ("postcopy", "helped"))
    decided = contests(cells, record.moves, ours, postcopy, helped)
    result = {
        "key": record.key,
        "conditions": {**found, "measured_s": round(record.measured_s, 1), "seed": asked.seed, "limit_s": asked.limit},
        "cells": [cell.as_json() for cell in cells],
        "movers": [{"name": mover.name, "ours": mover.ours, "postcopy": mover.postcopy} for mover in movers],
        "contests": [contest.as_json() for contest in decided],
        "moves": [move.as_json() for move in record.moves],
        "not_measured": record.failed,
        "not_run": [{"round": block.round, "cell": block.cell.id, "movers": record.missing(block)} for block in left],
    }
    pictures = plots.draw(rows, [cell.id for cell in cells], [mover.name for mover in movers], PAGES, asked.name)
    write(asked.name, result, _page(found, asked, cells, rows, decided, record, left, pictures))


def _page(
    found: Mapping[str, Any],
    asked: argparse.Namespace,
    cells: Sequence[Cell],
    rows: Sequence[Row],
    decided: Sequence[Contest],
    record: Record,
    left: Sequence[Block],
    pictures: Sequence[str],
) -> str:
    parts = [
        "# Everybody side by side\n",
        conditions_text(found),
        _how(found, asked, record),
        *(f"![{name.removesuffix('.svg').replace('-', ' ')}]({name})\n" for name in pictures),
        "## Which cells can be met, fixed beforehand\n",
        _test_table(cells),
        "## Ours against the best of all\n",
        _contest_text(decided),
        *_libvirt_section(cells, record),
        "## Link efficiency of an idle guest\n",
        _efficiency(rows),
        *(_cell_section(cell, rows) for cell in cells),
        "## What was not run\n",
        _not_run(record, left),
    ]
    return "\n".join(parts)


def _how(found: Mapping[str, Any], asked: argparse.Namespace, record: Record) -> str:
    return (
        f"libvirt {found['libvirt']}. The moves took {record.measured_s / 60:.0f} minutes, resumed parts included."
        f" Two hosts in network namespaces on this one machine, so all stamps are of one clock. Order shuffled per"
        f" round with seed {asked.seed}; a move that is not there after **{asked.limit:g} s** is called back and counts"
        " as not arrived. Every mover gets the same guest anew for each move: kernel, initramfs, workload, memory, CPU"
        " model (`qemu64`), machine type (`pc-q35-7.2`), QEMU binary and TCG; the PCI slots of its devices are its"
        " manager's. Ours sends an encrypted stream, except where it is called unencrypted, and its agents use mutual"
        " TLS; libvirt and plain QEMU send in the clear: none of them encrypts as shipped.\n\n"
        "Figures are of outside observers that are the same for all (bench/grid/observe.py):\n\n"
        "- **total**: from the order (the agent's API, the start of `virsh migrate`, a script that starts the"
        " destination's QEMU and says `migrate`) to the latest of the mover's word, the first beat at the destination"
        " and the stream's last bytes on the link.\n"
        "- **gap**: the guest's longest silence from the order to"
        f" {AFTER_S:g} s after the end: beats every ms, seen by packet sockets on both hosts, stamped by the kernel."
        f" *before* is the same in {QUIET_S:g} s without a migration.\n"
        "- **stall**: the longest by the guest's own clock, which stands still while the guest is stopped: throttling"
        " and post-copy faults.\n"
        "- **outage**: the longest run of lost datagrams of a prober in the guests' network, one every 2 ms.\n"
        "- **wire**: the veth's counter, source to destination; **QEMU**: its own count.\n"
        "- **work lost**: what the workload wrote less than in the same time without a migration, as ms of undisturbed"
        " work and as a share of the window; not measured for a compiler, whose files take seconds each.\n\n"
        f"Medians; in brackets the 95 % interval of the median (bootstrap), which says nothing below {MIN_ROUNDS} runs."
        " Who is not likely to win a cell is not run there again, by a rule that was fixed beforehand: others' movers"
        f" after a round in which they did not arrive, and after {RACE_ROUNDS} rounds in all of which the gap was over"
        f" the goal or they took more than {RACE_FACTOR:g} times as long as the quickest of ours that risks no more;"
        f" one such round is enough where it was {FAR} times the goal, or {FAR * RACE_FACTOR:g} times as long;"
        f" ours only after {RACE_ROUNDS} rounds without an arrival. Ours was tuned on single moves of some of these"
        " cells (how much of the gap is kept, when a slow end counts as none), in other runs before this one.\n"
    )


def _test_table(cells: Sequence[Cell]) -> str:
    header = ("cell", "memory, MiB", "written", f"dirtied in {GOAL_GAP_MS:.0f} ms, MiB", "fits, MiB", "can be met")
    rows = []
    for cell in cells:
        said = feasibility(cell)
        what = f"{cell.rate} MiB/s over {cell.working_set_mib} MiB, {cell.pattern}, {cell.data}"
        what = "a compiler at work" if cell.compiles else what
        rows.append((cell.id, cell.memory_mib, what, said.dirtied_mib, said.fits_mib, said.said()))
    return (
        f"A cell can be met if what its guest dirties in the goal's gap of {GOAL_GAP_MS:.0f} ms fits through the link"
        " in that gap, or where post-copy is allowed. Without a limit"
        f" {UNLIMITED_MIB_S:.0f} MiB/s are taken for the link.\n\n" + str(table(header, rows))
    )


def _contest_text(decided: Sequence[Contest]) -> str:
    if not decided:
        return "None of ours took part.\n"
    header = (
        "cell",
        "ours",
        "best other within the goal",
        "ratio of total times",
        f"pairs <= x {FACTOR:g}",
        "first byte, ms",
        "met",
        "best that is allowed no more",
        "ratio",
        "met",
    )
    rows = [
        (
            contest.cell,
            contest.ours,
            contest.rival or "nobody",
            "-" if contest.ratio is None else _said(contest.ratio, 2),
            f"{contest.faster}/{contest.pairs}",
            "-" if contest.first_byte_ms is None else f"{contest.first_byte_ms:.0f}",
            "yes" if contest.met else f"**no**: {contest.reason}",
            contest.like or "nobody",
            "-" if contest.like_ratio is None else _said(contest.like_ratio, 2),
            "yes" if contest.like_met else "**no**",
        )
        for contest in decided
    ]
    few = "" if all(contest.enough for contest in decided) else f"Fewer than {MIN_ROUNDS} runs: a hint, not a result. "
    met, like = sum(contest.met for contest in decided), sum(contest.like_met for contest in decided)
    said = (
        f"{few}{met} of {len(decided)} met among all movers; {like} among those that are allowed no more:"
        " post-copy is faster, and so is a guest whose own helper holds its writes (40-writes); who does not allow the"
        " one, or has not put the other there, cannot be."
    )
    return f"{said}\n\n{table(header, rows)}"


def _libvirt_section(cells: Sequence[Cell], record: Record) -> list[str]:
    lines = []
    for cell in cells:
        here = [move for move in record.moves if move.cell == cell.id]
        for mine, others in BESIDE.items():
            for other in others:
                total, gap = (interval(paired(here, mine, other, figure)) for figure in ("total_ms", "gap_ms"))
                if total is not None:
                    lines.append((cell.id, mine, other, total.count, _said(total, 2), _said(gap, 2)))
    if not lines:
        return []
    header = ("cell", "on libvirt", "beside", "pairs", "ratio of total times", "ratio of gaps")
    held = (
        "These guests have no disk that QEMU locks: `vmferry migrate` holds such a domain at its arrival until libvirt"
        " has ended the source's process, unless `--libvirt held=no` is said (docs/libvirt.md). Here it is said:"
        " `virsh` holds none either.\n\n"
    )
    return ["## Guests of libvirt hosts under our policies\n", f"{held}{table(header, lines)}"]


def _efficiency(rows: Sequence[Row]) -> str:
    idle = [(row, value) for row in rows if "/idle" in row.cell and (value := row.figures["efficiency"])]
    if not idle:
        return "Not measured: no idle guest on a limited link.\n"
    lines = [
        (row.cell, row.mover, _said(value, 3), "yes" if value.median >= BAR_EFFICIENCY else "**no**")
        for row, value in idle
    ]
    return "Bytes on the wire over the link's rate over the time between the stream's first and last bytes.\n\n" + str(
        table(("cell", "mover", "efficiency", f">= {BAR_EFFICIENCY:g}"), lines)
    )


def _cell_section(cell: Cell, rows: Iterable[Row]) -> str:
    header = (
        "mover", "arrived", "clean", "total, s", "gap, ms", "before", "stall, ms", "outage, ms", "wire, MiB",
        "QEMU, MiB", "downtime (QEMU), ms", "rounds", "work lost, ms", "share, %",
    )  # fmt: skip
    lines = [
        (
            row.mover,
            f"{row.arrived}/{row.runs}",
            f"{row.runs - row.dirty}/{row.runs}",
            _said(row.figures["total_ms"], 2, 1000),
            _said(row.figures["gap_ms"]),
            _median(row, "gap_before_ms"),
            _said(row.figures["stall_ms"]),
            _said(row.figures["outage_ms"]),
            _median(row, "wire_bytes", 2**20),
            _median(row, "qemu_bytes", 2**20),
            _median(row, "downtime_ms"),
            _median(row, "rounds"),
            _median(row, "lost_ms"),
            _median(row, "lost_share", 0.01),
        )
        for row in rows
        if row.cell == cell.id
    ]
    return f"## {cell.id}\n\n{table(header, lines) if lines else 'Not run.'}"


def _said(found: Interval | None, digits: int = 0, unit: float = 1.0) -> str:
    if found is None:
        return "-"
    low, high = f"{found.low / unit:.{digits}f}", f"{found.high / unit:.{digits}f}"
    middle = f"{found.median / unit:.{digits}f}"
    return middle if low == high else f"{middle} ({low} to {high})"


def _median(row: Row, name: str, unit: float = 1.0) -> str:
    value = row.median(name)
    return "-" if value is None else f"{value / unit:.0f}"


def _not_run(record: Record, left: Sequence[Block]) -> str:
    lines = [f"- Round {block.round} of {block.cell.id}: {', '.join(record.missing(block))}" for block in left]
    lines += [
        f"- Not measured: round {row['round']} of {row['cell']}, {row['mover']}: {row['why']}" for row in record.failed
    ]
    return "\n".join(lines) + "\n" if lines else "Everything was run.\n"
