"""What exactly-one-owner costs: our commit against plain QMP without any, same guest, same hosts, in turn.

    ./run bench commit [--runs 20]

Ours: `vmferry` moves the micro guest between two agents (mutual TLS, journal, two processes). Plain: two QEMUs with the
very same command line in the same two namespaces, migrated over QMP with QEMU's own start at the destination: no
reservation, no journal, no owner. Interleaved: ours, plain, ours, plain ...
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _bench import conditions, conditions_text, spread, table, write
from _plain import plain_qemu
from qemu.qmp import EventListener, QMPClient

from vmferry.core.guest import KernelBoot
from vmferry.core.progress import Report
from vmferry.lab.guest_plans import micro_guest
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import migrate, started, wait_finished

PORT = 49300
#: QEMU options that are the agent's and not the guest's: replaced or dropped for the plain runs.
DROPPED_WITH_VALUE = frozenset({"-chardev", "-mon", "-sandbox", "-incoming", "-pidfile"})
DROPPED = frozenset({"-S"})


@dataclass(frozen=True)
class Plain:
    """One move over plain QMP."""

    completed_to_resume_ms: float
    stop_to_resume_ms: float
    downtime_ms: float


def plain_argv(argv: list[str], kernel: str) -> list[str]:
    """Return the guest's command line without the agent's sockets and descriptors, and without its pause at first."""
    kept: list[str] = []
    rest = iter(argv)
    for word in rest:
        if word in DROPPED:
            continue
        if word in DROPPED_WITH_VALUE:
            value = next(rest)
            if word == "-chardev" and "id=qmp" not in value:
                kept += ["-chardev", _null(value)]
        elif word == "-kernel":
            next(rest)  # a descriptor of the agent's
            kept += ["-kernel", kernel]
        else:
            kept.append(word)
    return kept


def _null(chardev: str) -> str:
    identity = next(part for part in chardev.split(",") if part.startswith("id="))
    return f"null,{identity}"


class Stamps:
    """When which event of a QEMU came, and each status of its migration."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._came: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def take(self, listener: EventListener) -> None:
        """Stamp events, for ever."""
        async for event in listener:
            data: dict[str, Any] = event.get("data", {})  # type: ignore[assignment]
            name = str(data["status"] if event["event"] == "MIGRATION" else event["event"])
            self._at[name] = time.monotonic()
            self._came[name].set()

    async def of(self, name: str) -> float:
        """Wait for an event or a status; returns the last moment of it, in seconds."""
        await self._came[name].wait()
        return self._at[name]


@contextlib.asynccontextmanager
async def plain_host(inside: list[str], argv: list[str], qmp: Path) -> AsyncIterator[tuple[QMPClient, Stamps]]:
    """Run the guest's command line in a lab host's namespace."""
    async with plain_qemu([*inside, *argv], qmp) as client, asyncio.TaskGroup() as group:
        stamps = Stamps()
        listener = EventListener(("STOP", "RESUME", "MIGRATION"))
        client.register_listener(listener)
        taking = group.create_task(stamps.take(listener))
        on = [{"capability": name, "state": True} for name in ("events", "return-path")]
        await client.execute("migrate-set-capabilities", {"capabilities": on})
        try:
            yield client, stamps
        finally:
            taking.cancel()


async def plain_move(lab: Lab, argv: list[str], folder: Path) -> Plain:
    """Move the same guest once over plain QMP."""
    incoming = [*argv, "-incoming", "defer"]
    async with (
        plain_host(lab.inside("host-a"), argv, folder / "source.sock") as (source, seen_here),
        plain_host(lab.inside("host-b"), incoming, folder / "destination.sock") as (destination, seen_there),
    ):
        await asyncio.sleep(1.0)  # the guest boots and writes
        address = f"tcp:{lab.hosts['host-b'].address}:{PORT}"
        await destination.execute("migrate-incoming", {"uri": address})
        await source.execute("migrate-set-parameters", {"max-bandwidth": 16 * 2**30, "downtime-limit": 100})
        await source.execute("migrate", {"uri": address})
        completed, stopped = await seen_here.of("completed"), await seen_here.of("STOP")
        resumed = await seen_there.of("RESUME")
        info: dict[str, Any] = await source.execute("query-migrate")  # type: ignore[assignment]
        return Plain(1000 * (resumed - completed), 1000 * (resumed - stopped), float(info["downtime"]))


async def our_move(lab: Lab, guest: GuestRun) -> Report:
    """Move the guest once with vmferry; returns the agent's report."""
    source = guest.host
    destination = "host-b" if source == "host-a" else "host-a"
    view = await wait_finished(lab, source, await migrate(lab, guest, destination))
    guest.moved_to(destination)
    if view.report is None or view.report.outcome != "moved":
        raise SystemExit(f"the guest did not move: {view}")
    return view.report


async def measure(runs: int) -> tuple[list[Report], list[Plain], str, str]:
    """Return both series, interleaved in one lab."""
    ours, plain = [], []
    async with Lab() as lab:
        guest = await started(lab, micro_guest())
        view = await guest.view()
        command = await asyncio.to_thread(Path(f"/proc/{view.pid}/cmdline").read_bytes)
        if not isinstance(view.spec.boot, KernelBoot):
            raise SystemExit(f"the guest has no kernel of the host's: {view.spec.boot}")
        argv = plain_argv(command.decode().rstrip("\0").split("\0"), view.spec.boot.kernel)
        facts = await lab.hosts["host-a"].api.get("/v1/host")
        with tempfile.TemporaryDirectory(prefix="vmferry-bench-") as folder:
            for number in range(runs):
                ours.append(await our_move(lab, guest))
                plain.append(await plain_move(lab, argv, Path(folder)))
                print(
                    f"run {number + 1}/{runs}: commit {ours[-1].commit_ms:.1f} ms,"
                    f" plain completed->RESUME {plain[-1].completed_to_resume_ms:.1f} ms",
                    flush=True,
                )
        oracle = await guest.oracle()
        if "clean" not in oracle:
            raise SystemExit(f"the oracle says: {oracle}")
    return ours, plain, facts["acceleration_tag"], ".".join(map(str, facts["qemu"]["version"]))


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    began = time.monotonic()
    ours, plain, tag, qemu = asyncio.run(measure(runs))
    found = conditions(f"./run bench commit --runs {runs}", tag, qemu, time.monotonic() - began)
    parts = sorted({name for report in ours for name in report.commit_parts_ms})
    series = {
        "ours: commit": spread(report.commit_ms for report in ours),
        **{f"ours: {name}": spread(report.commit_parts_ms.get(name) for report in ours) for name in parts},
        "ours: downtime (QEMU)": spread(report.downtime_ms for report in ours),
        "ours: guest_gap": spread(report.guest_gap.largest_ms if report.guest_gap else None for report in ours),
        "ours: guest_gap without a move": spread(
            report.guest_gap.baseline_ms if report.guest_gap else None for report in ours
        ),
        "ours: time to first byte": spread(report.first_byte_ms for report in ours),
        "plain QMP: completed -> RESUME": spread(run.completed_to_resume_ms for run in plain),
        "plain QMP: STOP -> RESUME": spread(run.stop_to_resume_ms for run in plain),
        "plain QMP: downtime (QEMU)": spread(run.downtime_ms for run in plain),
    }
    rows = [(name, *(row[key] for key in ("count", "min", "median", "p90", "max"))) for name, row in series.items()]
    page = (
        "# What the commit costs\n\n"
        + conditions_text(found)
        + "\nMicro guest, 64 MiB, 8 MiB/s written; all figures in ms. Bar: commit at most 10 ms (median).\n\n"
        + table(("figure", "runs", "min", "median", "p90", "max"), rows)
        + "\n*commit* is `pause_to_continue` (pre-switchover -> device at the source) plus"
        " `completed_to_resume` (completed at the source -> RESUME at the destination, moved to the source's clock),"
        " all by QEMU's own stamps. Plain QMP has neither: QEMU at the destination starts the guest by itself, often"
        " before the source says completed, and nobody could take it back.\n"
    )
    write("commit", {"conditions": found, "series_ms": series}, page)


if __name__ == "__main__":
    main()
