"""How long a person waits: for `vmferry --help`, and from `vmferry migrate` to the first byte of the stream.

    ./run bench start [--runs 20]

Seen from outside: a command's time begins right before its exec; a stream's first byte is the first TCP payload to a
migration port, stamped by the kernel on the source's network, TLS included. In between, the parts: when the command
first speaks to an agent (a TCP SYN) is on the wire too; the hand-over's states are the agent's own stamps.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from _bench import conditions, conditions_text, spread, table, write

from vmferry.api.models import HandoverView
from vmferry.core.errors import Broken
from vmferry.lab.guest_plans import micro_guest
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import AGENT_PORT, Lab
from vmferry.lab.inside import socket_in
from vmferry.lab.scenarios import remove, started

BAR_HELP_MS, BAR_FIRST_BYTE_MS = 200.0, 500.0
MIGRATION_PORTS = range(49152, 49216)
VMFERRY = str(Path(sysconfig.get_path("scripts")) / "vmferry")
#: What `--help` consists of: each row has what the one before has, and more.
HELP: Mapping[str, Sequence[str]] = {
    "interpreter alone": (sys.executable, "-I", "-c", "pass"),
    "interpreter and imports": (sys.executable, "-I", "-c", "import vmferry.cli.main"),
    "vmferry --help": (VMFERRY, "--help"),
}
_ETH_P_ALL = 0x0003  # of one protocol alone, a packet socket shows only what comes in
_SO_TIMESTAMPNS = 35  # include/uapi/asm-generic/socket.h
_SYN = 0x02


@dataclass(frozen=True)
class Wire:
    """Moments of one migration on the source's network, in Unix nanoseconds."""

    asked_ns: int  #: the command's first SYN to an agent
    connects_ns: int  #: QEMU's SYN to the migration port: `migrate` was accepted
    first_byte_ns: int


class Sniffer:
    """Watches a namespace's TCP for the moments of one migration, in a thread; a context manager."""

    def __init__(self, namespace: str) -> None:
        self._socket = socket_in(namespace, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.settimeout(0.2)
        self._seen: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def wire(self) -> Wire:
        """Return what was seen.

        Raises:
            Broken: something was not.
        """
        self._thread.join(10.0)
        if self._seen.keys() != {"asked", "connects", "first byte"}:
            raise Broken(f"the migration was not seen on the network: {self._seen}")
        return Wire(self._seen["asked"], self._seen["connects"], self._seen["first byte"])

    def _read(self) -> None:
        while not self._ended.is_set() and "first byte" not in self._seen:
            try:
                packet, extra, *_ = self._socket.recvmsg(256, 64)
            except TimeoutError:
                continue
            if (kind := _kind(packet)) is not None:
                self._seen.setdefault(kind, _stamp(extra))


def _kind(packet: bytes) -> str | None:
    """Return which moment a packet is; None for any other. Source: RFC 791 section 3.1, RFC 9293 section 3.1."""
    if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
        return None
    header = 4 * (packet[0] & 0x0F)
    port = int.from_bytes(packet[header + 2 : header + 4], "big")
    syn = packet[header + 13] & _SYN
    payload = int.from_bytes(packet[2:4], "big") - header - 4 * (packet[header + 12] >> 4)
    if port == AGENT_PORT:
        return "asked" if syn else None
    if port in MIGRATION_PORTS:
        return "connects" if syn else "first byte" if payload > 0 else None
    return None


def _stamp(extra: Iterable[tuple[int, int, bytes]]) -> int:
    for level, kind, data in extra:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack("@qq", data[:16])
            return int(seconds * 10**9 + nanoseconds)
    raise Broken("the kernel gave a packet no time stamp")


def help_times(runs: int) -> dict[str, list[float]]:
    """Return the wall times of each row of HELP, in turn."""
    found: dict[str, list[float]] = {name: [] for name in HELP}
    for _ in range(runs + 1):  # the first may write byte code
        for name, argv in HELP.items():
            began = time.perf_counter()
            subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
            found[name].append(1000 * (time.perf_counter() - began))
    return {name: times[1:] for name, times in found.items()}


async def one_start(lab: Lab, guest: GuestRun) -> dict[str, float]:
    """Move the guest by the command; returns the parts of the time to the first byte, in ms, in their order.

    Raises:
        Broken: it did not move, or the wire did not show it.
    """
    if lab.network is None:
        raise Broken("the wire is only to be seen in a namespace", fix="run as root")
    source = guest.host
    destination = "host-b" if source == "host-a" else "host-a"
    namespace = lab.network.namespace(source)
    command = ["nsenter", f"--net=/run/netns/{namespace}", VMFERRY, "migrate", guest.name, destination, "--json"]
    with Sniffer(namespace) as sniffer:
        began_ns = time.time_ns()
        process = await asyncio.create_subprocess_exec(
            *command, env=lab.environment(), stdout=asyncio.subprocess.DEVNULL
        )
        if await process.wait():
            raise Broken(f"`vmferry migrate` ended with {process.returncode}")
        wire = sniffer.wire()
    newest = (await guest.handovers(source))[0]
    guest.moved_to(destination)
    return parts(began_ns, wire, newest)


def parts(began_ns: int, wire: Wire, view: HandoverView) -> dict[str, float]:
    """Return what the time to the first byte consists of, in ms."""
    if view.report is None:
        raise Broken(f"hand-over {view.handover} has no report")
    at = view.report.timeline_ms
    opened_ns = int(view.created_at * 1e9)
    reserved_ns = opened_ns + int(at["reserved"] * 1e6)
    return {
        "interpreter and imports (exec -> first SYN to an agent)": (wire.asked_ns - began_ns) / 1e6,
        "request (-> hand-over opened)": (opened_ns - wire.asked_ns) / 1e6,
        "check": at["reserving"],
        "reserve (QEMU starts and listens at the destination)": at["reserved"] - at["reserving"],
        "send (-> QEMU connects: `migrate` accepted)": (wire.connects_ns - reserved_ns) / 1e6,
        "connect (-> first byte on the wire)": (wire.first_byte_ns - wire.connects_ns) / 1e6,
        "exec -> `migrate` accepted": (wire.connects_ns - began_ns) / 1e6,
        "exec -> first byte": (wire.first_byte_ns - began_ns) / 1e6,
        "agent's own: opened -> memory flows": view.report.first_byte_ms or 0.0,
    }


async def first_bytes(runs: int) -> tuple[list[dict[str, float]], str, str]:
    """Return each run's parts, the acceleration's tag and QEMU's version."""
    found = []
    async with Lab() as lab:
        guest = await started(lab, micro_guest())
        for number in range(-2, runs):  # there and back once, unmeasured
            await asyncio.sleep(1.0)
            once = await one_start(lab, guest)
            if number >= 0:
                found.append(once)
                print(f"{number + 1}/{runs}: {_brief(once)}", flush=True)
        if "clean" not in (oracle := await guest.oracle()):
            raise Broken(f"the oracle says: {oracle}")
        await remove(lab, guest)
        facts = await lab.hosts["host-a"].api.get("/v1/host")
    return found, facts["acceleration_tag"], ".".join(map(str, facts["qemu"]["version"]))


def _brief(once: Mapping[str, float]) -> str:
    return ", ".join(f"{name.partition(' (')[0]} {value:.0f}" for name, value in once.items())


def _rows(series: Mapping[str, Mapping[str, Any]]) -> list[tuple[object, ...]]:
    return [(name, *(row[key] for key in ("count", "min", "median", "p90", "max"))) for name, row in series.items()]


def page(found: dict[str, Any], result: Mapping[str, Any], runs: int) -> str:
    """Return the page for people."""
    header = ("figure, ms", "runs", "min", "median", "p90", "max")
    tag = found["acceleration"]
    return (
        "# How long a person waits for the start\n\n"
        + str(conditions_text(found))
        + f"\nThe machine's load was {result['load']} when it began.\n\n## `vmferry --help`\n\n"
        + f"Wall time from outside. Bar: {BAR_HELP_MS:.0f} ms; **{result['help_under_bar']} of {runs} runs were under"
        " it**.\n\n"
        + str(table(header, _rows(result["help_ms"])))
        + f"\n## `vmferry migrate` to the first byte ({tag})\n\n"
        + f"Micro guest, agents up, encrypted. Bar: {BAR_FIRST_BYTE_MS:.0f} ms;"
        f" **{result['first_byte_under_bar']} of {runs} runs were under it**. Exec and wire are seen from outside, the"
        " states in between are the agent's stamps on the same clock. The first byte on the wire is that of the TLS"
        " handshake; the agent's own figure ends when QEMU says that memory flows.\n\n"
        + str(table(header, _rows(result["migrate_ms"])))
    )


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    began, load = time.monotonic(), round(os.getloadavg()[0], 2)
    helps = help_times(runs)
    starts, tag, qemu = asyncio.run(first_bytes(runs))
    found = conditions(f"./run bench start --runs {runs}", tag, qemu, time.monotonic() - began)
    whole = [once["exec -> first byte"] for once in starts]
    result = {
        "conditions": found,
        "load": load,
        "help_ms": {name: spread(times) for name, times in helps.items()},
        "help_under_bar": sum(each <= BAR_HELP_MS for each in helps["vmferry --help"]),
        "migrate_ms": {name: spread(once[name] for once in starts) for name in starts[0]},
        "first_byte_under_bar": sum(each <= BAR_FIRST_BYTE_MS for each in whole),
        "each_ms": starts,
    }
    write("start", result, page(found, result, runs))


if __name__ == "__main__":
    main()
