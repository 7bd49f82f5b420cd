"""Records real moves of libvirt's domains: each reading of the job in libvirt's own words, each event, each order.

    python -m vmferry.lab.libvirt.record [--libvirts 9.0,11.3] [--only precopy,aborted] DIRECTORY

writes one file for each libvirt and each way of moving, `libvirt-9.0-precopy.json`; as root, a minute for each libvirt.
Unit tests replay them (tests/libvirt/test_transcripts.py), so that nobody needs a daemon to see what a change of ours
makes of what libvirt says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vmferry.core.migration import MigrationSample
from vmferry.core.progress import PolicyOrdered
from vmferry.core.units import MIB, BytesPerSecond, Milliseconds
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.hosts import Lab
from vmferry.lab.libvirt.daemon import LibvirtDaemon
from vmferry.lab.libvirt.events import EventTap
from vmferry.lab.libvirt.moves import PLAIN, connected, daemons_of, oracle_of, planned, start_domain, steered
from vmferry.lab.toolchain import LibvirtBuild, find_libvirt
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.moves.moving import LibvirtMove
from vmferry.libvirt.moves.request import Wish
from vmferry.libvirt.moves.samples import sample_of

LINK = BytesPerSecond(119 * MIB)
PAIR = ("host-a", "host-b")
#: Readings with figures before an aborted move is given up.
_ABORTED_AFTER = 8


@dataclass(frozen=True, slots=True)
class Way:
    """One way of moving a domain."""

    name: str
    plan: GuestPlan
    wish: Wish
    policy: str = "vmferry"
    is_given_up: bool = False


_PLAN = GuestPlan("linux", memory_mib=192, working_set_mib=32, rate=20)
_FAST = replace(_PLAN, memory_mib=256, working_set_mib=96, rate=150)
_SLOW = Wish(PLAIN, bandwidth=BytesPerSecond(30 * MIB))
WAYS = (
    Way("precopy", _PLAN, Wish(PLAIN, bandwidth=LINK)),
    Way("postcopy", _FAST, replace(_SLOW, postcopy=True)),
    Way("aborted", _PLAN, replace(_SLOW, bandwidth=BytesPerSecond(8 * MIB)), is_given_up=True),
    Way("autoconverge", replace(_FAST, rate=45), replace(_SLOW, auto_converge=True), "qemu"),
)


@dataclass(slots=True)
class Transcript:
    """What was said in one move, in time."""

    began: float = field(default_factory=time.monotonic)
    began_wall: float = field(default_factory=time.time)
    lines: list[dict[str, Any]] = field(default_factory=list)
    _before: dict[str, Any] = field(default_factory=dict)

    def add(self, kind: str, **facts: Any) -> None:
        """Keep something that was said now."""
        self.lines.append({"t": kind, "at_ms": round((time.monotonic() - self.began) * 1000, 1), **facts})

    def stats(self, stats: dict[str, Any], *, in_postcopy: bool) -> None:
        """Keep a reading as what has changed since the one before."""
        changed = {key: value for key, value in stats.items() if self._before.get(key) != value}
        gone = [key for key in self._before if key not in stats]
        self._before = dict(stats)
        self.add("stats", postcopy=in_postcopy, changed=changed, **({"gone": gone} if gone else {}))


class RecordedMove:
    """A move whose readings are written down; as `ports.domains.MovingDomain`."""

    def __init__(self, move: LibvirtMove, transcript: Transcript, read: Callable[[int], object]) -> None:
        self._move = move
        self._transcript = transcript
        self._read = read
        self._count = 0
        self.name = move.name
        self.abort, self.set_downtime_limit, self.set_bandwidth = (
            move.abort,
            move.set_downtime_limit,
            move.set_bandwidth,
        )
        self.start_postcopy, self.set_following = move.start_postcopy, move.set_following
        self.suspend, self.resume = move.suspend, move.resume
        self.move, self.wait_news = move.move, move.wait_news

    async def sample(self) -> MigrationSample:
        """Return how the move stands."""
        stats, in_postcopy = await self._move.source.job_words(self.name)
        self._transcript.stats(stats, in_postcopy=in_postcopy)
        self._count += bool(stats.get("memory_total"))
        self._read(self._count)
        return sample_of(stats, in_postcopy=in_postcopy)


async def record(daemons: dict[str, LibvirtDaemon], connections: dict[str, LibvirtConnection], way: Way) -> Transcript:
    """Move a domain and return what was said.

    Raises:
        VmferryError: it could not be started, or it is not whole afterwards.
    """
    await start_domain(daemons[PAIR[0]], way.plan)
    transcript, name = Transcript(), way.plan.name
    async with (
        planned(daemons, connections, PAIR, name, way.wish) as move,
        EventTap(daemons[PAIR[0]], "source") as here,
        EventTap(daemons[PAIR[1]], "destination") as there,
    ):
        transcript.began, transcript.began_wall = time.monotonic(), time.time()
        enough = asyncio.Event()

        def read(count: int) -> None:
            if way.is_given_up and count >= _ABORTED_AFTER:
                enough.set()

        def tell(event: object) -> None:
            if isinstance(event, PolicyOrdered):
                transcript.add("order", order=event.order, rule=event.rule, refused=event.refused)

        running = asyncio.create_task(
            steered(RecordedMove(move, transcript, read), way.plan, way.wish, way.policy, tell)
        )
        wanted = asyncio.create_task(enough.wait())
        await asyncio.wait({running, wanted}, return_when=asyncio.FIRST_COMPLETED)
        wanted.cancel()
        if enough.is_set():
            running.cancel()
            await asyncio.wait({running})
            transcript.add("ended", failure="interrupted")
        else:
            transcript.add("ended", failure=(await running).ended.reason)
        if not way.is_given_up:
            transcript.add("after", stats=(await connections[PAIR[1]].job_words(name, over=True))[0])
        await asyncio.sleep(0.5)
    for event in (*here.events, *there.events):
        transcript.lines.append(event.line(transcript.began_wall))
    transcript.lines.sort(key=lambda line: float(line["at_ms"]))
    if not (oracle := await oracle_of(daemons[PAIR[not way.is_given_up]])).startswith("oracle clean"):
        raise AssertionError(oracle)
    return transcript


def text_of(way: Way, build: LibvirtBuild, qemu: tuple[int, ...], transcript: Transcript) -> str:
    """Return a transcript as its file has it: one JSON document, a line for each thing that was said."""
    head = {
        "libvirt": ".".join(map(str, build.version)),
        "qemu": ".".join(map(str, qemu)),
        "way": way.name,
        "policy": way.policy,
        "memory_mib": way.plan.memory_mib,
        "rate_mib": way.plan.rate,
        "bandwidth": way.wish.bandwidth,
        "postcopy": way.wish.postcopy,
        "auto_converge": way.wish.auto_converge,
        "encrypted": way.wish.stream.encrypted,
    }
    lines = ",\n".join(json.dumps(line) for line in transcript.lines)
    return f'{{"head": {json.dumps(head)},\n"lines": [\n{lines}\n]}}\n'


async def record_all(builds: list[LibvirtBuild], ways: list[Way], directory: Path) -> None:
    """Write a file for each libvirt and way."""
    async with Lab(link=LINK) as lab:
        for build in builds:
            async with daemons_of(lab, build) as daemons:
                for way in ways:
                    async with connected(daemons) as connections:
                        transcript = await record(daemons, connections, way)
                    file = directory / f"libvirt-{build.version[0]}.{build.version[1]}-{way.name}.json"
                    file.write_text(text_of(way, build, lab.hosts[PAIR[0]].qemu.version, transcript), "utf-8")
                    print(f"{file.name}: {len(transcript.lines)} lines, {_duration(transcript):.0f} ms", flush=True)


def _duration(transcript: Transcript) -> Milliseconds:
    return Milliseconds(max((float(line["at_ms"]) for line in transcript.lines), default=0.0))


def main(arguments: list[str]) -> int:
    """Record what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--libvirts", default="9.0,11.3")
    parser.add_argument("--only", default=",".join(way.name for way in WAYS))
    asked = parser.parse_args(arguments)
    builds = [find_libvirt(*map(int, version.split("."))) for version in asked.libvirts.split(",")]
    ways = [way for way in WAYS if way.name in asked.only.split(",")]
    asyncio.run(record_all(builds, ways, asked.directory))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
