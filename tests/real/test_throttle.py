"""The write throttle in the product: a guest that outruns its link moves with it, and does not without it."""

from __future__ import annotations

import json

import pytest

from vmferry.api.models import CheckReply
from vmferry.core.convergence import Round, make_policy
from vmferry.core.convergence.replay import replay
from vmferry.core.convergence.trace import Ordered, decode
from vmferry.core.progress import Outcome
from vmferry.core.units import BytesPerSecond
from vmferry.lab.guest_plans import micro_guest
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import Scenario, move, remove, run_scenario, started
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


@pytest.mark.slow
async def test_the_default_policy_slows_writes_only_when_there_is_no_end_without(lab: Lab) -> None:
    """With any brake allowed the first is the helper's, after rounds that showed no end; the guest arrives whole."""
    guest = await started(lab, GREEDY)
    leg = await move(lab, guest, "host-b", {"max_bandwidth": LINK, "throttle": "any", "max_gap_ms": 300.0})
    report = leg.report
    assert report.outcome is Outcome.MOVED, report
    assert leg.oracle.startswith("oracle clean"), leg.oracle
    assert report.write_throttle is not None
    assert report.write_throttle.processes > 0
    lines = await lab.hosts[report.source].api.follow(f"/v1/handovers/{report.handover}/trace")
    trace = decode(map(json.dumps, lines), "the agent's trace")
    orders = [item for item in trace.items if isinstance(item, Ordered) and item.rule.startswith("no end: ")]
    assert orders[0].value == "40-writes 40"
    rounds = [item.round for item in trace.items[: trace.items.index(orders[0])] if isinstance(item, Round)]
    assert rounds[-1] >= 2
    dry = replay(trace, make_policy("vmferry", trace.goal))
    assert orders[0].rule in [fired.rule for fired in dry.fired if fired.what == "40-writes 40"]
    await remove(lab, guest)


async def test_a_guest_without_the_port_moves_where_any_brake_will_do(lab: Lab) -> None:
    """What cannot be had is left out and told; it blocks only when it is asked for by its name."""
    scenario = Scenario(micro_guest(), moves=(("host-a", "host-b"),), options={"throttle": "any"})
    (leg,) = await run_scenario(lab, scenario)
    assert leg.report.outcome is Outcome.MOVED, leg.report
    assert leg.oracle.startswith("oracle clean"), leg.oracle
    assert [text.partition(":")[0] for text in leg.report.left_out] == ["40-writes"]


async def test_a_guest_without_the_port_is_refused_with_the_way_to_get_it(lab: Lab) -> None:
    """Nothing is touched, and the blocker names the line of the guest file."""
    (leg,) = await run_scenario(
        lab, Scenario(micro_guest(), moves=(("host-a", "host-b"),), options={"throttle": "40-writes"})
    )
    assert leg.report.outcome is Outcome.BLOCKED
    assert leg.report.transferred_bytes == 0
    view = await lab.hosts["host-a"].api.get("/v1/handovers")
    assert view["handovers"][0]["report"]["reason"] == "throttle.no-port"


async def test_a_missing_helper_is_told_by_check(lab: Lab) -> None:
    """40-writes from the first round on needs the helper: said before anything moves, with what to do."""
    guest = await started(lab, micro_guest())
    answer = await lab.hosts["host-a"].api.post(
        f"/v1/guests/{guest.name}/check", {"destination": "host-b", "options": {"throttle": "40-writes"}}
    )
    (blocker,) = CheckReply.model_validate(answer).blockers
    assert blocker.code == "throttle.no-port"
    await remove(lab, guest)
