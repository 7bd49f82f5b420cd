"""libvirt's domains there and back under load, with libvirt 9.0 and 11.3: what a move costs, and that nothing is lost.

    ./run bench domains [--rounds 20] [--short] [--libvirts 9.0,11.3]

One lab, one pair of daemons after the other on it. The memory's oracle is asked after every move, and both daemons are
asked where the domain is: it runs at the destination, and the source does not know it any more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from _bench import conditions, conditions_text, spread, table, write
from grid.observe import Observers
from movers.plain import beat_sink

from vmferry.core.errors import Broken, NotFound
from vmferry.core.migration import MigrationSample
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.hosts import Lab
from vmferry.lab.libvirt import LibvirtDaemon, libvirt_missing
from vmferry.lab.libvirt.moves import PLAIN, connected, daemons_of, oracle_of, planned, start_domain, steered
from vmferry.lab.scenarios import THERE_AND_BACK
from vmferry.lab.toolchain import LibvirtBuild, find_libvirt
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.facts import DomainState
from vmferry.libvirt.moves.request import Wish

LINK = BytesPerSecond(119 * MIB)
PLAN = GuestPlan("linux", memory_mib=256, working_set_mib=64, rate=20)
WISH = Wish(PLAIN, bandwidth=LINK)
#: One that no lock keeps from running on both hosts is let run when the source's process has ended.
HELD = replace(WISH, held=True)
SHORT_ROUNDS = 2
REST_S = 1.0
NAME = "domains"


@dataclass(frozen=True, slots=True)
class Move:
    """One move as it went."""

    total_ms: float
    last: MigrationSample  #: libvirt's own figures, as the destination has them
    gap_ms: float | None  #: the guest's longest silence
    load: float  #: processes that wanted a CPU in the minute before it, ours and others'


FIGURES: tuple[tuple[str, Callable[[Move], float | None]], ...] = (
    ("total time, ms", lambda move: move.total_ms),
    ("libvirt's own total time, ms", lambda move: move.last.total_ms),
    ("rounds", lambda move: move.last.rounds),
    ("bytes sent, MiB", lambda move: move.last.transferred_bytes / MIB),
    ("downtime (libvirt), ms", lambda move: move.last.downtime_ms),
    ("guest_gap, ms", lambda move: move.gap_ms),
)


class Series:
    """All moves of one kind with one libvirt."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.moves: list[Move] = []

    def figures(self) -> dict[str, dict[str, float | int | None]]:
        """Return each figure's spread."""
        return {name: spread(value(move) for move in self.moves) for name, value in FIGURES}


def longest_silence(observers: Observers, start_ns: int, end_ns: int) -> float | None:
    """Return the longest time without a beat on either host; None: nothing was heard.

    A tap puts the latest beat before the window first, which is from the move before where the guest is not.
    """
    stamps = sorted(
        stamp for tap in observers.taps.values() for stamp in tap.stamps(start_ns, end_ns) if stamp >= start_ns
    )
    return max(((after - before) / 1e6 for before, after in pairwise(stamps)), default=None)


async def one_move(
    daemons: dict[str, LibvirtDaemon],
    connections: dict[str, LibvirtConnection],
    pair: tuple[str, str],
    observers: Observers,
    wish: Wish,
) -> Move:
    """Move the domain as wished, and look for it on both hosts.

    Raises:
        Broken: it did not move, is on both hosts, or its memory is not whole.
    """
    load, began, start_ns = os.getloadavg()[0], time.monotonic(), time.monotonic_ns()
    async with planned(daemons, connections, pair, PLAN.name, wish) as domain:
        ended = (await steered(domain, PLAN, wish, "vmferry")).ended
    total_ms, source, there = (time.monotonic() - began) * 1000, connections[pair[0]], connections[pair[1]]
    if ended.failure is not None or (await there.domain(PLAN.name)).state is not DomainState.RUNNING:
        raise Broken(f"the domain did not move from {pair[0]} to {pair[1]}: {ended.reason}")
    with contextlib.suppress(NotFound):
        raise Broken(f"{pair[0]} still has {await source.domain(PLAN.name)}")
    last = await there.last_job(PLAN.name)
    await asyncio.sleep(REST_S)
    gap = longest_silence(observers, start_ns, time.monotonic_ns())
    if not (oracle := await oracle_of(daemons[pair[1]])).startswith("oracle clean"):
        raise Broken(f"the domain's memory after its move to {pair[1]}: {oracle}")
    return Move(total_ms, last, gap, round(load, 2))


async def measure(lab: Lab, build: LibvirtBuild, rounds: int) -> list[Series]:
    """Return the moves with one libvirt: as they come, and, every fourth time, held at the arrival as well.

    Raises:
        Broken: a move went wrong.
    """
    version = ".".join(map(str, build.version))
    both = {False: Series(f"libvirt {version}"), True: Series(f"libvirt {version}, held at the arrival")}
    observers = Observers(lab)
    async with daemons_of(lab, build) as daemons, connected(daemons) as connections, observers.watching():
        await start_domain(daemons["host-a"], PLAN)
        for number in range(rounds + 1):  # the first round warms up
            for held in (False, True) if number % 4 == 1 else (False,):
                for pair in THERE_AND_BACK:
                    move = await one_move(daemons, connections, pair, observers, HELD if held else WISH)
                    print(
                        f"{both[held].name} {number}/{rounds} {pair[0]} -> {pair[1]}: {move.total_ms:.0f} ms,"
                        f" guest_gap {move.gap_ms or 0:.0f} ms, oracle clean, load {move.load}",
                        flush=True,
                    )
                    if number:
                        both[held].moves.append(move)
    return list(both.values())


def section(series: Series) -> str:
    """Return one series' part of the page."""
    rows = [
        (name, *(row[key] for key in ("count", "min", "median", "p90", "max")))
        for name, row in series.figures().items()
    ]
    loads = spread(move.load for move in series.moves)
    said = (
        f"{len(series.moves)} moves: all arrived, the oracle was clean after each, and each time the source did not"
        f" know the domain any more. The machine's load (all processes) was {loads['median']} in the median,"
        f" {loads['max']} at most.\n"
    )
    return "\n".join((f"## {series.name}\n", said, table(("figure", "measured", "min", "median", "p90", "max"), rows)))


async def run(builds: Sequence[LibvirtBuild], rounds: int) -> tuple[list[Series], str]:
    """Measure with each libvirt; returns the series and QEMU's version."""
    async with Lab(link=LINK) as lab:
        if lab.network is None:
            raise Broken("The bench needs network namespaces", fix="run as root")
        sinks = [beat_sink(lab.network.namespace(host)) for host in lab.hosts]
        try:
            found = [series for build in builds for series in await measure(lab, build, rounds)]
        finally:
            for sink in sinks:
                sink.close()
        return found, ".".join(map(str, lab.hosts["host-a"].qemu.version))


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="moves there and back")
    parser.add_argument("--short", action="store_true", help=f"{SHORT_ROUNDS} rounds, and nothing is written")
    parser.add_argument("--libvirts", default="9.0,11.3", help="which, with commas between them")
    asked = parser.parse_args()
    if missing := libvirt_missing():
        parser.error(missing)
    builds = [find_libvirt(*map(int, version.split("."))) for version in asked.libvirts.split(",")]
    began = time.monotonic()
    found, qemu = asyncio.run(run(builds, SHORT_ROUNDS if asked.short else asked.rounds))
    if asked.short:
        print("\n".join(map(section, found)))
        return
    facts = conditions(f"./run bench domains --rounds {asked.rounds}", "TCG", qemu, time.monotonic() - began)
    page = (
        "# Domains of libvirt there and back under load\n\n"
        f"{conditions_text(facts)}\n"
        f"Two libvirt daemons in network namespaces, 1 Gbit/s apart; a linux guest with {PLAN.memory_mib} MiB that"
        f" writes {PLAN.rate} MiB/s over {PLAN.working_set_mib} MiB; policy vmferry, in the clear. *total time* is from"
        " the order until libvirt has finished; *guest_gap* is the longest silence of the guest's beats, seen from"
        " outside. A move that is *held at the arrival* lets the domain run there when libvirt has ended the source's"
        " process (docs/libvirt.md).\n\n" + "\n".join(map(section, found))
    )
    series = [{"series": each.name, "figures": each.figures()} for each in found]
    write(NAME, {"conditions": facts, "series": series}, page)


if __name__ == "__main__":
    main()
