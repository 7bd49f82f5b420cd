"""Each page-counting rule fires at exactly its round, on stored traces."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.convergence.kit import FACTS, GUEST_PAGES, TRACES, ended, play, rounds, stored
from tests.convergence.make_traces import traces

from vmferry.core.convergence import Goal, make_policy
from vmferry.core.convergence.orders import MAX_DOWNTIME_MS, NEARLY_ZERO_MS, SetBandwidth, SetDowntimeLimit, SwitchNow
from vmferry.core.convergence.replay import replay
from vmferry.core.units import MIB, Bytes


@pytest.mark.parametrize(
    ("trace", "policy", "at_round", "pages", "rule"),
    [
        ("few-pages", "article", 4, 50, "concentration: 50 pages left, 50 or fewer"),
        ("few-pages", "kvm-2007", 5, 49, "few pages: 49 left, less than 200 KiB"),
        ("diffusion", "kvm-2007", 4, 4001, "rapid writes: round 4 is the 2nd that dirtied no less"),
        ("rapid-writes", "kvm-2007", 5, 2001, "rapid writes: round 5 is the 2nd that dirtied no less"),
        ("rapid-writes", "article", 2, 9000, "no noticeable gain: 9000 pages left after 9000 the round before"),
        ("no-gain", "article", 3, 9026, "no noticeable gain: 9026 pages left after 9500 the round before"),
        ("thirty-rounds", "article", 30, 2466, "finite loop: 30 rounds"),
        ("thirty-rounds", "kvm-2007", 30, 2466, "30 rounds"),
        ("thirty-rounds", "xen-3.0-default-build", 29, 2740, "29 rounds"),
        ("few-sent", "xen-3.0-default-build", 4, 80, "round 4 sent 49 pages, fewer than 50"),
        ("live-converging", "article", 5, 853, "no diffusion: round 5 sent 417 pages, 505 were dirtied"),
        ("live-faster", "article", 2, 23602, "no noticeable gain: 23602 pages left after 23858 the round before"),
    ],
)
def test_rule_fires_at_its_round(trace: str, policy: str, at_round: int, pages: int, rule: str) -> None:
    """The rule, its round and the pages at the decision are those that a person counts by hand."""
    result = replay(stored(trace), make_policy(policy, Goal()))
    last = result.fired[-1]
    assert (last.what, last.seen, last.round, last.remaining_pages) == ("switch now", "round", at_round, pages)
    assert last.rule == rule
    assert result.decided


@pytest.mark.parametrize(("trace", "lines"), list(traces()), ids=lambda value: value if isinstance(value, str) else "")
def test_stored_traces_are_what_makes_them(trace: str, lines: list[str]) -> None:
    """Nobody edits a trace without saying so; if it differs: python -m tests.convergence.make_traces."""
    assert (TRACES / f"{trace}.ndjson").read_text("utf-8").splitlines() == lines


@pytest.mark.parametrize(("dirtied", "fires"), [(4000, False), (4001, True)])
def test_diffusion_is_strict(dirtied: int, fires: bool) -> None:
    """A round that sends as many pages as were dirtied does not diffuse, one page more does."""
    course = [ended(1, GUEST_PAGES, 9000), ended(2, 9000, 4400, 8000), ended(3, 4000, dirtied, 7000)]
    switched = play(make_policy("article", Goal()), course).of(SwitchNow)
    assert [(index, "no diffusion" in order.rule) for index, order in switched] == ([(2, True)] if fires else [])


def test_one_rapid_write_does_not_end_kvm() -> None:
    """One round that dirtied no less is not enough; the first round never counts."""
    assert play(make_policy("kvm-2007", Goal()), rounds(3000, 3000, 2999, 2998)).of(SwitchNow) == []


def test_rapid_writes_need_not_be_in_a_row() -> None:
    """The second rapid write ends the loop however many good rounds lie between."""
    played = play(make_policy("kvm-2007", Goal()), rounds(3000, 3000, 900, 800, 700, 600, 600))
    assert [index for index, _ in played.of(SwitchNow)] == [6]


@pytest.mark.parametrize(("pages", "page_bytes", "fires"), [(49, 4096, True), (50, 4096, False), (3, 65536, True)])
def test_kvm_counts_bytes(pages: int, page_bytes: int, fires: bool) -> None:
    """The bound is 200 KiB: 49 pages of 4 KiB are below, 50 are not, 3 of 64 KiB are."""
    facts = replace(FACTS, page_bytes=Bytes(page_bytes))
    assert bool(play(make_policy("kvm-2007", Goal()), rounds(pages), facts).of(SwitchNow)) is fires


def test_xen_stops_after_three_times_the_memory() -> None:
    """The round whose sending passes three times the guest's pages is the last."""
    course = [ended(number, GUEST_PAGES, GUEST_PAGES - 1) for number in range(1, 6)]
    played = play(make_policy("xen-3.0-default-build", Goal()), course)
    assert [index for index, _ in played.of(SwitchNow)] == [3]


def test_xen_follows_the_dirty_rate() -> None:
    """The next rate is what was dirtied plus 50 Mbit/s, between 100 and 500."""
    course = [ended(1, GUEST_PAGES, 9000), ended(2, 9000, 1000), ended(3, 1000, 90_000)]
    rates = [order.bandwidth for _, order in play(make_policy("xen-3.0", Goal()), course).of(SetBandwidth)]
    # 9000 pages of 4096 B in 1 s are 294.9 Mbit/s; 1000 are 32.8, below the least of 100; 90,000 are above the most
    assert rates == [12_500_000, 344 * 125_000, 12_500_000, 62_500_000]


@pytest.mark.parametrize("policy", ["article", "kvm-2007", "xen-3.0", "xen-3.0-default-build"])
def test_page_counters_keep_qemu_from_deciding(policy: str) -> None:
    """The limit is 1 ms, never 0: with 0 QEMU completes a round without looking what was dirtied meanwhile."""
    limits = play(make_policy(policy, Goal()), []).of(SetDowntimeLimit)
    assert [order.limit_ms for _, order in limits] == [NEARLY_ZERO_MS]
    assert (NEARLY_ZERO_MS, MAX_DOWNTIME_MS) == (1.0, 2_000_000.0)


@pytest.mark.parametrize(("policy", "cap"), [("kvm-2007", 32 * MIB), ("qemu", 128 * MIB), ("ovirt", 52 * MIB)])
def test_caps(policy: str, cap: int) -> None:
    """The cap is ordered at the start and wished for at the set-up."""
    made = make_policy(policy, Goal())
    assert made.wishes(FACTS).max_bandwidth == cap
    assert [order.bandwidth for _, order in play(made, []).of(SetBandwidth)] == [cap]
