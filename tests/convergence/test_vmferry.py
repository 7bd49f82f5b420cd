"""Our default: the goal is QEMU's limit, and each means is used when it is allowed and needed, not before."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.convergence.kit import FACTS, GUEST_PAGES, LINK, PAGE, Played, ended, play, sample

from vmferry.core.convergence import AtDeadline, Facts, Goal, Round, Throttle, make_policy
from vmferry.core.convergence.observations import Observation
from vmferry.core.convergence.orders import (
    Cancel,
    SetDowntimeLimit,
    SetThrottle,
    StartPostcopy,
    SwitchNow,
    ThrottleOff,
    fault,
)
from vmferry.core.convergence.throttle import SHORTEST_SLOT_MS, stall_ms, strongest
from vmferry.core.errors import BadInput
from vmferry.core.units import BytesPerSecond, Milliseconds, Percent
from vmferry.guest_throttle import order_for_link

BRAKE = replace(FACTS, throttles=frozenset({Throttle.AUTO_CONVERGE}))
BEHIND = replace(FACTS, postcopy=True)
POSTCOPY = Goal(allow_postcopy=True)
#: (index, level, trigger): the brake before the start, and after the first round.
AT_REST, ARMED = (-1, 1, 1), (0, 83, 75)
#: What the link sends in a second, in pages.
SECOND = LINK // PAGE


def proportional(share: float, count: int) -> list[Round]:
    """Return rounds of a guest that dirties a fixed share of what the link sends, over a large working set."""
    course, size = [], GUEST_PAGES
    at_s = 0.0
    for number in range(1, count + 1):
        seconds = size / SECOND
        at_s += seconds
        course.append(ended(number, size, int(size * share), at_s=at_s, ms=seconds * 1000))
        size = int(size * share)
    return course


def hot(working_set: int, count: int) -> list[Round]:
    """Return rounds of a guest that dirties the same pages in every round, however short."""
    course = [ended(1, GUEST_PAGES, working_set, at_s=GUEST_PAGES / SECOND, ms=GUEST_PAGES / SECOND * 1000)]
    for number in range(2, count + 1):
        seconds = working_set / SECOND
        at_s = course[-1].at_ms / 1000 + seconds
        course.append(ended(number, working_set, working_set, at_s=at_s, ms=seconds * 1000))
    return course


def braked(played: Played) -> list[tuple[int, int, int]]:
    """Return when auto-converge was set to what, and at which share of dirtied pages QEMU pulls it."""
    return [(index, order.level, order.trigger) for index, order in played.of(SetThrottle)]


def test_the_limit_is_the_gap_less_the_fixed_cost() -> None:
    """QEMU switches at the first moment within the goal: nothing is sooner."""
    assert make_policy("vmferry", Goal()).begin(FACTS)[0] == SetDowntimeLimit(
        Milliseconds(187.5), "goal: gap 300.0 ms less 50.0 ms of fixed cost and a quarter"
    )


@pytest.mark.parametrize(("gap", "possible"), [(50.0, False), (51.9, False), (52.0, True), (0.0, False)])
def test_an_impossible_goal_tells_the_least_possible(gap: float, possible: bool) -> None:
    """A gap below the fixed cost is refused at the start."""
    policy = make_policy("vmferry", Goal(max_gap_ms=Milliseconds(gap)))
    if possible:
        assert policy.begin(FACTS)
        return
    with pytest.raises(BadInput) as caught:
        policy.begin(FACTS)
    assert gap == 0 or "allow at least 52 ms" in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7])
def test_a_guest_that_converges_is_left_alone(share: float) -> None:
    """A guest that dirties less than the link sends gets no brake and, where not allowed, no post-copy."""
    played = play(make_policy("vmferry", Goal()), proportional(share, 12), replace(BRAKE, postcopy=True))
    assert played.of(StartPostcopy) == []
    assert braked(played) == [AT_REST, ARMED]
    assert min(order.limit_ms for _, order in played.of(SetDowntimeLimit)) == 187.5


def test_a_guest_that_converges_slowly_is_braked_hard() -> None:
    """Ten times what is left is too long; a guest that does not outrun the link may not feel a soft brake at all."""
    played = play(make_policy("vmferry", Goal()), proportional(0.9, 8), BRAKE)
    assert braked(played) == [AT_REST, ARMED, (1, 83, 1)]
    assert played.of(SetThrottle)[-1][1].rule.endswith("; stalls of 48.8 ms")
    played = play(make_policy("vmferry", POSTCOPY), proportional(0.9, 8), BEHIND)
    assert [(index, order.rule) for index, order in played.of(StartPostcopy)] == [
        (0, "no end soon: round 1 dirtied 235929 pages in 8.59 s")
    ]


def test_a_hot_spot_that_fits_in_the_gap_is_left_alone() -> None:
    """Short windows dirty relatively more, and yet the rest may fit: rounds of a real guest on 1 Gbit/s."""
    course = [
        ended(1, 80_000, 18_000, at_s=2.75, ms=2752, bandwidth=119_500_000),
        ended(2, 13_736, 6_496, 10_943, at_s=3.2, ms=458, bandwidth=117_900_000),
    ]
    played = play(make_policy("vmferry", POSTCOPY), course, BEHIND)
    assert played.of(StartPostcopy) == []


def test_postcopy_after_the_second_round_when_there_is_no_end() -> None:
    """A hot working set is seen after round 2, and not waited for."""
    played = play(make_policy("vmferry", POSTCOPY), hot(20_000, 5), BEHIND)
    assert [index for index, _ in played.of(StartPostcopy)] == [1]


@pytest.mark.parametrize(("left_ms", "started_after"), [(990, 1), (1010, 0)])
def test_postcopy_after_the_first_round_waits_for_a_second_that_is_short(left_ms: float, started_after: int) -> None:
    """On a fast link another look costs less than post-copy does, and round 1 is no good witness there."""
    left = int(SECOND * left_ms / 1000)
    course = [
        ended(1, GUEST_PAGES, left, at_s=0.5, ms=500),
        ended(2, left, left, at_s=0.5 + left_ms / 1000, ms=left_ms),
    ]
    played = play(make_policy("vmferry", POSTCOPY), course, BEHIND)
    assert [index for index, _ in played.of(StartPostcopy)][:1] == [started_after]


@pytest.mark.parametrize(("goal", "facts"), [(Goal(), BEHIND), (POSTCOPY, FACTS)])
def test_no_postcopy_unless_allowed_and_possible(goal: Goal, facts: Facts) -> None:
    """Neither an unasked risk nor an order that QEMU would refuse."""
    played = play(make_policy("vmferry", goal), hot(20_000, 30), facts)
    assert played.of(StartPostcopy) == []
    assert not make_policy("vmferry", goal).wishes(facts).postcopy


def test_the_brake_is_bounded_by_the_goal() -> None:
    """Its stalls fit beside the limit into the gap: QEMU may pull it by itself before we see it."""
    played = play(make_policy("vmferry", Goal()), hot(20_000, 20), BRAKE)
    assert braked(played) == [AT_REST, ARMED, (1, 83, 1)]
    assert 50 + 200 + stall_ms(83) <= 300 < 50 + 200 + stall_ms(84)  # 200: a limit that is raised
    assert stall_ms(83) <= 187.5 / 2


@pytest.mark.parametrize(("percent", "limits"), [(1, [187.5]), (83, [187.5, 187.5 - stall_ms(83)])])
def test_the_limit_shrinks_when_the_brake_works(percent: int, limits: list[float]) -> None:
    """A stall and the switchover may follow each other; a brake that is armed, or at rest, has no stalls."""
    seen: list[Observation] = [*proportional(0.7, 2), replace(sample(12, 1 << 28, number=3), throttle=Percent(percent))]
    played = play(make_policy("vmferry", Goal()), [*seen, seen[-1]], BRAKE)
    assert [order.limit_ms for _, order in played.of(SetDowntimeLimit)] == limits


def test_a_raised_limit_is_taken_back_also_when_the_brake_is_ordered() -> None:
    """Both in one round: the one is no reason to forget the other."""
    course = [*proportional(0.3, 2), ended(3, 9000, 100, SECOND // 8, at_s=10), *proportional(1.05, 6)[3:]]
    played = play(make_policy("vmferry", Goal()), course, BRAKE)
    assert [(index, float(order.limit_ms)) for index, order in played.of(SetDowntimeLimit)] == [
        *((-1, 187.5), (2, 200.0), (3, 187.5))
    ]
    assert [index for index, level, _ in braked(played) if level > 1][-1] == 3


def test_a_brake_that_qemu_pulled_itself_is_pulled_harder_at_the_next_verdict() -> None:
    """The same level would be no news to it."""
    works = replace(sample(20, 1 << 28, number=3), throttle=Percent(83))
    seen: list[Observation] = [*proportional(0.7, 2), works, *proportional(1.05, 10)[3:5]]
    levels = [level for _, level, _ in braked(play(make_policy("vmferry", Goal()), seen, BRAKE))]
    assert levels == [1, 83, 90]


@pytest.mark.parametrize(("gap", "soft", "hard"), [(300.0, 83, 90), (90.0, 44, 60)])
def test_a_brake_that_does_not_do_is_pulled_harder(gap: float, soft: int, hard: int) -> None:
    """Only when a round under it was seen, not for one before it; the limit leaves room first."""
    course = proportional(1.05, 10)
    goal = Goal(max_gap_ms=Milliseconds(gap))
    assert braked(play(make_policy("vmferry", goal), course, BRAKE)) == [AT_REST, (0, soft, 75), (1, soft, 1)]
    works = replace(sample(20, 1 << 28, number=3), throttle=Percent(soft))
    seen: list[Observation] = [*course[:2], works, *course[2:]]
    played = play(make_policy("vmferry", goal), seen, BRAKE)
    assert braked(played) == [AT_REST, (0, soft, 75), (1, soft, 1), (3, hard, 1)]
    assert [type(order) for index, order in played.orders if index == 3] == [SetDowntimeLimit, SetThrottle]
    limit_ms = 0.75 * (gap - 50)
    limits = [(index, float(order.limit_ms)) for index, order in played.of(SetDowntimeLimit)]
    assert limits == [(-1, limit_ms), (2, limit_ms - stall_ms(soft)), (3, limit_ms - stall_ms(hard))]


@pytest.mark.parametrize(
    ("goal", "facts", "expected"),
    [
        (POSTCOPY, replace(BRAKE, postcopy=True), [(-1, 1, 50)]),
        (Goal(), replace(BRAKE, compressed=True), [(-1, 1, 50), (1, 83, 1)]),
        (Goal(max_gap_ms=Milliseconds(52.0)), BRAKE, [(-1, 1, 1), (0, 3, 75), (1, 3, 1)]),
        (Goal(max_gap_ms=Milliseconds(52.0), throttles=frozenset()), BRAKE, []),
    ],
)
def test_where_the_brake_is_not_qemus_to_pull(goal: Goal, facts: Facts, expected: list[tuple[int, int, int]]) -> None:
    """Not where post-copy goes first, and not where bytes on the wire say nothing of pages."""
    assert braked(play(make_policy("vmferry", goal), hot(20_000, 20), facts)) == expected


@pytest.mark.parametrize(("percent", "stall"), [(0, 0), (50, 10), (90, 90), (99, 990), (100, 990)])
def test_stalls(percent: int, stall: float) -> None:
    """The stall is 10 ms x p / (100 - p): 90 ms at 90 %, 990 ms at 99 %."""
    assert stall_ms(percent) == pytest.approx(stall)


@pytest.mark.parametrize(("most", "percent"), [(0.05, 0), (0.11, 1), (10, 50), (89.9, 89), (90, 90), (1e9, 99)])
def test_strongest_brake(most: float, percent: int) -> None:
    """The highest percentage whose stalls stay within the bound."""
    assert strongest(most) == percent


def test_what_fits_by_our_measure_raises_the_limit_until_it_no_longer_does() -> None:
    """QEMU may underestimate the link; a part of what is kept makes up for that while the rest fits."""
    fits = ended(3, 9000, 100, SECOND // 8, at_s=10)
    played = play(make_policy("vmferry", POSTCOPY), [*proportional(0.3, 2), fits, *proportional(0.5, 2)[1:]], BEHIND)
    limits = [(index, order.limit_ms) for index, order in played.of(SetDowntimeLimit)]
    assert limits == [(-1, 187.5), (2, 200.0), (3, 187.5)]
    assert played.of(StartPostcopy) == []


DEADLINE = Goal(deadline_ms=Milliseconds(60_000.0))


@pytest.mark.parametrize(
    ("goal", "facts", "kind"),
    [
        (DEADLINE, FACTS, Cancel),
        (replace(DEADLINE, at_deadline=AtDeadline.SWITCH), FACTS, SwitchNow),
        (replace(DEADLINE, allow_postcopy=True), BEHIND, StartPostcopy),
        (replace(DEADLINE, allow_postcopy=True), FACTS, Cancel),
    ],
)
def test_the_deadline(goal: Goal, facts: Facts, kind: type) -> None:
    """At the deadline, not before: post-copy if it may be, else as asked."""
    readings = [sample(number / 2, 1 << 30) for number in range(130)]
    played = play(make_policy("vmferry", goal), readings, facts)
    assert [(index, type(order)) for index, order in played.orders if index >= 0] == [(120, kind)]


def test_the_reason_for_giving_up_says_what_would_help() -> None:
    """Dirtied against sent, what was left, the gap that it would have been, and what to allow."""
    course = hot(30_000, 200)
    text = play(make_policy("vmferry", DEADLINE), course).of(Cancel)[0][1].rule
    assert "dirtied 30000 pages while it sent 30000, 117.2 MiB were left, a gap of 1.03 s" in text
    assert text.endswith("allow post-copy, a larger gap, or more time")


def test_wishes_are_what_the_allowed_means_need() -> None:
    """The brake must be switched on before the start; several channels would exclude post-copy."""
    both = replace(FACTS, postcopy=True, throttles=frozenset(Throttle))
    wishes = make_policy("vmferry", POSTCOPY).wishes(both)
    assert (wishes.postcopy, wishes.auto_converge, wishes.multifd_channels) == (True, True, 0)
    none = make_policy("vmferry", Goal(throttles=frozenset())).wishes(both)
    assert (none.postcopy, none.auto_converge) == (False, False)


ANY = Goal(throttles=frozenset(Throttle))
HELPER = replace(FACTS, throttles=frozenset(Throttle))
WRITES, CPU = Throttle.FORTY_WRITES, Throttle.AUTO_CONVERGE


def test_the_articles_throttle_is_used_alone_when_nothing_else_is_allowed() -> None:
    """40 writes per slot, once, where there is a helper in the guest; the limit leaves room for a held write."""
    goal = Goal(throttles=frozenset({WRITES}))
    played = play(make_policy("vmferry", goal), hot(20_000, 20), HELPER)
    assert [(i, o.throttle, o.level) for i, o in played.of(SetThrottle)] == [(1, WRITES, 40)]
    limits = [(i, float(o.limit_ms)) for i, o in played.of(SetDowntimeLimit)]
    assert limits == [(-1, 187.5), (1, 93.75)]
    assert played.of(ThrottleOff) == []


def test_the_brake_that_harms_least_goes_first_and_is_released_where_it_does_not_do() -> None:
    """40-writes before auto-converge, which takes its place two rounds later."""
    played = play(make_policy("vmferry", ANY), proportional(1.05, 12), HELPER)
    brakes = [(i, o.throttle, o.level) for i, o in played.of(SetThrottle)]
    assert brakes == [(-1, CPU, 1), (1, WRITES, 40), (3, CPU, 83)]
    assert [(i, o.throttle) for i, o in played.of(ThrottleOff)] == [(3, WRITES)]
    assert [type(order) for index, order in played.orders if index == 3] == [ThrottleOff, SetThrottle]
    assert [(i, o.limit_ms) for i, o in played.of(SetDowntimeLimit)] == [(-1, 187.5), (1, 93.75)]


def test_a_guest_that_converges_under_40_writes_is_left_with_it() -> None:
    """No second brake, and no release: it ends with the move."""
    course = [*proportional(1.05, 2), *(ended(n, 30_000 >> n, 15_000 >> n, at_s=20 + n) for n in range(3, 8))]
    played = play(make_policy("vmferry", ANY), course, HELPER)
    assert [(i, o.throttle) for i, o in played.of(SetThrottle)] == [(-1, CPU), (1, WRITES)]
    assert played.of(ThrottleOff) == []


@pytest.mark.parametrize(
    ("goal", "facts"), [(ANY, BRAKE), (Goal(), HELPER), (replace(ANY, max_gap_ms=Milliseconds(59.0)), HELPER)]
)
def test_40_writes_needs_leave_a_helper_and_time_for_a_slot(goal: Goal, facts: Facts) -> None:
    """Not unasked, not where nobody answers, and not where half of what the gap leaves is less than a slot."""
    played = play(make_policy("vmferry", goal), hot(20_000, 20), facts)
    assert [order for _, order in played.of(SetThrottle) if order.throttle is WRITES] == []


def test_postcopy_goes_before_every_brake() -> None:
    """Where it is allowed it takes nothing from the guest."""
    played = play(
        make_policy("vmferry", replace(ANY, allow_postcopy=True)), hot(20_000, 20), replace(HELPER, postcopy=True)
    )
    assert [(i, type(o)) for i, o in played.orders if i >= 0] == [(1, StartPostcopy)]


def test_the_shortest_slot_is_the_helpers() -> None:
    """What the policy takes for the shortest slot is what an order is made with."""
    fast = order_for_link("a", BytesPerSecond(10**12), Milliseconds(1000.0))
    assert fast.slot_ms == SHORTEST_SLOT_MS


@pytest.mark.parametrize("level", [1, 4096])
def test_every_level_of_40_writes_makes_an_order(level: int) -> None:
    """What `fault` lets through, the helper's protocol takes."""
    assert fault(SetThrottle(WRITES, level, "r")) is None
    assert order_for_link("a", BytesPerSecond(10**9), Milliseconds(20.0), writes=level).writes == level
    assert fault(SetThrottle(WRITES, 4097, "r")) is not None
