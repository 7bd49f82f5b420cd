"""What a migration is to be, worked out from what was asked: goal, bounds, brake."""

from __future__ import annotations

import pytest

from vmferry.conductor.plan import NO_THROTTLE, UNLIMITED, Asked, Choice, throttle_parameters
from vmferry.core.convergence import AtDeadline, Throttle
from vmferry.core.convergence.orders import SetBandwidth, SetDowntimeLimit, SetThrottle, SwitchNow, ThrottleOff
from vmferry.core.errors import BadInput
from vmferry.core.units import GIB, MIB, Bytes, BytesPerSecond, Milliseconds


def asked(choice: Choice | None = None, limit: float | None = None, bandwidth: BytesPerSecond | None = None) -> Asked:
    """Return what was asked for of a guest of 1 GiB."""
    limit_ms = None if limit is None else Milliseconds(limit)
    return Asked(choice or Choice(), Bytes(GIB), bandwidth, limit_ms)


@pytest.mark.parametrize(
    ("gap", "limit", "goal"),
    [(None, None, 90.0), (300.0, None, 300.0), (None, 75.0, 150.0), (300.0, 75.0, 150.0), (100.0, 75.0, 100.0)],
)
def test_the_goal_is_the_tighter_of_gap_and_downtime_limit(gap: float | None, limit: float | None, goal: float) -> None:
    """A downtime limit alone is a goal with its quarter and the fixed cost; with both the tighter one counts."""
    choice = Choice(max_gap_ms=None if gap is None else Milliseconds(gap))
    assert asked(choice, limit).goal.max_gap_ms == goal


def test_a_deadline_gives_up_unless_asked_otherwise() -> None:
    """Nothing said is cancel."""
    assert asked(Choice(deadline_ms=Milliseconds(9.0))).goal.at_deadline is AtDeadline.CANCEL
    choice = Choice(deadline_ms=Milliseconds(9.0), at_deadline="switch")
    assert asked(choice).goal.at_deadline is AtDeadline.SWITCH


def test_no_brake_is_allowed_when_none_is_asked_for() -> None:
    """`none` takes the default brake away, a name allows that one only."""
    assert asked().goal.throttles == {Throttle.AUTO_CONVERGE}
    assert asked(Choice(throttle=NO_THROTTLE)).goal.throttles == frozenset()
    assert asked(Choice(throttle="auto-converge")).goal.throttles == {Throttle.AUTO_CONVERGE}
    assert asked(Choice(throttle="any")).goal.throttles == set(Throttle)


def test_what_is_in_force_from_the_first_round_is_no_policys_to_order() -> None:
    """A policy neither puts on nor lets go what a person has put on; it may order 40-writes where any brake may be."""
    assert asked(Choice(throttle="40-writes")).goal.throttles == frozenset()
    names = (None, "none", "auto-converge", "40-writes", "any")
    assert [name for name in names if asked(Choice(throttle=name)).may_hold_writes] == ["any"]


def test_orders_are_bounded_by_what_was_asked_for() -> None:
    """No longer limit, no more bandwidth; a forced switchover is not bounded."""
    narrow = asked(limit=60.0, bandwidth=BytesPerSecond(5 * MIB))
    assert narrow.bound(SetDowntimeLimit(Milliseconds(500.0), "r")) == SetDowntimeLimit(Milliseconds(60.0), "r")
    assert narrow.bound(SetDowntimeLimit(Milliseconds(1.0), "r")) == SetDowntimeLimit(Milliseconds(1.0), "r")
    assert narrow.bound(SetBandwidth(None, "r")) == SetBandwidth(BytesPerSecond(5 * MIB), "r")
    assert narrow.bound(SwitchNow("r")) == SwitchNow("r")
    assert asked().capped(None) == UNLIMITED


def test_a_brake_takes_one_pull_and_is_let_go_as_far_as_qemu_can() -> None:
    """The step is as large as the level, so that QEMU is there with the next bad round; off is 1 %."""
    names = ("cpu-throttle-initial", "cpu-throttle-increment", "max-cpu-throttle")
    trigger = "throttle-trigger-threshold"
    order = SetThrottle(Throttle.AUTO_CONVERGE, 60, "r", trigger=70)
    assert throttle_parameters(order) == {**dict.fromkeys(names, 60), trigger: 70}
    assert throttle_parameters(ThrottleOff(Throttle.AUTO_CONVERGE, "r")) == {**dict.fromkeys(names, 1), trigger: 50}
    with pytest.raises(BadInput, match="none of QEMU's"):
        throttle_parameters(SetThrottle(Throttle.FORTY_WRITES, 40, "r"))


@pytest.mark.parametrize(
    ("choice", "limit", "most"),
    [
        (Choice(throttle="any"), None, 15.0),
        (Choice(throttle="any", max_gap_ms=Milliseconds(300.0)), None, 93.75),
        (Choice(throttle="any"), 60.0, 30.0),
        (Choice(throttle="40-writes"), None, 90.0),
        (Choice(throttle="40-writes", max_gap_ms=Milliseconds(2000.0)), None, 300.0),
    ],
)
def test_no_write_is_held_for_longer_than_was_promised(choice: Choice, limit: float | None, most: float) -> None:
    """Under a policy's order, half of the limit: it reckons with that; from the first round on, the gap."""
    assert asked(choice, limit).most_hold_ms == pytest.approx(most)
