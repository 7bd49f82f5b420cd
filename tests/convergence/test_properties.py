"""What holds for every policy on every course."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.core.convergence import POLICIES, Facts, Goal, Guarded, Observation, Round, Sample, Throttle, make_policy
from vmferry.core.convergence.facts import AtDeadline, limit_within
from vmferry.core.convergence.orders import (
    MAX_DOWNTIME_MS,
    NEARLY_ZERO_MS,
    Order,
    SetDowntimeLimit,
    SetThrottle,
    fault,
    is_final,
)
from vmferry.core.convergence.throttle import most_stall_ms, stall_ms
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds, Pages

counts = st.integers(0, 1 << 41)
times = st.floats(0, 1e8)
samples = st.builds(
    Sample,
    times.map(Milliseconds),
    st.integers(1, 99),
    counts.map(Bytes),
    counts.map(Bytes),
    counts.map(BytesPerSecond),
)
pages = st.one_of(st.integers(0, 200), st.integers(0, 1 << 30)).map(Pages)
ended = st.builds(
    Round,
    times.map(Milliseconds),
    st.integers(1, 99),
    st.floats(0, 1e7).map(Milliseconds),
    pages,
    pages,
    pages,
    counts.map(BytesPerSecond),
    st.integers(1, 5),
)
courses: st.SearchStrategy[list[Observation]] = st.lists(st.one_of(samples, ended), max_size=40)
goals = st.builds(
    Goal,
    max_gap_ms=st.floats(60, 1e5).map(Milliseconds),
    deadline_ms=st.one_of(st.none(), st.floats(1, 1e6).map(Milliseconds)),
    at_deadline=st.sampled_from(AtDeadline),
    allow_postcopy=st.booleans(),
    throttles=st.frozensets(st.sampled_from(Throttle)),
)
facts = st.builds(
    Facts,
    ram_bytes=st.integers(1, 1 << 44).map(Bytes),
    page_bytes=st.sampled_from([4096, 65536]).map(Bytes),
    postcopy=st.booleans(),
    throttles=st.frozensets(st.sampled_from(Throttle)),
)
anything = st.one_of(
    st.floats(), st.integers(), st.none(), st.text(max_size=3), st.booleans(), st.just(math.nan), st.just(-math.inf)
)
garbage = st.one_of(
    st.builds(Sample, anything, anything, anything, anything, anything),
    st.builds(Round, anything, anything, anything, anything, anything, anything, anything, anything),
    anything,
)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60, deadline=None)
@given(course=courses, goal=goals, about=facts)
def test_every_order_can_be_carried_out_and_nothing_follows_a_final_one(
    name: str, course: list[Observation], goal: Goal, about: Facts
) -> None:
    """Without any guard: limits in range, each order with its rule, silence after a final order, no exception."""
    policy = make_policy(name, goal)
    orders: list[Order] = [*policy.begin(about), *(order for seen in course for order in policy.on(seen))]
    assert [fault(order) for order in orders] == [None] * len(orders)
    assert all(NEARLY_ZERO_MS <= o.limit_ms <= MAX_DOWNTIME_MS for o in orders if isinstance(o, SetDowntimeLimit))
    assert [is_final(order) for order in orders[:-1]] == [False] * len(orders[:-1])


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60, deadline=None)
@given(course=st.lists(st.one_of(samples, ended, garbage), max_size=40), goal=goals, about=facts)
def test_through_the_guard_nothing_raises(name: str, course: list[Any], goal: Goal, about: Facts) -> None:
    """NaN, infinity, texts, negative and backward times: never an exception, never an order that cannot be."""
    guarded = Guarded(make_policy(name, goal))
    orders = [*guarded.begin(about), *(order for seen in course for order in guarded.on(seen))]
    assert [fault(order) for order in orders] == [None] * len(orders)
    assert [is_final(order) for order in orders[:-1]] == [False] * len(orders[:-1])


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=30, deadline=None)
@given(course=courses, goal=goals, about=facts)
def test_a_policy_that_begins_again_is_new(name: str, course: list[Observation], goal: Goal, about: Facts) -> None:
    """`begin` sets the whole state: the second run is the first."""
    policy = make_policy(name, goal)
    first = [policy.begin(about), *(policy.on(seen) for seen in course)]
    second = [policy.begin(about), *(policy.on(seen) for seen in course)]
    assert first == second


@settings(max_examples=200, deadline=None)
@given(course=courses, goal=goals, about=facts)
def test_ours_never_exceeds_the_goal(course: list[Observation], goal: Goal, about: Facts) -> None:
    """Fixed cost, the stall of the brake and the limit (less the raise for a link that QEMU underestimates) fit."""
    policy = make_policy("vmferry", goal)
    stall, last = 0.0, 0.0
    for orders in [policy.begin(about), *(policy.on(seen) for seen in course)]:
        for order in orders:
            if isinstance(order, SetThrottle) and order.throttle is Throttle.AUTO_CONVERGE and order.level > 1:
                stall = stall_ms(order.level)
            if isinstance(order, SetThrottle) and order.throttle is Throttle.FORTY_WRITES:
                stall = most_stall_ms(limit_within(goal.max_gap_ms, about.fixed_cost_ms))
            if isinstance(order, SetDowntimeLimit):
                last = order.limit_ms / (1.25 if order.rule.startswith("fits") else 1)
        assert stall + max(last, 0) + about.fixed_cost_ms <= goal.max_gap_ms + 1e-6
