"""Every measure of a real guest's move between two real agents, the network's outage seen from the source's host."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from vmferry.core.progress import Outcome
from vmferry.lab.guest_plans import linux_guest
from vmferry.lab.hosts import Lab
from vmferry.lab.processes import command_line
from vmferry.lab.scenarios import Scenario, run_scenario

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

LINUX = linux_guest("web-7", memory_mib=256, rate=20, bridge=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab() -> AsyncIterator[Lab]:
    """Two hosts, which are on their guests' network themselves."""
    async with Lab() as made:
        yield made


async def test_a_linux_guest_with_an_echo_is_measured_in_every_way(lab: Lab) -> None:
    """Pause, stall, outage and their baselines are all measured, there and back, and no prober is left."""
    for leg in await run_scenario(lab, Scenario(LINUX)):
        report = leg.report
        assert report.outcome == Outcome.MOVED, report
        assert report.guest_gap is not None, report
        assert report.in_guest_stall_ms is not None, report
        assert report.in_guest_stall_ms > 0
        assert report.network_outage is not None, report
        assert report.network_outage.largest_ms > 0
        assert report.network_outage.ended
        assert report.network_outage.baseline_ms is not None
        assert report.ran_twice_ms == 0.0
        assert report.first_byte_ms is not None
        assert report.total_ms is not None
        assert report.total_ms > report.first_byte_ms
    running = [process for host in lab.hosts for process in lab.processes_of(host)]
    assert running != []
    assert [process for process in running if "measure.prober" in command_line(process.pid)] == []
