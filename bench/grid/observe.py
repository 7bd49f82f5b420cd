"""Watches one move from outside: beats, datagrams, the link's counters and the guest's own progress."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from grid import compiling
from grid.sniff import BeatTap
from grid.wire import Wire, WireMeter
from vmferry.core.errors import Broken, TimedOut
from vmferry.lab.channel import ask
from vmferry.lab.guest_plans import GUEST_ADDRESS
from vmferry.lab.hosts import HOSTS, Lab
from vmferry.lab.iproute import batch
from vmferry.lab.network import BRIDGE, FABRIC
from vmferry.lab.probe import Probe
from vmferry.measure.gap import SAME_CLOCK, guest_gap

NS_PER_MS = 1e6
SOURCE, DESTINATION = HOSTS
#: Answers of the guest while it is throttled or its link is full.
ASK_TIMEOUT_S = 30.0
#: From the guest's being ready to the login at its console and the first compiled file.
COMPILER_TIMEOUT_S = 120.0
_STATUS = re.compile(r"writes=(\d+) beats=(\d+)")
_STALL = re.compile(r"max_us=(\d+)")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the workload was at a moment."""

    at_ns: int
    work: int


@dataclass(frozen=True, slots=True)
class Silence:
    """A guest's longest silence in a window."""

    longest_ms: float | None
    switch_ms: float | None  #: from the last beat at the source to the first at the destination
    first_there_ns: int | None


class Observers:
    """All that watches; the same for every mover.

    Args:
        lab: a lab with namespaces.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch while the block runs: one guest's life."""
        network = self._lab.network
        agent = self._lab.hosts[SOURCE].agent.supervisor
        if network is None or agent is None:
            raise Broken("The bench needs a lab with namespaces", fix="run as root")
        async with contextlib.AsyncExitStack() as stack:
            self.taps = {host: await stack.enter_async_context(BeatTap(network.namespace(host))) for host in HOSTS}
            self._wire = stack.enter_context(WireMeter(agent.pid))
            yield

    @contextlib.asynccontextmanager
    async def probing(self) -> AsyncIterator[Probe]:
        """Probe the guest's network while the block runs; begins when the guest has answered.

        The guest before this one had the same address and, with another manager, another MAC: that is forgotten first.
        """
        if self._lab.network:
            batch(self._lab.network.namespace(FABRIC), [f"neigh flush dev {BRIDGE}"])
        async with Probe(self._lab, GUEST_ADDRESS) as probe:
            await probe.wait_answered()
            yield probe

    def silence(self, start_ns: int, end_ns: int) -> Silence:
        """Return the guest's longest silence in a window, on whichever host."""
        here = self.taps[SOURCE].stamps(start_ns, end_ns)
        there = self.taps[DESTINATION].stamps(start_ns, end_ns)
        found = guest_gap(here, there, SAME_CLOCK)
        if found is None:
            return Silence(_longest([*here, *there]), None, there[0] if there else None)
        return Silence(found.gap_ms, found.switchover_gap_ms, there[0])

    def wire(self, start_ns: int, end_ns: int) -> Wire:
        """Return what went over the link."""
        return self._wire.window(start_ns, end_ns)

    @property
    def dropped(self) -> int:
        """Beats that the packet sockets lost."""
        return sum(tap.dropped for tap in self.taps.values())


class GuestMeter:
    """The guest's own words over its control channel, wherever it runs.

    Args:
        control: returns the control socket's path on the host where the guest is now.
        console: the same for the console's socket.
        compiles: whether its work is what a compiler has done, and not what the workload has written.
    """

    def __init__(self, control: Callable[[], Path], console: Callable[[], Path], *, compiles: bool) -> None:
        self._control = control
        self._console = console
        self._compiles = compiles

    async def progress(self) -> Progress:
        """Return how many pages the workload has written, or how many files the compiler has compiled.

        Raises:
            Broken: nobody answers.
            TimedOut: nobody answers in time.
        """
        if self._compiles:
            return Progress(time.monotonic_ns(), int(await self._typed(compiling.PROGRESS)))
        text = await self._ask("status", "ready", ASK_TIMEOUT_S)
        found = _STATUS.search(text)
        if found is None:
            raise Broken(f"The guest's status has no writes in it: {text!r}")
        return Progress(time.monotonic_ns(), int(found[1]))

    async def start_compiler(self) -> None:
        """Set the compiler to work; returns when its first file is compiled.

        Raises:
            TimedOut: nobody is logged in at the console, or nothing is compiled.
        """
        for order in compiling.START:
            await self._typed(order)
        async with asyncio.timeout(COMPILER_TIMEOUT_S):
            while not (await self.progress()).work:  # noqa: ASYNC110  (the guest does not call)
                await asyncio.sleep(0.2)

    async def reset_stalls(self) -> None:
        """Begin a window of the stall meter."""
        await self._ask("reset", "reset", ASK_TIMEOUT_S)

    async def stall_ms(self) -> float | None:
        """Return the longest stall by the guest's own clock."""
        found = _STALL.search(await self._ask("stalls", "stalls", ASK_TIMEOUT_S))
        return int(found[1]) / 1000 if found else None

    async def oracle(self) -> str:
        """Return what the guest says of its memory; what failed, if it cannot be asked."""
        try:
            return await self._ask("oracle", "oracle", 90.0)
        except (Broken, TimedOut) as error:
            return f"oracle silent: {error}"

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until the workload runs.

        Raises:
            TimedOut: it does not.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                await self._ask("status", "ready", 10.0)
            except (Broken, TimedOut) as error:
                if time.monotonic() > deadline:
                    raise TimedOut(f"The guest is not ready after {timeout_s:.0f} s: {error}") from error
                await asyncio.sleep(0.05)
            else:
                return

    async def _typed(self, command: str) -> str:
        """Return the first line that a command typed at the console prints.

        The terminal echoes what is typed: the mark is whole, and at the start of a line, only in the answer.
        """
        line = f"printf '\\nmar''ked %s\\n' \"$({command} | head -n 1)\"\n"
        deadline = time.monotonic() + COMPILER_TIMEOUT_S
        while True:
            try:
                return (await ask(self._console(), line, "marked", 5.0)).removeprefix("marked").strip()
            except TimedOut:  # what is typed before the login is lost
                if time.monotonic() > deadline:
                    raise

    async def _ask(self, question: str, prefix: str, timeout_s: float) -> str:
        return await ask(self._control(), f"{question}\n", prefix, timeout_s)


def _longest(stamps: list[int]) -> float | None:
    ordered = sorted(stamps)
    return max(((after - before) / NS_PER_MS for before, after in pairwise(ordered)), default=None)
