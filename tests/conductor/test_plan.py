"""What a migration is to be, worked out from what was asked: goal, bounds, brake."""

from __future__ import annotations

import pytest

from vmferry.conductor.plan import NO_THROTTLE, UNLIMITED, Asked, Choice, throttle_parameters
from vmferry.core.convergence import Throttle
from vmferry.core.convergence.orders import SetBandwidth, SetDowntimeLimit, SetThrottle, SwitchNow, ThrottleOff
from vmferry.core.units import GIB, MIB, Bytes, BytesPerSecond, Milliseconds


def asked(choice: Choice | None = None, limit: float | None = None, bandwidth: BytesPerSecond | None = None) -> Asked:
    """Return what was asked for of a guest of 1 GiB."""
    limit_ms = None if limit is None else Milliseconds(limit)
    return Asked(choice or Choice(), Bytes(GIB), bandwidth, limit_ms, encrypted=True)


@pytest.mark.parametrize(
    ("gap", "limit", "goal"),
    [(None, None, 90.0), (300.0, None, 300.0), (None, 81.0, 140.0), (300.0, 81.0, 140.0), (100.0, 81.0, 100.0)],
)
def test_the_goal_is_the_tighter_of_gap_and_downtime_limit(gap: float | None, limit: float | None, goal: float) -> None:
    """A downtime limit alone is a goal of that with its tenth and the fixed cost; with both the tighter one counts."""
    choice = Choice(max_gap_ms=None if gap is None else Milliseconds(gap))
    assert asked(choice, limit).goal.max_gap_ms == goal


def test_no_brake_is_allowed_when_none_is_asked_for() -> None:
    """`none` takes the default brake away, a name allows that one only."""
    assert asked().goal.throttles == {Throttle.AUTO_CONVERGE}
    assert asked(Choice(throttle=NO_THROTTLE)).goal.throttles == frozenset()
    assert asked(Choice(throttle="auto-converge")).goal.throttles == {Throttle.AUTO_CONVERGE}


def test_orders_are_bounded_by_what_was_asked_for() -> None:
    """No longer limit, no more bandwidth; a forced switchover is not bounded."""
    narrow = asked(limit=60.0, bandwidth=BytesPerSecond(5 * MIB))
    assert narrow.bound(SetDowntimeLimit(Milliseconds(500.0), "r")) == SetDowntimeLimit(Milliseconds(60.0), "r")
    assert narrow.bound(SetDowntimeLimit(Milliseconds(1.0), "r")) == SetDowntimeLimit(Milliseconds(1.0), "r")
    assert narrow.bound(SetBandwidth(None, "r")) == SetBandwidth(BytesPerSecond(5 * MIB), "r")
    assert narrow.bound(SwitchNow("r")) == SwitchNow("r")
    assert asked().capped(None) == UNLIMITED


def test_a_brake_is_in_force_at_once_and_let_go_as_far_as_qemu_can() -> None:
    """The step is as large as the level, so that QEMU is there with the next bad round; off is 1 %."""
    names = ("cpu-throttle-initial", "cpu-throttle-increment", "max-cpu-throttle")
    assert throttle_parameters(SetThrottle(Throttle.AUTO_CONVERGE, 60, "r")) == dict.fromkeys(names, 60)
    assert throttle_parameters(ThrottleOff(Throttle.AUTO_CONVERGE, "r")) == dict.fromkeys(names, 1)
    assert throttle_parameters(SetThrottle(Throttle.DIRTY_LIMIT, 9, "r")) == {"vcpu-dirty-limit": 9}
