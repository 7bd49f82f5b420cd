"""Moves there and back under load: what they cost, and that nothing of them is left.

    ./run bench moves [--rounds 20] [--short] [--guests linux,micro,debian]

One lab for each guest. Before and after, a snapshot of everything that the two hosts hold: with the guest running on
its first host again, and once more when it was removed. The memory's oracle is asked after every move.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from _bench import conditions, conditions_text, spread, table, write

from vmferry.core.errors import Broken
from vmferry.core.progress import Gap, Outcome, Report
from vmferry.lab.guest_plans import GUEST_ADDRESS, DiskPlan, GuestPlan, debian_guest, linux_guest, micro_guest
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.leaks import assert_no_leaks, snapshot_leaks
from vmferry.lab.probe import Probe
from vmferry.lab.scenarios import THERE_AND_BACK, migrate, remove, started, wait_finished

BAR_GUEST_GAP_MS = 150.0
SHORT_ROUNDS = 2
#: Between two moves: as long as the agents look back for the largest gap without a migration.
REST_S = 3.0
#: What an agent opens once and keeps (its connection to the other one, its thread pool) is there after one round.
WARM_UP_ROUNDS = 1
ANSWERS_AFTER_S = 10.0

PLANS: dict[str, Callable[[], GuestPlan]] = {
    "linux": lambda: linux_guest("web-7", memory_mib=512, rate=20, bridge=True),
    "micro": micro_guest,
    "debian": debian_guest,
}


def largest(gap: Gap | None) -> float | None:
    """Return the largest gap; None: not measured."""
    return None if gap is None else gap.largest_ms


def baseline(gap: Gap | None) -> float | None:
    """Return the largest gap without a migration; None: not measured."""
    return None if gap is None else gap.baseline_ms


FIGURES: tuple[tuple[str, Callable[[Report], float | None]], ...] = (
    ("total time, ms", lambda report: report.total_ms),
    ("to the first byte, ms", lambda report: report.first_byte_ms),
    ("rounds", lambda report: report.rounds),
    ("bytes sent, MiB", lambda report: report.transferred_bytes and report.transferred_bytes / 2**20),
    ("downtime (QEMU), ms", lambda report: report.downtime_ms),
    ("guest_gap, ms", lambda report: largest(report.guest_gap)),
    ("guest_gap without a move, ms", lambda report: baseline(report.guest_gap)),
    ("network_outage, ms", lambda report: largest(report.network_outage)),
    ("network_outage without a move, ms", lambda report: baseline(report.network_outage)),
    ("stall in the guest, ms", lambda report: report.in_guest_stall_ms),
    ("commit, ms", lambda report: report.commit_ms),
    ("ran twice, ms", lambda report: report.ran_twice_ms),
)


@dataclass(frozen=True)
class Move:
    """One move as it went."""

    report: Report
    oracle: str
    load: float  #: processes that wanted a CPU in the minute before it, ours and others'
    boot: str | None  #: the debian guest's boot and what systemd says of itself


@dataclass(frozen=True)
class Series:
    """All moves of one guest."""

    plan: GuestPlan
    moves: Sequence[Move]
    ready_s: float

    def figures(self) -> dict[str, dict[str, float | int | None]]:
        """Return each figure's spread."""
        return {name: spread(value(move.report) for move in self.moves) for name, value in FIGURES}

    def under_bar(self) -> int:
        """Return how many moves had a measured guest_gap under the bar."""
        gaps = [move.report.guest_gap for move in self.moves]
        return sum(gap is not None and gap.largest_ms < BAR_GUEST_GAP_MS for gap in gaps)

    def over_bar_without(self) -> int:
        """Return for how many moves the guest's gap was over the bar without any move, just before."""
        gaps = [move.report.guest_gap for move in self.moves]
        return sum(gap is not None and (gap.baseline_ms or 0.0) >= BAR_GUEST_GAP_MS for gap in gaps)


async def one_move(lab: Lab, guest: GuestRun, source: str, destination: str) -> Move:
    """Move the guest, ask its oracle, and see that it answers on the network.

    Raises:
        Broken: it did not move, or its memory is not whole, or it is not the same boot any more.
    """
    load = os.getloadavg()[0]
    view = await wait_finished(lab, source, await migrate(lab, guest, destination))
    if view.report is None or view.report.outcome != Outcome.MOVED:
        raise Broken(f"guest {guest.name} did not move from {source} to {destination}: {view}")
    guest.moved_to(destination)
    oracle = await guest.oracle()
    if not oracle.startswith("oracle clean"):
        raise Broken(f"memory of guest {guest.name} after its move to {destination}: {oracle}")
    if guest.plan.echo:
        async with Probe(lab, GUEST_ADDRESS) as probe:
            await probe.wait_answered(ANSWERS_AFTER_S)
    return Move(view.report, oracle, round(load, 2), await boot_of(guest))


async def boot_of(guest: GuestRun) -> str | None:
    """Return the debian guest's boot id and systemd's word about itself; None for the others.

    systemd says "starting" while the last jobs of the boot run, so its end is waited for.
    """
    if guest.plan.kind != "debian":
        return None
    boot = await guest.shell("cat /proc/sys/kernel/random/boot_id")
    return f"{boot} {await guest.shell('systemctl is-system-running --wait')}"


async def there_and_back(lab: Lab, guest: GuestRun, rounds: int, rest_s: float) -> list[Move]:
    """Move the guest there and back so often."""
    moves: list[Move] = []
    for source, destination in THERE_AND_BACK * rounds:
        await asyncio.sleep(rest_s)
        moves.append(await one_move(lab, guest, source, destination))
        report = moves[-1].report
        gap = "not measured" if report.guest_gap is None else f"{report.guest_gap.largest_ms:.0f} ms"
        print(
            f"{guest.plan.kind} {len(moves)}/{2 * rounds} {source} -> {destination}: {report.total_ms:.0f} ms,"
            f" guest_gap {gap}, {moves[-1].oracle}, load {moves[-1].load}",
            flush=True,
        )
    return moves


async def measure(kind: str, rounds: int, rest_s: float) -> tuple[Series, str, str]:
    """Return one guest's series, the acceleration's tag and QEMU's version.

    Raises:
        AssertionError: something leaked; the text lists what.
        Broken: a move went wrong.
    """
    async with Lab() as lab:
        plan = PLANS[kind]()
        image = lab.directory / "data.qcow2"
        if kind == "linux":
            await qemu_img("create", "-q", "-f", "qcow2", str(image), "64M")
            plan = replace(plan, disks=(DiskPlan(image),))
        first = await started(lab, plan)
        await there_and_back(lab, first, WARM_UP_ROUNDS, 0.0)
        await remove(lab, first)
        empty = snapshot_leaks(lab)
        began = time.monotonic()
        guest = await started(lab, plan)
        ready_s = time.monotonic() - began
        boot = await boot_of(guest)
        await there_and_back(lab, guest, WARM_UP_ROUNDS, 0.0)
        running = snapshot_leaks(lab)
        moves = await there_and_back(lab, guest, rounds, rest_s)
        await assert_no_leaks(lab, running)
        await remove(lab, guest)
        await assert_no_leaks(lab, empty)
        if image.exists():
            await qemu_img("check", "-q", str(image))
        if len({boot, *(move.boot for move in moves)}) > 1:
            raise Broken(f"guest {plan.name} is not the same boot any more: {boot}, {[move.boot for move in moves]}")
        facts = await lab.hosts["host-a"].api.get("/v1/host")
    return Series(plan, moves, ready_s), facts["acceleration_tag"], ".".join(map(str, facts["qemu"]["version"]))


async def qemu_img(*arguments: str) -> None:
    """Run qemu-img; fails when it does."""
    await asyncio.to_thread(subprocess.run, ["qemu-img", *arguments], check=True)


def section(series: Series, tag: str) -> str:
    """Return one guest's part of the page."""
    plan, count = series.plan, len(series.moves)
    rows = [(name, *(row[key] for key in ("count", "min", "median", "p90", "max"))) for name, row in figures(series)]
    heading = f"{plan.kind}: {plan.memory_mib} MiB, {plan.rate} MiB/s over {plan.working_set_mib} MiB ({tag})"
    arrived = f"{count} moves: all arrived, the oracle was clean after each, nothing leaked."
    bar = f"**guest_gap under {BAR_GUEST_GAP_MS:.0f} ms: {series.under_bar()} of {count} moves**"
    noise = f"over that for {series.over_bar_without()} of them"
    parts = [
        f"\n## {heading}\n",
        f"{arrived} The guest was ready {series.ready_s:.1f} s after its start.",
        f"{bar}; in the 3 s before a move the same guest's largest gap was {noise}.",
    ]
    if plan.echo:
        parts.append("After each move it answered UDP from the fabric.")
    if series.moves[0].boot:
        state = series.moves[-1].boot.split(" ", 1)[1] if series.moves[-1].boot else ""
        parts.append(f"It is the same boot after all of them (boot id), and systemd says `{state}`.")
    loads = spread(move.load for move in series.moves)
    parts.append(f"The machine's load (all processes) was {loads['median']} in the median, {loads['max']} at most.\n")
    return "\n".join(parts) + "\n" + str(table(("figure", "measured", "min", "median", "p90", "max"), rows))


def figures(series: Series) -> list[tuple[str, dict[str, float | int | None]]]:
    """Return the figures that were measured for this guest."""
    return [(name, row) for name, row in series.figures().items() if row["count"]]


def as_json(series: Series) -> dict[str, Any]:
    """Return one guest's part of the result."""
    return {
        "guest": {"memory_mib": series.plan.memory_mib, "rate": series.plan.rate, "mb": series.plan.working_set_mib},
        "moves": len(series.moves),
        "guest_gap_under_150_ms": series.under_bar(),
        "guest_gap_over_150_ms_without_a_move": series.over_bar_without(),
        "oracle_clean": len(series.moves),
        "leaked": [],
        "ready_s": round(series.ready_s, 1),
        "figures": series.figures(),
        "each": [
            {name: value(move.report) for name, value in FIGURES} | {"load": move.load, "boot": move.boot}
            for move in series.moves
        ],
    }


def page(found: dict[str, Any], measured: Sequence[Series], tag: str) -> str:
    """Return the page for people."""
    return (
        "# Moves there and back under load\n\n"
        + str(conditions_text(found))
        + "\nTwo agents in network namespaces, encrypted streams, a link without a limit. The linux guest has a shared"
        " qcow2 disk; it and the debian guest (stock Debian: UEFI with its variables file, qcow2 disk, systemd) have a"
        " NIC on the bridge and are probed by UDP during the move. A move's figures are the agents' own report"
        " (docs/measures.md). *Nothing leaked* compares processes, descriptors, sockets, ports, interfaces,"
        " reservations and files of both hosts before and after: with the guest running, and when it was removed."
        " Before the first snapshot the same guest moved there and back once, for what an agent opens once and keeps.\n"
        + "".join(section(series, tag) for series in measured)
    )


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="moves there, and as many back")
    parser.add_argument("--short", action="store_true", help=f"{SHORT_ROUNDS} rounds")
    parser.add_argument("--guests", default=",".join(PLANS), help="which, with commas between them")
    asked = parser.parse_args()
    rounds = SHORT_ROUNDS if asked.short else asked.rounds
    began, measured, tag, qemu = time.monotonic(), [], "", ""
    for kind in asked.guests.split(","):
        series, tag, qemu = asyncio.run(measure(kind, rounds, REST_S))
        measured.append(series)
    how = "--short" if asked.short else f"--rounds {rounds}"
    found = conditions(f"./run bench moves {how}", tag, qemu, time.monotonic() - began)
    result = {"conditions": found, "guests": {series.plan.kind: as_json(series) for series in measured}}
    write("moves", result, page(found, measured, tag))


if __name__ == "__main__":
    main()
