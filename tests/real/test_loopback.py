"""Two agents on loopback addresses, as without root."""

from __future__ import annotations

import pytest

from vmferry.core.progress import Outcome
from vmferry.lab.guest_plans import micro_guest
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import Scenario, run_scenario

pytestmark = pytest.mark.real


async def test_two_loopback_agents_need_no_namespaces() -> None:
    """Without namespaces two agents on one network move a guest there and back, and nothing of the lab stays open."""
    async with Lab(namespaces=False) as lab:
        assert lab.network is None
        legs = await run_scenario(lab, Scenario(micro_guest()))
    assert [leg.report.outcome for leg in legs] == [Outcome.MOVED, Outcome.MOVED]
    assert all(leg.oracle.startswith("oracle clean") for leg in legs)
