"""The known dirty curve on 1 Gbit/s: what each policy comes to, and QEMU's rule as it is played."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmferry.core.convergence import POLICIES, Facts, Goal, Throttle, make_policy
from vmferry.core.convergence.simulate import GIGABIT, MEASURED_CURVE, Curve, Outcome, Simulation, simulate
from vmferry.core.units import GIB, MIB, Bytes, Milliseconds

BARE = Facts(Bytes(8 * GIB), link=GIGABIT)
KNOWN = Curve(MEASURED_CURVE)
PAGE = Path(__file__).resolve().parents[2] / "docs/policies.md"


def known(name: str, goal: Goal | None = None, facts: Facts = BARE) -> Simulation:
    """Play a policy against the known guest."""
    return simulate(make_policy(name, goal or Goal()), facts, KNOWN)


def test_without_brake_or_postcopy_only_those_that_force_end() -> None:
    """The rounds have a fixed point at about 40 s: whoever does not force the switchover never ends, or gives up."""
    ended = {name for name in POLICIES if known(name).downtime_ms is not None}
    assert ended == {name for name, kind in POLICIES.items() if kind.description.forces}
    assert "vmferry" not in ended


@pytest.mark.parametrize(
    ("name", "outcome", "seconds"),
    [
        ("article", Outcome.FORCED, 38.8),
        ("kvm-2007", Outcome.FORCED, 256.0),
        ("xen-3.0-default-build", Outcome.FORCED, 40.1),
        ("nova-force-complete", Outcome.PAUSED, 42.4),
        ("proxmox", Outcome.QEMU, 68.7),
        ("kubevirt-stall", Outcome.FORCED, 39.1),
    ],
)
def test_those_that_force_stop_the_guest_for_long(name: str, outcome: Outcome, seconds: float) -> None:
    """The downtime is tens of seconds: what is left at the fixed point, through the link or the policy's own cap."""
    came = known(name)
    assert came.outcome is outcome
    assert came.downtime_ms == pytest.approx(seconds * 1000, rel=0.01)


def test_ours_meets_the_goal_with_the_brake() -> None:
    """Downtime, stall and fixed cost together stay within the gap of 300 ms."""
    came = known("vmferry", facts=replace(BARE, throttles=frozenset({Throttle.AUTO_CONVERGE})))
    assert came.outcome is Outcome.QEMU
    assert came.downtime_ms is not None
    assert came.downtime_ms + came.stall_ms + BARE.fixed_cost_ms <= 300


def test_ours_goes_over_to_postcopy_after_one_round() -> None:
    """With post-copy allowed the total is the least of all policies that arrive within 300 ms."""
    came = known("vmferry", Goal(allow_postcopy=True), replace(BARE, postcopy=True))
    assert (came.outcome, came.rounds) == (Outcome.POSTCOPY, 1)
    braked = known("vmferry", facts=replace(BARE, throttles=frozenset({Throttle.AUTO_CONVERGE})))
    assert came.total_ms is not None
    assert braked.total_ms is not None
    assert came.total_ms < braked.total_ms


def test_an_impossible_goal_is_cancelled_before_the_first_page() -> None:
    """Nothing is sent for a goal that no switchover can meet."""
    came = known("vmferry", Goal(max_gap_ms=Milliseconds(10.0)))
    assert (came.outcome, came.at_ms, came.rounds) == (Outcome.CANCELLED, 0.0, 0)


@pytest.mark.parametrize(("ms", "mib"), [(62.5, 33), (125, 66), (500, 302), (10_000, 1796), (60_000, 5916)])
def test_the_curve_goes_through_what_was_measured(ms: float, mib: float) -> None:
    """At its points it is the measurement, before the first in proportion."""
    assert KNOWN.bytes_after(ms) == pytest.approx(mib * MIB)


def test_the_curve_grows_between_and_beyond_its_points() -> None:
    """It never falls and its rate never grows after the half second."""
    grid = [KNOWN.bytes_after(ms) for ms in range(500, 120_000, 500)]
    assert grid == sorted(grid)
    assert KNOWN.bytes_after(120_000) / 120 < KNOWN.bytes_after(60_000) / 60


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_guest_with_one_rate_is_the_geometric_series(share: float) -> None:
    """Below the link's rate the rounds shrink by their share until the rest fits the limit, and not before."""
    rate = GIGABIT * share
    steady = Curve(((1.0, rate / 1000), (1e7, rate * 1e4)))
    came = simulate(make_policy("qemu", Goal()), BARE, steady)
    assert came.outcome is Outcome.QEMU
    assert came.downtime_ms is not None
    assert came.downtime_ms <= 300
    # what a round leaves unsent at the threshold is carried over: x' = share (x - T) + T
    threshold, rest, rounds = GIGABIT * 0.3, 8.0 * GIB, 0
    while rest > threshold:
        rest, rounds = min(threshold, rest) + share * (rest - threshold), rounds + 1
        if share * (rest - threshold) < GIGABIT * 0.05:
            break
    assert abs(came.rounds - rounds) <= 2 + rounds // 2
