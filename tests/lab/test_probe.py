from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import pytest

from vmferry.core.errors import TimedOut
from vmferry.lab.hosts import Lab
from vmferry.lab.iproute import run
from vmferry.lab.network import Network
from vmferry.lab.probe import Probe, outage

pytestmark = pytest.mark.root

ECHO = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
    echo.bind(("10.78.0.9", 7007))
    print("listening", flush=True)
    while True:
        data, peer = echo.recvfrom(2048)
        echo.sendto(data, peer)
"""


@dataclass
class BareLab:
    """As much of a lab as a probe needs."""

    network: Network

    def inside(self, host: str) -> list[str]:
        """Return the prefix that enters a host."""
        return self.network.inside(host)

    def environment(self) -> dict[str, str]:
        """Return this process's environment."""
        return dict(os.environ)


@pytest.fixture
def lab_with_echo(network: Network) -> Iterator[BareLab]:
    """A lab in which something echoes at 10.78.0.9 on host-b's bridge."""
    run("ip", "-n", network.namespace("host-b"), "addr", "add", "10.78.0.9/24", "dev", "br0")
    argv = [*network.inside("host-b"), sys.executable, "-c", ECHO]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield BareLab(network)
        process.kill()


async def test_each_window_tells_its_own_outage(lab_with_echo: BareLab) -> None:
    """An outage shows in the window in which it happened, and not in the one before it."""
    network = lab_with_echo.network
    port = ["link", "set", "uplink0"]
    async with Probe(cast("Lab", lab_with_echo), "10.78.0.9") as probe:
        await probe.wait_answered()
        probe.begin("baseline")
        await asyncio.sleep(0.1)  # the length of the calm window
        probe.begin("cut")
        calm = await probe.window("baseline")  # it is told when the next has begun, and no answer is on its way
        run("ip", "-n", network.namespace("host-b"), *port, "down")
        await asyncio.sleep(0.1)  # the length of the outage
        run("ip", "-n", network.namespace("host-b"), *port, "up")
        probe.begin("after")
        cut = await probe.window("cut")
    gap = outage(cut, calm)
    assert calm["answered"] == calm["sent"] > 10
    assert gap.largest_ms == cut["outage_ms"] >= 90  # a lower bound: probes are sent every 2 ms
    assert gap.uncertainty_ms >= 2.0
    assert gap.baseline_ms == pytest.approx(0)


async def test_a_guest_that_never_answers_times_out(lab_with_echo: BareLab) -> None:
    """Nobody at the address: TimedOut, and the prober is ended."""
    async with Probe(cast("Lab", lab_with_echo), "10.78.0.10") as probe:
        with pytest.raises(TimedOut, match=r"10\.78\.0\.10"):
            await probe.wait_answered(timeout_s=0.5)


async def test_a_window_that_never_ended_times_out(lab_with_echo: BareLab) -> None:
    """Asking for the running window's figures fails instead of waiting for ever."""
    async with Probe(cast("Lab", lab_with_echo), "10.78.0.9") as probe:
        probe.begin("running")
        with pytest.raises(TimedOut, match="running"):
            await probe.window("running", timeout_s=0.1)
