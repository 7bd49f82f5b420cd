"""How fast a stream is that agents set up, beside plain QEMU that is told the same over QMP; nothing limits the link.

    ./run bench throughput [--rounds 3] [--memory-mib 4096] [--ways 'fd;fd, TLS'] [--name throughput]

The guest's memory is full of random data and nobody writes. Ours and the plain QEMU of a pair take turns. What the
agents themselves take of the CPU meanwhile is measured too: a guest's memory never passes through them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from _bench import conditions, conditions_text, table, write
from grid.cells import LINKS, Cell
from grid.figures import Figures, Word
from grid.observe import DESTINATION, SOURCE, Observers
from movers.ours import OurMover
from movers.plain import STREAM_PORT, PlainMover

from vmferry.core.units import MIB
from vmferry.lab.hosts import Lab
from vmferry.lab.toolchain import find_qemu
from vmferry.qemu.ciphers import cipher_priority

LIMIT_S = 180.0
#: What ours sets where nobody says how fast the link is.
UNLIMITED = 16 << 30
TICKS = os.sysconf("SC_CLK_TCK")
CHANNELS = 2
RATIO, AGENT_CPU = 1.03, 0.05


@dataclass(frozen=True)
class Pair:
    """One way, as ours and as plain QEMU are asked for it."""

    name: str
    options: Mapping[str, object]
    channels: int = 1
    tls: bool = False


PAIRS = (
    Pair("one stream", {"plain": True}),
    Pair("one stream, TLS", {}, tls=True),
    Pair("fd", {"plain": True, "link": "fd"}),
    Pair("fd, TLS", {"link": "fd"}, tls=True),
    Pair("multifd", {"plain": True, "channels": CHANNELS}, CHANNELS),
    Pair("multifd, TLS", {"channels": CHANNELS}, CHANNELS, tls=True),
    Pair("unix", {"plain": True, "link": "unix"}),
    Pair("unix, multifd, TLS", {"link": "unix", "channels": CHANNELS}, CHANNELS, tls=True),
)


class OurStream(OurMover):
    """The agents, and what of the CPU they take while the guest moves."""

    def __init__(self, lab: Lab, pair: Pair) -> None:
        super().__init__(lab, f"vmferry {pair.name}", {"max_gap_ms": 300.0, **pair.options})

    async def order(self, limit_s: float) -> Word:
        """Move the guest."""
        began, before = time.monotonic(), self._agents()
        word = await super().order(limit_s)
        share = (self._agents() - before) / (time.monotonic() - began)
        return Word(
            word.arrived,
            word.ended_ns,
            word.reason,
            word.qemu_bytes,
            word.stream_ms,
            word.downtime_ms,
            word.rounds,
            {**(word.more or {}), "agents_cpu": round(share, 4)},
        )

    def _agents(self) -> float:
        """Return the CPU seconds of the busier agent."""
        return max(cpu_s(host.agent.worker.pid) for host in self.lab.hosts.values() if host.agent.worker)


class PlainStream(PlainMover):
    """Plain QEMU that is told what ours is told."""

    def __init__(self, lab: Lab, pair: Pair) -> None:
        super().__init__(lab)
        self.name = f"qemu {pair.name}"
        self._pair = pair

    async def order(self, limit_s: float) -> Word:
        """Set both QEMUs up, say `migrate`, and wait for its end."""
        deadline = time.monotonic() + limit_s
        await self._start(DESTINATION, "-incoming", "defer")
        key = f"qemu:{secrets.token_hex(32)}\n"
        for host, endpoint in ((SOURCE, "client"), (DESTINATION, "server")):
            await self._set_up(host, endpoint, key)
        uri = f"tcp:{self.lab.hosts[DESTINATION].address}:{STREAM_PORT}"
        await self._running[DESTINATION].qmp.execute("migrate-incoming", {"uri": uri})
        source = self._running[SOURCE].qmp
        await source.execute("migrate", {"uri": uri})
        return await self._watched_to_end(source, deadline)

    async def _set_up(self, host: str, endpoint: str, key: str) -> None:
        qmp = self._running[host].qmp
        parameters: dict[str, object] = {"max-bandwidth": UNLIMITED}
        if self._pair.channels > 1:
            await qmp.execute("migrate-set-capabilities", {"capabilities": [{"capability": "multifd", "state": True}]})
            parameters["multifd-channels"] = self._pair.channels
        if self._pair.tls:
            folder = self._folder(host) / "tls"
            folder.mkdir(exist_ok=True)
            (folder / "keys.psk").write_text(key, "ascii")
            secret = {"qom-type": "tls-creds-psk", "id": "tls", "dir": str(folder), "endpoint": endpoint}
            await qmp.execute("object-add", {**secret, "priority": cipher_priority()})
            parameters["tls-creds"] = "tls"
        await qmp.execute("migrate-set-parameters", parameters)


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process, in s. Source: proc(5), stat."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def measure(rounds: int, memory_mib: int, pairs: Sequence[Pair]) -> list[Figures]:
    """Make the moves; each pair takes turns, the other one first each time."""
    cell = Cell("random data", LINKS["unlimited"], memory_mib + 512, memory_mib, 0)
    qemu, moves = find_qemu(10, 0), []
    async with Lab(qemus={"host-a": qemu, "host-b": qemu}) as lab:
        observers = Observers(lab)
        for number in range(1, rounds + 1):
            for pair in pairs:
                movers = [OurStream(lab, pair), PlainStream(lab, pair)]
                for mover in movers if number % 2 else reversed(movers):
                    moves.append(await mover.move(cell, observers, number, LIMIT_S))
                    print(number, mover.name, moves[-1].stream_ms, moves[-1].oracle[:12], moves[-1].more, flush=True)
    return moves


def rate(move: Figures) -> float:
    """Return what the stream carried, MiB/s."""
    return move.wire_bytes / MIB / ((move.stream_ms or float("inf")) / 1000)


def row(pair: Pair, moves: Sequence[Figures]) -> tuple[object, ...]:
    """Return a pair's line."""
    ours = {move.round: move for move in moves if move.mover == f"vmferry {pair.name}"}
    plain = {move.round: move for move in moves if move.mover == f"qemu {pair.name}"}
    ratios = [ours[n].stream_ms / plain[n].stream_ms for n in ours]  # type: ignore[operator]
    cpu = [float(str(move.more["agents_cpu"])) for move in ours.values()]
    clean = sum(move.oracle.startswith("oracle clean") for move in (*ours.values(), *plain.values()))
    return (
        pair.name,
        f"{clean}/{len(ours) + len(plain)}",
        statistics.median(map(rate, ours.values())),
        statistics.median(map(rate, plain.values())),
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        "yes" if statistics.median(ratios) <= RATIO else "**no**",
        f"{100 * statistics.median(cpu):.1f}",
        "yes" if statistics.median(cpu) <= AGENT_CPU else "**no**",
    )


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-mib", type=int, default=4096)
    parser.add_argument("--ways", type=lambda text: text.split(";"), help="which, with semicolons between them")
    parser.add_argument("--name", default="throughput", help="of the result and its page")
    asked = parser.parse_args()
    began = time.monotonic()
    pairs = [pair for pair in PAIRS if asked.ways is None or pair.name in asked.ways]
    moves = asyncio.run(measure(asked.rounds, asked.memory_mib, pairs))
    command = f"./run bench throughput --rounds {asked.rounds} --memory-mib {asked.memory_mib}"
    if asked.ways is not None:
        command += f" --ways '{';'.join(asked.ways)}' --name {asked.name}"
    found = conditions(command, "TCG", "10.0", time.monotonic() - began)
    header = (
        "way",
        "clean",
        "ours, MiB/s",
        "QEMU, MiB/s",
        "ratio of times",
        f"<= {RATIO}",
        "agent, % of a core",
        "<= 5",
    )
    rows = [row(pair, moves) for pair in pairs]
    page = (
        "# How fast streams are\n\n"
        + conditions_text(found)
        + f"\nA guest with {asked.memory_mib} MiB of random data that nobody writes, over a link that nothing limits:"
        " two network namespaces on one machine with 2 CPUs, on which both QEMUs' threads and the kernel's TCP run."
        " Beside each way a plain QEMU that is told the same over QMP (capabilities, channels, key, the same cipher)."
        " Times are of the stream: QEMU's total-time for the plain ones; for ours from `active` to the running guest,"
        " commit included."
        " Medians; in brackets the least and the most. *Agent* is the busier of the two agents' CPU time over the whole"
        " move, from the order to the report.\n\n" + table(header, rows)
    )
    write(asked.name, {"conditions": found, "moves": [move.as_json() for move in moves]}, page)


if __name__ == "__main__":
    main()
