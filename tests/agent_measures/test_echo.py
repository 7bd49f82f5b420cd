"""A prober beside a hand-over: what it measures, and that it never outlives anybody."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from vmferry.agent.echo import EchoProbe, prober_argv

#: Enough of a program to speak as the prober does: answers at once, then nothing.
DEAF = 'import sys; print(\'{"event": "answered", "at_ns": 1}\', flush=True); sys.stdin.read()'


class Echo(asyncio.DatagramProtocol):
    """An echo that can fall silent."""

    def __init__(self) -> None:
        self.silent = False
        self.seen = 0
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: list[tuple[int, asyncio.Event]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self.seen += 1
        for wanted, event in self._waiting:
            if self.seen >= wanted:
                event.set()
        if self._transport is not None and not self.silent:
            self._transport.sendto(data, addr)

    async def wait_seen(self, more: int) -> None:
        """Return when so many more probes have come."""
        event = asyncio.Event()
        self._waiting.append((self.seen + more, event))
        await asyncio.wait_for(event.wait(), 20)


@asynccontextmanager
async def _echoing() -> AsyncIterator[tuple[Echo, int]]:
    loop = asyncio.get_running_loop()
    transport, echo = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    try:
        yield echo, transport.get_extra_info("sockname")[1]
    finally:
        transport.close()
        await asyncio.sleep(0)


@asynccontextmanager
async def _probing(argv: list[str]) -> AsyncIterator[EchoProbe]:
    probe = EchoProbe(argv)
    probe.begin()
    try:
        yield probe
    finally:
        await probe.close()


async def _until(said: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not said():  # noqa: ASYNC110 - another process's doing; there is nothing to wait on
            await asyncio.sleep(0.01)


def _has_answered(probe: EchoProbe) -> bool:
    return probe._answered_ns is not None


async def test_a_silence_between_two_answers_is_the_outage() -> None:
    """Losses after the stop are the outage, the time before it is the baseline, both with their real windows."""
    async with _echoing() as (echo, port), _probing(prober_argv("127.0.0.1", port)) as probe:
        await _until(lambda: _has_answered(probe))
        await echo.wait_seen(50)
        stopped = time.monotonic_ns()
        echo.silent = True
        await echo.wait_seen(50)
        echo.silent = False
        await echo.wait_seen(50)
        ended = time.monotonic_ns()
        gap = await probe.gap(stopped, ended)
    assert gap is not None
    assert gap.ended
    assert gap.largest_ms >= 49 * 2.0 * 0.9
    assert gap.uncertainty_ms >= 2.0
    assert gap.baseline_ms is not None
    assert gap.baseline_ms < gap.largest_ms
    assert gap.baseline_window_ms is not None
    assert gap.window_ms is not None
    assert 0 < gap.baseline_window_ms < gap.window_ms <= (ended - stopped) / 1e6 + gap.baseline_window_ms + 1


async def test_an_outage_that_has_not_ended_says_so() -> None:
    """A network that stays dead is an outage of at least so long, and is marked."""
    async with _echoing() as (echo, port), _probing(prober_argv("127.0.0.1", port)) as probe:
        await _until(lambda: _has_answered(probe))
        await echo.wait_seen(20)
        stopped = time.monotonic_ns()
        echo.silent = True
        await echo.wait_seen(100)
        gap = await probe.gap(stopped, time.monotonic_ns())
    assert gap is not None
    assert not gap.ended
    assert gap.largest_ms >= 90 * 2.0 * 0.9


async def test_nobody_there_is_not_measured() -> None:
    """An address that never answers gives None, not an endless outage."""
    async with _echoing() as (echo, port), _probing(prober_argv("127.0.0.1", port)) as probe:
        echo.silent = True
        await echo.wait_seen(10)
        assert await probe.gap(time.monotonic_ns(), time.monotonic_ns()) is None


async def test_a_first_answer_after_the_stop_is_not_measured() -> None:
    """Without an answer before the switchover nobody knows when the outage began."""
    async with _echoing() as (_, port), _probing(prober_argv("127.0.0.1", port)) as probe:
        stopped = time.monotonic_ns()
        await _until(lambda: _has_answered(probe))
        assert await probe.gap(stopped, time.monotonic_ns()) is None


async def test_a_prober_that_cannot_be_started_costs_the_measure_only() -> None:
    """No such program: None, and nothing raised."""
    async with _probing(["/nonexistent/prober"]) as probe:
        assert await probe.gap(2, 3) is None


async def test_a_prober_that_does_not_report_is_given_up() -> None:
    """Figures that do not come in time are None."""
    async with _probing([sys.executable, "-c", DEAF]) as probe:
        await _until(lambda: _has_answered(probe))
        assert await probe.gap(10, 20) is None


async def test_closing_ends_the_prober_and_can_be_repeated() -> None:
    """After `close` the process is gone, however early it comes."""
    async with _echoing() as (echo, port):
        probe = EchoProbe(prober_argv("127.0.0.1", port))
        probe.begin()
        await echo.wait_seen(1)
        process = probe._process
        assert process is not None
        await probe.close()
        assert process.returncode == -signal.SIGKILL
        await probe.close()
        early = EchoProbe(prober_argv("127.0.0.1", port))
        early.begin()
        await early.close()


async def test_a_prober_dies_with_a_killed_agent(tmp_path: Path) -> None:
    """SIGKILL to the process that began it ends the prober too, even one that does not read its input."""
    stuck = tmp_path / "stuck.py"
    stuck.write_text(
        "import os, sys\nfrom vmferry.measure.prober import _die_with\n"
        "_die_with(int(sys.argv[1]))\nprint(os.getpid(), file=sys.stderr, flush=True)\nos.read(os.pipe()[0], 1)\n"
    )
    agent = (
        "import asyncio, os, sys\nfrom vmferry.agent.echo import EchoProbe\n"
        "async def main():\n"
        "    EchoProbe([sys.executable, sys.argv[1], str(os.getpid())]).begin()\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", agent, str(stuck)), stderr=asyncio.subprocess.PIPE
    )
    assert parent.stderr is not None
    prober = os.pidfd_open(int(await parent.stderr.readline()))
    parent.kill()
    await parent.communicate()
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(prober, gone.set)
    await asyncio.wait_for(gone.wait(), 20)
    asyncio.get_running_loop().remove_reader(prober)
    os.close(prober)
