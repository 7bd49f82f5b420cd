"""Every way that a stream can be asked to take: it works, or it is refused beforehand and the reason is told.

    ./run bench streams [--qemus 7.2,10.0] [--resume]

Link, channels and compression, encrypted by a key or by certificates and not, pre-copy and post-copy, with and without
a disk that the hosts do not share, on each QEMU: a guest moves with it, its memory's oracle is asked, and the disk's
copies are compared. What `check` refuses must be refused by `migrate` as well, and leave the guest where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import filecmp
import os
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import _rdma_ways
from _bench import conditions, conditions_text, table, write
from _parts import Parts, Rows
from _ways import RDMA, THROUGH_A_FILE, Seen, Way, told_by, ways

from vmferry.api.models import CheckReply
from vmferry.core.errors import Broken
from vmferry.core.progress import Outcome, Report
from vmferry.core.units import MIB
from vmferry.lab.certificates import StreamCa
from vmferry.lab.guest_plans import DiskPlan, micro_guest
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.page_faults import page_faults_for_all
from vmferry.lab.scenarios import move, remove, started
from vmferry.lab.toolchain import find_qemu
from vmferry.ports.hypervisor import RunState

#: The hosts' only pipeline.
_ZSTD = {"send": ["zstd", "-1", "-c"], "receive": ["zstd", "-d", "-c"]}
DISK_BYTES = 8 * MIB
USERFAULTFD = Path("/proc/sys/vm/unprivileged_userfaultfd")
OTHER = {"host-a": "host-b", "host-b": "host-a"}


def settings_with(certificates: Path) -> dict[str, object]:
    """Return what stands in a host's agent file."""
    return {"migration": {"pipelines": {"zstd": _ZSTD}, "tls_dir": str(certificates)}}


async def measure(version: str) -> dict[Way, Seen]:
    """Return what came of every way on one QEMU."""
    major, minor = map(int, version.split("."))
    qemu = find_qemu(major, minor)
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmferry-streams-")))
        settings = {host: settings_with(directory / host) for host in OTHER}
        ca = StreamCa()
        for host in OTHER:
            ca.write(directory / host, host)
        lab = Lab(qemus=dict.fromkeys(OTHER, qemu), settings=settings, local_dirs=True)
        await stack.enter_async_context(lab)
        disk = lab.local / "web-8.img"
        (lab.hosts["host-a"].local_dir / disk.name).write_bytes(os.urandom(DISK_BYTES))
        with_disk = replace(micro_guest("web-8"), disks=(DiskPlan(disk, "raw"),))
        guests = {False: await started(lab, micro_guest()), True: await started(lab, with_disk)}
        seen: dict[Way, Seen] = {}
        for way in [way for way in ways() if way.link != RDMA]:
            guest, live = guests[way.disk], (major, minor) >= (10, 0)
            seen[way] = await (try_file(lab, guest) if way == THROUGH_A_FILE else try_one(lab, guest, way, live=live))
            print(version, *way.cells, "works" if seen[way].works else "refused", seen[way].told, flush=True)
        for guest in guests.values():
            await remove(lab, guest)
        return seen


async def try_file(lab: Lab, guest: GuestRun) -> Seen:
    """Save it where it is, and restore it on the other host.

    Raises:
        Broken: its memory is not whole, or it does not run.
    """
    destination, file = OTHER[guest.host], lab.directory / f"{guest.name}.guest"
    await lab.hosts[guest.host].api.post(f"/v1/guests/{guest.name}/save", {"path": str(file)})
    await lab.hosts[destination].api.post("/v1/restore", {"path": str(file)})
    guest.moved_to(destination)
    return Seen(works=True, told=await whole(guest, THROUGH_A_FILE))


async def whole(guest: GuestRun, way: Way) -> str:
    """Return what the oracle says of a guest that runs.

    Raises:
        Broken: its memory is not whole, or it does not run.
    """
    oracle, state = await guest.oracle(), (await guest.view()).run_state
    if not oracle.startswith("oracle clean") or state is not RunState.RUNNING:
        raise Broken(f"{way}: {oracle}, and the guest is {state}")
    return oracle


async def try_one(lab: Lab, guest: GuestRun, way: Way, *, live: bool) -> Seen:
    """Ask beforehand, then move.

    Raises:
        Broken: what was foretold is not what came of it, or the guest's memory is not whole.
    """
    api, destination = lab.hosts[guest.host].api, OTHER[guest.host]
    if not live:  # QEMU 7.2 loses writes of a guest that runs under TCG
        await api.post(f"/v1/guests/{guest.name}/pause")
    body = {"destination": destination, "options": way.options}
    check = CheckReply.model_validate(await api.post(f"/v1/guests/{guest.name}/check", body))
    leg = await move(lab, guest, destination, way.options)
    if not live:
        await lab.hosts[guest.host].api.post(f"/v1/guests/{guest.name}/resume")
    if (leg.report.outcome, bool(check.blockers)) not in {(Outcome.MOVED, False), (Outcome.BLOCKED, True)}:
        raise Broken(f"{way}: check said {check.blockers}, and it {leg.report.outcome}: {leg.report.reason}")
    if way.disk and not check.blockers:
        compare(lab, leg.report, destination)
    oracle = await whole(guest, way)
    told = told_by(check.blockers, destination) if check.blockers else oracle
    return Seen(works=not check.blockers, told=told)


def compare(lab: Lab, report: Report, destination: str) -> None:
    """Compare both copies of a disk, and remove the one that was put aside.

    Raises:
        Broken: they differ, or one is missing.
    """
    (path,) = report.disks
    left = lab.hosts[OTHER[destination]].local_dir / f"{Path(path).name}.left-{report.handover}"
    arrived = lab.hosts[destination].local_dir / Path(path).name
    if not filecmp.cmp(left, arrived, shallow=False):
        raise Broken(f"{arrived} is not what {left} is")
    left.unlink()


def page(seen: dict[str, dict[Way, Seen]], found: dict[str, object]) -> str:
    """Return the page."""
    header = ("link", "channels", "compression", "stream", "kind", "disk", *(f"QEMU {version}" for version in seen))
    rows: list[Sequence[object]] = []
    reasons: dict[str, int] = {}
    for way in ways():
        cells = []
        for results in seen.values():
            result = results[way]
            number = 0 if result.works else reasons.setdefault(result.told, len(reasons) + 1)
            cells.append("works" if result.works else f"refused [{number}]")
        rows.append((*way.cells, *cells))
    told = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    works = sum(result.works for results in seen.values() for result in results.values())
    total = sum(len(results) for results in seen.values())
    return (
        "# Ways that a stream can take\n\n"
        + conditions_text(found)
        + "\nThe micro guest writes 8 MiB/s over 16 MiB of its 64 (on 7.2 it is paused for the move: TCG there loses"
        " writes). *Works*: it moved and its memory's oracle was clean. *Refused*: `check` and `migrate` both refused"
        " it before anything was touched, and the guest ran on where it was. Post-copy begins with the first round."
        f" A *local* disk has {DISK_BYTES // MIB} MiB of random bytes that only the guest's host has (`--copy-disks`);"
        " the copy was compared with the source's, byte by byte, after each move. `rdma` ran on soft-RoCE between"
        " nested hosts with agents of their own; `file` is `vmferry save`, and `restore` on the other host, where"
        " nothing else can be asked for."
        f" {works} of {total} ways work; of the others every reason is listed. docs/streams.md says what each is for."
        "\n\n" + table(header, rows) + "\n## Why it is refused\n\n" + told + "\n"
    )


def rows_by(measure: Callable[[str], Coroutine[None, None, dict[Way, Seen]]], version: str) -> Rows:
    """Measure a part; return ways and what came of them as JSON has it."""
    seen = asyncio.run(measure(version))
    return [{"way": dataclasses.asdict(way), "seen": dataclasses.asdict(result)} for way, result in seen.items()]


def seen_of(rows: Rows) -> dict[Way, Seen]:
    """Return ways and what came of them, from JSON."""
    return {Way(**row["way"]): Seen(**row["seen"]) for row in rows}


@contextlib.contextmanager
def page_faults_for_old_qemus() -> Iterator[None]:
    """Let QEMU 7.2 as another user catch page faults, as its blocker says; as it was afterwards."""
    before = USERFAULTFD.read_text("ascii")
    USERFAULTFD.write_text("1", "ascii")
    try:
        yield
    finally:
        USERFAULTFD.write_text(before, "ascii")


def main() -> None:
    """Try every way and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qemus", type=lambda text: text.split(","), default=["7.2", "10.0"])
    parser.add_argument("--resume", action="store_true", help="go on with what an earlier run has seen")
    asked = parser.parse_args()
    began, parts = time.monotonic(), Parts("streams", resume=asked.resume)
    seen: dict[str, dict[Way, Seen]] = {}
    with page_faults_for_all(), page_faults_for_old_qemus():
        for version in asked.qemus:
            seen[version] = seen_of(parts.of(version, partial(rows_by, measure, version)))
    for version in asked.qemus:
        seen[version] |= seen_of(parts.of(f"{version} rdma", partial(rows_by, _rdma_ways.measure, version)))
    command = f"./run bench streams --qemus {','.join(asked.qemus)}" + " --resume" * asked.resume
    found = conditions(command, "TCG", " and ".join(asked.qemus), time.monotonic() - began)
    rows = [
        {"qemu": version, **way.options, "link": way.link, "postcopy": way.postcopy, **dataclasses.asdict(result)}
        for version, results in seen.items()
        for way, result in results.items()
    ]
    write("streams", {"conditions": found, "ways": rows}, page(seen, found))


if __name__ == "__main__":
    main()
