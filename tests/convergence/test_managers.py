"""The schedules of other managers act at their times, polls and counts."""

from __future__ import annotations

import pytest
from tests.convergence.kit import FACTS, LINK, Played, ended, play, sample

from vmferry.core.convergence import Facts, Goal, Round, Sample, make_policy
from vmferry.core.convergence.orders import (
    Cancel,
    Pause,
    SetDowntimeLimit,
    StartPostcopy,
    SwitchNow,
)
from vmferry.core.units import GIB, MIB, Bytes


def every(step_s: float, count: int, left: int = GIB) -> list[Sample]:
    """Return readings at even distances."""
    return [sample(step_s * number, left) for number in range(count)]


def limits(played: Played) -> list[float]:
    """Return the limits in the order in which they were set."""
    return [order.limit_ms for _, order in played.of(SetDowntimeLimit)]


def test_nova_steps() -> None:
    """50 to 500 ms in 10 steps of 75 s x 2 GiB (a guest of 1 GiB counts as 2), then nothing until 1600 s."""
    readings = every(5, 330)
    played = play(make_policy("nova", Goal()), readings)
    assert limits(played) == [50, 95, 140, 185, 230, 275, 320, 365, 410, 455, 500]
    assert [readings[i].at_ms / 1000 for i, _ in played.of(SetDowntimeLimit)[1:]] == [150.0 * n for n in range(1, 11)]
    assert [readings[i].at_ms / 1000 for i, _ in played.of(Cancel)] == [1605.0]


def test_nova_force_complete_pauses_once() -> None:
    """When its time is up the guest is paused instead, once."""
    played = play(make_policy("nova-force-complete", Goal()), every(5, 400))
    assert [index for index, _ in played.of(Pause)] == [321]
    assert played.of(Cancel) == []


def test_proxmox_doubles_at_the_sixth_poll() -> None:
    """Five polls without progress change nothing, the sixth doubles; the count starts over."""
    readings = [sample(number, GIB + number) for number in range(14)]
    played = play(make_policy("proxmox", Goal()), readings)
    assert [(i, order.limit_ms) for i, order in played.of(SetDowntimeLimit)] == [(-1, 100.0), (6, 200.0), (12, 400.0)]


def test_proxmox_polls_faster_near_the_end() -> None:
    """With less left than a second sends, readings 100 ms apart are polls; before, one in ten is."""
    near = [sample(number / 10, MIB + number) for number in range(8)]
    assert limits(play(make_policy("proxmox", Goal()), near)) == [100, 200]
    far = [sample(number / 10, GIB + number) for number in range(40)]
    assert limits(play(make_policy("proxmox", Goal()), far)) == [100]


def test_proxmox_never_goes_above_qemus_limit() -> None:
    """The doubling ends at 2000 s."""
    played = play(make_policy("proxmox", Goal()), [sample(number, GIB + number) for number in range(200)])
    assert limits(played)[-1] == 2_000_000
    assert limits(played).count(2_000_000) == 1


def stalls(count: int) -> list[Sample]:
    """Return a first poll, and polls 10 s apart of which each sees more left."""
    return [sample(10 * number, GIB + number) for number in range(count + 1)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("ovirt", [(2, 150), (3, 200), (4, 300), (5, 400), (7, 500), (8, "Cancel")]),
        ("ovirt-suspend", [(2, 150), (3, 200), (4, 300), (5, 400), (7, 500), (8, 5000), (9, "Cancel")]),
        ("ovirt:postcopy", [(2, 150), (3, 200), (4, "StartPostcopy")]),
        ("ovirt-very-large", [(2, 400), (3, 500), (4, 700), (5, 1000), (7, 1500), (8, 5000), (9, "Cancel")]),
    ],
)
def test_ovirt_schedules(policy: str, expected: list[tuple[int, float | str]]) -> None:
    """An item acts at the stall whose count is above its limit, the last ones one by one at further stalls."""
    played = play(make_policy(policy, Goal()), stalls(12), Facts(Bytes(GIB), link=LINK, postcopy=True))
    told = [
        (index, order.limit_ms if isinstance(order, SetDowntimeLimit) else type(order).__name__)
        for index, order in played.orders
        if index >= 0
    ]
    assert told == expected


def test_ovirt_without_postcopy_goes_on_to_its_next_item() -> None:
    """Where post-copy cannot be, the schedule's abort follows at the next stall."""
    played = play(make_policy("ovirt-postcopy", Goal()), stalls(12))
    assert played.of(StartPostcopy) == []
    assert [index for index, _ in played.of(Cancel)] == [5]


def test_ovirt_polls_every_ten_seconds() -> None:
    """Readings between two polls are not stalls, whatever they say."""
    played = play(make_policy("ovirt", Goal()), [sample(number / 10, GIB + number) for number in range(150)])
    assert [index for index, _ in played.orders] == [-1, -1]


def test_kubevirt_time_outs() -> None:
    """150 s per GiB of a guest that makes progress; 150 s without a new least of one that makes none."""
    big = Facts(Bytes(8 * GIB), link=LINK)
    progress = [sample(number * 5, 8 * GIB - number) for number in range(400)]
    played = play(make_policy("kubevirt", Goal()), progress, big)
    assert [progress[i].at_ms / 1000 for i, _ in played.of(Cancel)] == [1205.0]
    stuck = every(5, 100)
    played = play(make_policy("kubevirt", Goal()), stuck, big)
    assert [(stuck[i].at_ms / 1000, order.rule) for i, order in played.of(Cancel)] == [(155.0, "no progress for 150 s")]


def course(*left: int, step_s: float = 10.0) -> list[Round]:
    """Return rounds 10 s apart that leave so many pages."""
    return [ended(n, 1000, pages, at_s=n * step_s, ms=step_s * 1000) for n, pages in enumerate(left, 1)]


BIG = Facts(Bytes(8 * GIB), link=LINK)


def test_stall_is_no_four_percent_below_the_best_of_forty_seconds_ago() -> None:
    """At 40 s the window has its first round: 3.9 % less is a stall, 4.1 % less is none."""
    stalled = course(100_000, 110_000, 105_000, 101_000, 96_100)
    assert [i for i, _ in play(make_policy("kubevirt-stall", Goal()), stalled, BIG).of(SwitchNow)] == [4]
    better = course(100_000, 110_000, 105_000, 101_000, 95_900)
    assert play(make_policy("kubevirt-stall", Goal()), better, BIG).of(SwitchNow) == []


def test_after_a_stall_it_waits_for_a_local_minimum() -> None:
    """Rounds over 1.04 x the best are let pass, the first within it switches."""
    pages = course(100_000, 100_000, 100_000, 100_000, 120_000, 104_001, 104_000)
    assert [i for i, _ in play(make_policy("kubevirt-stall", Goal()), pages, BIG).of(SwitchNow)] == [6]


def test_patience_is_halved() -> None:
    """When the best does not come back for 40 s the best of the missed is the target, then after 20 s the next."""
    stalled = (100_000, 100_000, 100_000, 100_000, 150_000)  # at 40 s
    missed = (130_000, 140_000, 160_000, 161_000)  # 40 s later 130,000 is the target ...
    still = (141_000, 145_500)  # ... and 20 s after that 140,000, so that 145,600 will do
    played = play(make_policy("kubevirt-stall", Goal()), course(*stalled, *missed, *still, 145_000), BIG)
    assert [i for i, _ in played.of(SwitchNow)] == [11]
    played = play(make_policy("kubevirt-stall", Goal()), course(*stalled, *missed, *still, 145_700), BIG)
    assert played.of(SwitchNow) == []


def test_strict_allows_its_900_ms_or_aborts() -> None:
    """A minimum within 1.5 x 900 ms raises the limit and aborts a minute later; a larger one aborts at once."""
    near = course(*[40_000] * 5)
    played = play(make_policy("kubevirt-stall-strict", Goal()), [*near, *[sample(s, GIB) for s in range(50, 120)]], BIG)
    assert [order.limit_ms for _, order in played.of(SetDowntimeLimit)] == [300.0, 900.0]
    assert [i for i, _ in played.of(Cancel)] == [66]
    far = play(make_policy("kubevirt-stall-strict", Goal()), course(*[45_000] * 5), BIG)
    assert [i for i, _ in far.of(Cancel)] == [4]
    assert "more than 1.5 x 900 ms" in far.of(Cancel)[0][1].rule


def test_qemu_orders_nothing_but_its_defaults() -> None:
    """After the start QEMU is on its own."""
    played = play(make_policy("qemu", Goal()), [*every(10, 50), *course(*[9] * 40)], FACTS)
    assert [index for index, _ in played.orders] == [-1, -1]
