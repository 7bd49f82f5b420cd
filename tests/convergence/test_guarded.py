"""Whatever a policy does, the outcome is an order that can be carried out, or a cancel that says why."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from tests.convergence.kit import FACTS, ended, rounds, sample

from vmferry.core.convergence import Goal, Guarded, Policy, Round, Sample, Wishes, make_policy
from vmferry.core.convergence.clock import LONGEST_STEP_MS, Clock
from vmferry.core.convergence.facts import Throttle
from vmferry.core.convergence.guarded import MOST_GARBAGE, MOST_ORDERS
from vmferry.core.convergence.orders import (
    Cancel,
    Orders,
    Pause,
    SetBandwidth,
    SetDowntimeLimit,
    SetThrottle,
    SwitchNow,
)
from vmferry.core.convergence.qemu import Qemu
from vmferry.core.units import BytesPerSecond, Milliseconds

SEEN = sample(1, 1000)


def answering(answer: Any) -> Guarded:
    """Return a guard around a policy that answers this to every round and reading; a callable is called."""

    class Odd(Qemu):
        def on(self, seen: object) -> Orders:
            return cast("Orders", answer() if callable(answer) else answer)

    guarded = Guarded(Odd(Goal()))
    assert guarded.begin(FACTS)
    return guarded


def fail(error: BaseException) -> Callable[[], None]:
    """Return a function that raises."""

    def raising() -> None:
        raise error

    return raising


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (fail(ZeroDivisionError("by 0")), "failed with ZeroDivisionError: by 0"),
        (fail(RecursionError("deep")), "failed with RecursionError: deep"),
        (None, "answered NoneType instead of orders"),
        ("switch", "answered str instead of orders"),
        (("switch",), "str is no order"),
        ((SetDowntimeLimit(Milliseconds(math.nan), "r"),), "downtime limit nan ms is not within"),
        ((SetDowntimeLimit(Milliseconds(0.0), "r"),), "downtime limit 0.0 ms is not within 1 to 2e+06 ms"),
        ((SetDowntimeLimit(Milliseconds(2_000_001.0), "r"),), "downtime limit 2000001.0 ms"),
        ((SetDowntimeLimit(cast("Milliseconds", "9"), "r"),), "downtime limit '9' ms"),
        ((SetBandwidth(BytesPerSecond(0), "r"),), "bandwidth 0 B/s is not within"),
        ((SetThrottle(Throttle.AUTO_CONVERGE, 100, "r"),), "level 100 of auto-converge is not within 1 to 99"),
        ((SetThrottle(Throttle.AUTO_CONVERGE, 9, "r", 0),), "trigger 0 of auto-converge is not within 1 to 100"),
        ((SetThrottle(cast("Throttle", "nap"), 50, "r"),), "'nap' is no throttle"),
        ((SwitchNow(""),), "SwitchNow does not say which rule fired"),
        ((Pause("r"),) * (MOST_ORDERS + 1), f"gave {MOST_ORDERS + 1} orders at once"),
    ],
)
def test_a_policy_out_of_order_is_a_cancel_with_the_reason(answer: object, why: str) -> None:
    """The guest stays at the source and the person is told why; nothing follows."""
    guarded = answering(answer)
    orders = guarded.on(SEEN)
    assert [type(order) for order in orders] == [Cancel]
    assert orders[0].rule.startswith("policy qemu: ")
    assert why in orders[0].rule
    assert orders[0].rule.endswith("; the guest stays at the source")
    assert guarded.is_over
    assert guarded.on(SEEN) == ()


def test_a_policy_that_never_answers_is_given_up() -> None:
    """`overdue` cancels once; the answer that comes late is dropped."""

    class Late(Qemu):
        def on(self, seen: object) -> Orders:
            self.overdue = guarded.overdue()  # what the conductor does meanwhile
            return (SwitchNow("too late"),)

    policy = Late(Goal())
    guarded = Guarded(policy)
    guarded.begin(FACTS)
    assert guarded.on(SEEN) == ()
    assert "did not answer within 1.00 s" in policy.overdue[0].rule
    assert isinstance(policy.overdue[0], Cancel)
    assert guarded.overdue() == ()


def test_a_goal_that_cannot_be_met_is_a_cancel_that_says_so() -> None:
    """The text has the least possible."""
    guarded = Guarded(make_policy("vmferry", Goal(max_gap_ms=Milliseconds(20.0))))
    (order,) = guarded.begin(FACTS)
    assert isinstance(order, Cancel)
    assert "allow at least 52 ms" in order.rule


def test_nothing_follows_a_final_order_in_the_same_answer() -> None:
    """Orders behind a SwitchNow are cut off."""
    guarded = answering((Pause("a"), SwitchNow("b"), Pause("c")))
    assert guarded.on(SEEN) == (Pause("a"), SwitchNow("b"))


def with_field(seen: Sample | Round, name: str, value: object) -> Any:
    """Return an observation with a field that a type checker would not let through."""
    return replace(seen, **{name: value})  # type: ignore[arg-type]


GARBAGE = [
    with_field(SEEN, "remaining_bytes", -1),
    with_field(SEEN, "bandwidth", math.nan),
    with_field(SEEN, "round", 0),
    with_field(SEEN, "sent_bytes", 1 << 61),
    with_field(ended(1, 2, 3), "duration_ms", math.inf),
    with_field(ended(1, 2, 3), "covers", 0),
    with_field(ended(1, 2, 3), "dirtied_pages", True),
    None,
    "round",
]


@pytest.mark.parametrize("policy", ["article", "vmferry", "kubevirt-stall"])
def test_garbage_is_not_shown_to_the_policy(policy: str) -> None:
    """It changes nothing, until there is nothing else any more."""
    clean, dirty = Guarded(make_policy(policy, Goal())), Guarded(make_policy(policy, Goal()))
    assert clean.begin(FACTS) == dirty.begin(FACTS)
    for seen in rounds(9000, 4000, 40):
        assert all(dirty.on(garbage) == () for garbage in GARBAGE)
        assert clean.on(seen) == dirty.on(seen)


def test_only_garbage_ends_in_a_cancel() -> None:
    """A hundred readings in a row that cannot be true are a broken reader."""
    guarded = Guarded(make_policy("vmferry", Goal()))
    guarded.begin(FACTS)
    answers = [guarded.on(GARBAGE[0]) for _ in range(MOST_GARBAGE)]
    assert [index for index, answer in enumerate(answers) if answer] == [MOST_GARBAGE - 1]
    assert isinstance(answers[-1][0], Cancel)


def test_the_clock_neither_goes_back_nor_leaps() -> None:
    """Backwards and garbage take no time, a leap counts as one long step."""
    clock = Clock()
    elapsed = []
    for stamp in (5e9, 5e9 + 100, 0.0, 100.0, math.nan, 200.0, 1e15, 1e15 + 50):
        clock.advance(stamp)
        elapsed.append(clock.elapsed_ms)
    assert elapsed == [0, 100, 100, 200, 200, 300, 300 + LONGEST_STEP_MS, 350 + LONGEST_STEP_MS]


@pytest.mark.parametrize("policy", ["vmferry", "nova", "kubevirt", "kubevirt-stall", "ovirt"])
@pytest.mark.parametrize("jump_s", [-1e6, -60.0, 86_400.0, 1e9])
def test_a_clock_jump_fires_no_rule(policy: str, jump_s: float) -> None:
    """A deadline, a step or a time-out does not come from a jump."""
    goal = Goal(deadline_ms=Milliseconds(60_000.0))
    guarded = Guarded(make_policy(policy, goal))
    guarded.begin(FACTS)
    seen = [sample(0, 1 << 30), sample(1, 1 << 29), sample(2 + jump_s, 1 << 28), sample(3 + jump_s, 1 << 27)]
    assert [guarded.on(one) for one in seen] == [(), (), (), ()]


def test_wishes_of_a_policy_that_fails_are_nothing_special() -> None:
    """The set-up goes on; the start will tell."""

    class Broken(Policy):
        def wishes(self, facts: object) -> Wishes:
            raise RuntimeError("no")

    assert Guarded(Broken(Goal())).wishes(FACTS) == Wishes()
    assert Guarded(Broken(Goal())).name == "Broken"
