"""What leases of disks cost in a move: the same guest and hosts, without leases, with one and with two, in turn.

    ./run bench leases [--runs 20]

Leases are sanlock's, on this machine's disk: storage that hosts share is slower. The micro guest writes to none of its
disks. The three pairs of hosts live side by side, and only one guest moves at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import time
from collections import defaultdict

from _bench import conditions, conditions_text, spread, table, write

from vmferry.core.progress import Report
from vmferry.lab.guest_plans import DiskPlan, GuestPlan
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.sanlock import SanlockDaemons
from vmferry.lab.scenarios import migrate, started, wait_finished

SERIES = ("no lease", "one lease", "two leases")
HOSTS = ("host-a", "host-b")
#: Parts of the commit in which leases are given back and taken.
PARTS = ("commit_round_trip", "completed_to_release", "completed_to_resume", "destination_intent")


async def begin(stack: contextlib.AsyncExitStack, leased: int) -> tuple[Lab, GuestRun]:
    """Return a lab whose guest has leases of so many of its two disks."""
    settings: dict[str, dict[str, object]] = {}
    if leased:
        daemons = stack.enter_context(SanlockDaemons())
        for number, host in enumerate(HOSTS, 1):
            daemons.start(host, number)
            # the lab's own directory has no name yet; these daemons know of no other lab
            settings[host] = {"sanlock": daemons.settings(host, number, ["/run/vmferry-lab"])}
    lab = await stack.enter_async_context(Lab(settings=settings))
    return lab, await started(lab, plan(lab, leased))


def plan(lab: Lab, leased: int) -> GuestPlan:
    """Return the guest."""
    disks = tuple(DiskPlan(lab.directory / f"web-7-{number}.raw", "raw") for number in range(max(1, leased)))
    for disk in disks:
        subprocess.run(["qemu-img", "create", "-q", "-f", "raw", str(disk.image), "16M"], check=True)
    return GuestPlan("micro", memory_mib=64, working_set_mib=16, rate=8, disks=disks)


async def move(lab: Lab, guest: GuestRun) -> Report:
    """Move the guest once; returns the agent's report."""
    source = guest.host
    destination = next(host for host in HOSTS if host != source)
    view = await wait_finished(lab, source, await migrate(lab, guest, destination))
    if view.report is None or view.report.outcome != "moved":
        raise SystemExit(f"the guest did not move: {view}")
    guest.moved_to(destination)
    return view.report


async def wait_movable(lab: Lab, guest: GuestRun) -> None:
    """Wait until nothing blocks: daemons that have just started have not seen each other."""
    until = time.monotonic() + 60
    while (ran := await lab.cli("host-a", "check", guest.name, "host-b")).exit_code:
        if time.monotonic() > until:
            raise SystemExit(f"the guest cannot move: {ran.stdout}")
        await asyncio.sleep(1)


async def measure(runs: int) -> tuple[dict[str, list[Report]], str, str]:
    """Return the reports of each series, and what ran them."""
    found: dict[str, list[Report]] = defaultdict(list)
    async with contextlib.AsyncExitStack() as stack:
        labs = [await begin(stack, leased) for leased in range(len(SERIES))]
        for lab, guest in labs:
            await wait_movable(lab, guest)
        for number in range(runs):
            for name, (lab, guest) in zip(SERIES, labs, strict=True):
                found[name].append(await move(lab, guest))
            told = ", ".join(f"{name} {found[name][-1].commit_ms:.1f} ms" for name in SERIES)
            print(f"run {number + 1}/{runs}: commit: {told}", flush=True)
        for _, guest in labs:
            if "clean" not in (oracle := await guest.oracle()):
                raise SystemExit(f"the oracle says: {oracle}")
        facts = await labs[0][0].hosts["host-a"].api.get("/v1/host")
    return found, facts["acceleration_tag"], ".".join(map(str, facts["qemu"]["version"]))


def figures(reports: list[Report]) -> dict[str, list[float | None]]:
    """Return what is told of a series, in ms."""
    return {
        "commit": [report.commit_ms for report in reports],
        **{part: [report.commit_parts_ms.get(part) for report in reports] for part in PARTS},
        "guest_gap": [report.guest_gap.largest_ms if report.guest_gap else None for report in reports],
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    began = time.monotonic()
    reports, tag, qemu = asyncio.run(measure(runs))
    found = conditions(f"./run bench leases --runs {runs}", tag, qemu, time.monotonic() - began)
    series = {
        f"{name}: {figure}": spread(values)
        for name, each in reports.items()
        for figure, values in figures(each).items()
    }
    rows = [(name, *(row[key] for key in ("count", "min", "median", "p90", "max"))) for name, row in series.items()]
    page = (
        "# What leases of disks cost\n\n"
        + conditions_text(found)
        + "\nMicro guest, 64 MiB, 8 MiB/s written to memory; sanlock's leases on a local file system; figures in ms."
        " What is meant by each stands in [commit.md](commit.md).\n\n"
        + table(("figure", "runs", "min", "median", "p90", "max"), rows)
        + "\nThe source gives its leases back within `completed_to_release`, the destination takes them within"
        " `destination_intent`, which is part of `commit_round_trip`: the guest stands still for both.\n"
    )
    write("leases", {"conditions": found, "series_ms": series}, page)


if __name__ == "__main__":
    main()
