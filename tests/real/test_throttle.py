"""The write throttle in the product: a guest that outruns its link moves with it, and does not without it."""

from __future__ import annotations

import pytest

from vmferry.core.progress import Outcome
from vmferry.core.units import BytesPerSecond
from vmferry.lab.guest_plans import micro_guest
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import Scenario, remove, run_scenario, started
from vmferry.lab.throttled_move import GREEDY, course

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]

#: 200 Mbit/s: a tenth of what the guest writes under TCG.
LINK = BytesPerSecond(25_000_000)


@pytest.mark.slow
async def test_a_guest_that_outruns_its_link_arrives_only_under_the_throttle(lab: Lab) -> None:
    """Slowed it arrives with its memory whole and runs free there; unslowed it takes as many rounds and goes on."""
    guest = await started(lab, GREEDY)
    slowed = await course(lab, guest, "host-b", LINK, throttle=True)
    assert slowed.outcome is Outcome.MOVED, slowed
    assert slowed.oracle.startswith("oracle clean")
    assert slowed.moving_pages_per_s < slowed.free_pages_per_s / 2
    plain = await course(lab, guest, "host-a", LINK, throttle=False, most_rounds=slowed.rounds)
    assert plain.outcome is Outcome.CANCELLED, plain
    assert plain.rounds >= slowed.rounds
    assert plain.oracle.startswith("oracle clean")
    # it was let go where it arrived: nothing of the order is left there
    assert plain.free_pages_per_s > 2 * slowed.moving_pages_per_s
    await remove(lab, guest)


async def test_a_guest_without_the_port_is_refused_with_the_way_to_get_it(lab: Lab) -> None:
    """Nothing is touched, and the blocker names the line of the guest file."""
    (leg,) = await run_scenario(
        lab, Scenario(micro_guest(), moves=(("host-a", "host-b"),), options={"throttle": "40-writes"})
    )
    assert leg.report.outcome is Outcome.BLOCKED
    assert leg.report.transferred_bytes == 0
    view = await lab.hosts["host-a"].api.get("/v1/handovers")
    assert view["handovers"][0]["report"]["reason"] == "throttle.no-port"
