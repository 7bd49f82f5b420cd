"""Policies steer real migrations: each case is one micro guest on a stream that is slower than it writes, or not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vmferry.core.convergence import Goal, make_policy
from vmferry.core.convergence.replay import replay
from vmferry.core.convergence.trace import Ordered, Trace, decode
from vmferry.core.progress import Outcome, Report
from vmferry.core.units import MIB
from vmferry.lab.guest_plans import micro_guest
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import Leg, Scenario, move, remove, run_scenario, started
from vmferry.ports.hypervisor import RunState

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]

THERE = (("host-a", "host-b"),)
#: Writes its 24 MiB over and over, several times as fast as the slow stream sends.
BUSY = replace(micro_guest(), working_set_mib=24, rate=100)
SLOW = 16 * MIB


async def go(lab: Lab, **options: object) -> Leg:
    """Move the busy guest on the slow stream, there and no further."""
    asked = {"max_bandwidth": SLOW, **options}
    (leg,) = await run_scenario(lab, Scenario(BUSY, moves=THERE, options=asked))
    return leg


def assert_arrived(leg: Leg) -> Report:
    """It arrived with its memory whole; return what was measured."""
    assert leg.report.outcome == Outcome.MOVED, leg.report
    assert leg.oracle.startswith("oracle clean"), leg.oracle
    return leg.report


async def trace_of(lab: Lab, report: Report) -> Trace:
    """Return the trace that the source's agent tells; it is stored for nobody else's eyes."""
    host = lab.hosts[report.source]
    stored = host.state_dir / "traces" / f"{report.handover}.jsonl"
    assert stored.stat().st_mode & 0o777 == 0o600
    lines = await host.api.follow(f"/v1/handovers/{report.handover}/trace")
    return decode(map(json.dumps, lines), "the agent's trace")


async def test_the_article_forces_the_switchover_of_a_guest_that_never_converges(lab: Lab) -> None:
    """A rule of the article fires although much is left; its pages are told, and the trace replays to it."""
    report = assert_arrived(await go(lab, policy="article"))
    assert report.policy == "article"
    assert str(report.switchover_rule).partition(":")[0] in {"no diffusion", "no noticeable gain"}
    assert report.pages_at_decision is not None
    assert report.pages_at_decision > 50
    assert report.pages_at_stop is not None
    assert report.pages_at_stop > 50
    trace = await trace_of(lab, report)
    dry = replay(trace, make_policy("article", Goal()))
    assert dry.fired[-1].rule == report.switchover_rule
    assert dry.fired[-1].remaining_pages == report.pages_at_decision


async def test_the_default_policy_brakes_a_guest_that_writes_too_fast_and_it_arrives(lab: Lab) -> None:
    """Nothing is forced: the brake is put on and QEMU's own rule fires within the goal."""
    report = assert_arrived(await go(lab, max_gap_ms=300.0))
    assert str(report.switchover_rule).startswith("QEMU's own: the rest fits the limit of")
    orders = [item for item in (await trace_of(lab, report)).items if isinstance(item, Ordered)]
    assert "SetThrottle" in [order.order for order in orders if "no end" in order.rule]


@pytest.mark.parametrize(("policy", "limit_ms"), [("nova", 50.0), ("qemu", 300.0)])
async def test_other_managers_policies_move_a_guest(lab: Lab, policy: str, limit_ms: float) -> None:
    """They set their own limits, and the report says whose rule it was."""
    (leg,) = await run_scenario(lab, Scenario(micro_guest(), moves=THERE, options={"policy": policy}))
    report = assert_arrived(leg)
    assert (report.policy, report.downtime_limit_ms) == (policy, limit_ms)


async def test_at_the_deadline_the_guest_stays_whole_at_the_source(lab: Lab) -> None:
    """Without a brake it cannot arrive: it is given up in time, with the reason and the price of another attempt."""
    guest = await started(lab, BUSY)
    options = {"max_bandwidth": SLOW, "deadline_ms": 3000.0, "throttle": "none"}
    leg = await move(lab, guest, "host-b", options)
    report = leg.report
    assert report.outcome == Outcome.ABORTED
    assert str(report.reason).startswith("deadline of 3.00 s in round ")
    assert "of this attempt are lost" in str(report.restart_price)
    assert leg.run_state_there == RunState.RUNNING
    assert guest.host == "host-a"
    assert leg.oracle.startswith("oracle clean"), leg.oracle
    await remove(lab, guest)
