"""A guest whose disk only its host has, moved while it writes to it: how long, and are both copies the same.

    ./run bench disks [--rounds 3] [--disk-mib 2048] [--rate 30]

Each round moves the guest to and fro with a raw and with a qcow2 image over a link of 1 Gbit/s. The first move is held
when it is committed and the guest runs nowhere, and both copies are compared block by block; the second is timed.
Then the guest reads back everything that it has written.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _bench import conditions, conditions_text, spread, table, write

from vmferry.core.errors import Broken
from vmferry.core.progress import Outcome, Report
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.lab.guest_plans import DiskPlan, GuestPlan
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import migrate, move, remove, started, wait_finished, wait_state, wait_until
from vmferry.lab.toolchain import find_qemu

LINK = BytesPerSecond(125_000_000)
COPY: dict[str, object] = {"copy_disks": True}
#: The guest is committed here, and has not been started there.
HOLD = "destination.acquired"
READ_BACK_S = 300.0


@dataclass(frozen=True)
class Timed:
    """One timed move."""

    kind: str
    report: Report
    guest: str  #: what it read back


async def measure(rounds: int, disk_mib: int, rate: int) -> tuple[list[Timed], list[str]]:
    """Return the timed moves, and what the comparisons said.

    Raises:
        Broken: a guest did not arrive, or something is not the same.
    """
    timed: list[Timed] = []
    compared: list[str] = []
    async with Lab(link=LINK, local_dirs=True) as lab:
        for number in range(rounds):
            for kind in ("raw", "qcow2"):
                disk = make_image(lab, kind, f"disk{number}.{kind}", disk_mib)
                plan = GuestPlan(
                    "linux", memory_mib=256, working_set_mib=32, rate=8, disk_rate=rate, disks=(DiskPlan(disk, kind),)
                )
                guest = await started(lab, plan)
                compared.append(await compare_held(lab, guest, disk, kind))
                print(number, kind, compared[-1], flush=True)
                timed.append(await time_one(lab, guest, disk, kind))
                print(number, kind, timed[-1].report.disks_ms, timed[-1].report.total_ms, timed[-1].guest, flush=True)
                await remove(lab, guest)
                clean(lab)
    return timed, compared


def make_image(lab: Lab, kind: str, name: str, mib: int) -> Path:
    """Make an image full of random bytes on host-a; returns where the hosts see it."""
    there = lab.hosts["host-a"].local_dir / name
    raw = there.with_suffix(".raw")
    subprocess.run(["dd", "if=/dev/urandom", f"of={raw}", "bs=1M", f"count={mib}", "status=none"], check=True)
    if kind != "raw":
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, str(raw), str(there)], check=True)
        raw.unlink()
    return lab.local / name


async def compare_held(lab: Lab, guest: GuestRun, disk: Path, kind: str) -> str:
    """Move the guest to host-b; on the way, when it runs nowhere, compare both copies block by block.

    Raises:
        Broken: they differ, or it did not arrive.
    """
    hold = lab.hosts["host-b"].hold_dir / HOLD
    hold.touch()
    try:
        handover = await migrate(lab, guest, "host-b", COPY)
        await wait_until(lambda: _exists(hold.with_name(hold.name + ".reached")), "it is committed", 600.0)
        await wait_state(lab, "host-a", handover, "committed")
        copies = [lab.hosts[host].local_dir / disk.name for host in ("host-a", "host-b")]
        words = ["qemu-img", "compare", "-U", "-f", kind, "-F", kind, *map(str, copies)]
        told = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, check=False)
    finally:
        hold.unlink()
        hold.with_name(hold.name + ".reached").unlink(missing_ok=True)
    view = await wait_finished(lab, "host-a", handover)
    if told.returncode or view.report is None or view.report.outcome is not Outcome.MOVED:
        raise Broken(f"{kind}: {told.stdout}{told.stderr}; {view.report}")
    guest.moved_to("host-b")
    return str(told.stdout.strip())


async def _exists(path: Path) -> bool:
    return path.exists()  # noqa: ASYNC240 - a file of this machine


async def time_one(lab: Lab, guest: GuestRun, disk: Path, kind: str) -> Timed:
    """Move the guest back, and have it read its disk.

    Raises:
        Broken: it did not arrive, or what it reads is not what it has written.
    """
    for left in lab.hosts["host-a"].local_dir.glob(f"{disk.name}.left-*"):
        left.unlink()
    leg = await move(lab, guest, "host-a", COPY)
    read = await guest.disk(READ_BACK_S)
    if leg.report.outcome is not Outcome.MOVED or "clean" not in read or "clean" not in leg.oracle:
        raise Broken(f"{kind}: {leg.report}; {read}; {leg.oracle}")
    return Timed(kind, leg.report, read)


def clean(lab: Lab) -> None:
    """Remove every image of the lab."""
    for host in lab.hosts.values():
        for path in host.local_dir.iterdir():
            path.unlink()


HEADER = ("image", "moves", "disk, s", "disk, MiB/s", "whole move, s", "pause (beats), ms", "of it: mirrors end, ms")


def page(timed: Sequence[Timed], compared: Sequence[str], asked: argparse.Namespace, found: dict[str, object]) -> str:
    """Return the page."""
    rows = [_row(kind, [one.report for one in timed if one.kind == kind]) for kind in ("raw", "qcow2")]
    said = "; ".join(f"{compared.count(text)} x {text!r}" for text in dict.fromkeys(compared))
    return (
        "# Disks that two hosts do not share\n\n"
        + conditions_text(found)
        + f"\nThe linux guest (256 MiB, writes 8 MiB/s over 32 MiB of memory) writes {asked.rate} MiB/s to a disk of"
        f" {asked.disk_mib} MiB full of random bytes, in pieces of 64 KiB one after the other, around and around. The"
        " link between the hosts gives 1 Gbit/s (119 MiB/s), the stream and the mirror are encrypted; images are files"
        " on this machine's own file system, both hosts' on the same disk. *disk*: until the copy is in step; then the"
        " memory is sent. Medians, in brackets least and most.\n\n"
        + table(HEADER, rows)
        + f"\nCompared block by block (`qemu-img compare`) when the guest was committed and ran nowhere: {said}."
        f" After each timed move the guest read back all that it had written: {len(timed)} of {len(timed)} clean.\n"
    )


def _row(kind: str, reports: Sequence[Report]) -> tuple[object, ...]:
    disk = [report.disks_ms for report in reports if report.disks_ms is not None]
    rates = [(one.disk_bytes or 0) / MIB / one.disks_ms * 1000 for one in reports if one.disks_ms]
    gaps = [report.guest_gap.largest_ms for report in reports if report.guest_gap is not None]
    ends = [report.commit_parts_ms.get("mirrors_end") for report in reports]
    whole = [report.total_ms / 1000 for report in reports if report.total_ms is not None]
    return (
        kind,
        len(reports),
        _text([value / 1000 for value in disk], 1),
        _text(rates, 0),
        _text(whole, 1),
        _text(gaps, 0),
        _text([value for value in ends if value is not None], 1),
    )


def _text(values: Sequence[float], digits: int) -> str | None:
    if not values:
        return None
    seen = spread(values)
    least, median, most = (float(seen[name] or 0) for name in ("min", "median", "max"))
    return f"{median:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk-mib", type=int, default=2048)
    parser.add_argument("--rate", type=int, default=30, help="MiB/s written to the disk")
    asked = parser.parse_args()
    began = time.monotonic()
    timed, compared = asyncio.run(measure(asked.rounds, asked.disk_mib, asked.rate))
    command = f"./run bench disks --rounds {asked.rounds} --disk-mib {asked.disk_mib} --rate {asked.rate}"
    version = ".".join(map(str, find_qemu(10, 0).version[:2]))
    found = conditions(command, "TCG", version, time.monotonic() - began)
    moves = [
        {
            "image": one.kind,
            "disks_ms": one.report.disks_ms,
            "disk_bytes": one.report.disk_bytes,
            "total_ms": one.report.total_ms,
            "guest_gap_ms": None if one.report.guest_gap is None else one.report.guest_gap.largest_ms,
            "commit_parts_ms": one.report.commit_parts_ms,
            "read_back": one.guest,
        }
        for one in timed
    ]
    write("disks", {"conditions": found, "moves": moves, "compared": compared}, page(timed, compared, asked, found))


if __name__ == "__main__":
    main()
