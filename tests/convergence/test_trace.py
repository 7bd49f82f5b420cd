"""A trace comes back as it was written, and what is wrong in one is told with its line."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.convergence.kit import FACTS, ended, live, sample, stored

from vmferry.core.convergence import Goal, Observer, Round, Sample
from vmferry.core.convergence.facts import Throttle
from vmferry.core.convergence.orders import SetBandwidth, SetThrottle, SwitchNow
from vmferry.core.convergence.recorder import MOST_SAMPLES, Recorder
from vmferry.core.convergence.trace import MOST_CHARACTERS, Ended, Ordered, Trace, decode, encode
from vmferry.core.errors import BadInput
from vmferry.core.units import BytesPerSecond, Milliseconds

NOW = Milliseconds(1.0)


def test_round_trip() -> None:
    """Facts, goal, observations, orders and the end are the same again."""
    recorder = Recorder("vmferry", FACTS, Goal(deadline_ms=Milliseconds(9.0)), "a note, \u2028 and ünïcode")
    recorder.saw(sample(1, 2))
    recorder.ordered(NOW, [SetBandwidth(None, "a"), SetBandwidth(BytesPerSecond(7), "b"), SwitchNow("c")])
    recorder.ordered(NOW, [SetThrottle(Throttle.FORTY_WRITES, 5, "d")])
    recorder.saw(ended(3, 4, 5))
    recorder.ended(NOW, "cancelled", Milliseconds(3.0))
    trace = recorder.trace()
    assert decode(encode(trace), "t") == trace
    assert [type(item) for item in trace.items] == [Sample, *[Ordered] * 4, Round, Ended]


def lines() -> list[dict[str, Any]]:
    """Return a good trace as values."""
    items = (sample(1, 2), ended(1, 2, 3), Ended(NOW, "cut"))
    return [json.loads(line) for line in encode(Trace("qemu", FACTS, Goal(), items))]


def test_the_good_trace_is_good() -> None:
    """What the next test breaks is whole before."""
    assert len(decode(map(json.dumps, lines()), "x").items) == 3


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (1, {"vmferry_trace": 2}, "line 1: this is no trace of version 1 (vmferry_trace is 2)"),
        (1, {"facts": None}, "line 1: facts is missing"),
        (1, {"policy": "p" * 101}, "line 1: policy is not a text of at most 100 characters"),
        (2, {"t": "reading"}, "line 2: t is 'reading', not one of sample, round, order, end"),
        (2, {"remaining_bytes": -1}, "line 2: remaining_bytes is -1, not a whole number of at least 0"),
        (2, {"bandwidth": 1.5}, "line 2: bandwidth is 1.5, not a whole number"),
        (2, {"at_ms": float("nan")}, "line 2: at_ms is nan, not a number"),
        (2, {"at_ms": 1e300}, "line 2: at_ms is 1e+300, not within"),
        (2, {"round": True}, "line 2: round is True, not a whole number"),
        (3, {"duration_ms": float("inf")}, "line 3: duration_ms is inf, not a number"),
        (3, {"covers": 0}, "line 3: covers is 0, not a whole number of at least 1"),
        (3, {"sent_pages": 1 << 61}, "line 3: sent_pages is 2305843009213693952"),
        (4, {"how": 3}, "line 4: how is not a text"),
        (4, {"downtime_ms": "1"}, "line 4: downtime_ms is '1', not a number"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(line: int, change: dict[str, Any], message: str) -> None:
    """File, line, field, what was seen."""
    broken = lines()
    broken[line - 1].update(change)
    with pytest.raises(BadInput) as caught:
        decode(map(json.dumps, broken), "run.ndjson")
    assert caught.value.what.startswith("run.ndjson, ")
    assert message in caught.value.what


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "run.ndjson is empty"),
        ([""], "line 1: not JSON"),
        (["[1]"], "line 1: not a JSON object"),
        (["[" * 3000], "line 1: not JSON"),
        (["{" + " " * MOST_CHARACTERS], f"line 1: {MOST_CHARACTERS + 1} characters"),
        (["{}"], "no trace of version 1 (vmferry_trace is None)"),
    ],
)
def test_what_is_no_trace_at_all(text: list[str], message: str) -> None:
    """Empty, no JSON, deep, long, something else."""
    with pytest.raises(BadInput, match="run.ndjson") as caught:
        decode(text, "run.ndjson")
    assert message in caught.value.what


mangled: st.SearchStrategy[Callable[[str], str]] = st.one_of(
    st.integers(0, 400).map(lambda cut: lambda text: text[:cut]),
    st.tuples(st.integers(0, 400), st.characters()).map(lambda p: lambda text: text[: p[0]] + p[1] + text[p[0] + 1 :]),
)


@settings(max_examples=300, deadline=None)
@given(line=st.integers(0, 3), mangle=mangled)
def test_a_mangled_trace_is_read_or_refused(line: int, mangle: Callable[[str], str]) -> None:
    """Nothing but BadInput comes out of a damaged line."""
    text = [json.dumps(values) for values in lines()]
    text[line] = mangle(text[line])
    with contextlib.suppress(BadInput):
        assert len(decode(text, "x").items) == 3


def test_many_samples_are_thinned_and_rounds_are_not() -> None:
    """Memory is bounded; the samples kept are evenly spaced from the first to the last."""
    recorder = Recorder("qemu", FACTS, Goal())
    for number in range(3 * MOST_SAMPLES):
        recorder.saw(sample(number, 1))
        if number % 10_000 == 0:
            recorder.saw(ended(number + 1, 1, 1))
    items = recorder.trace().items
    kept = [item.at_ms / 1000 for item in items if isinstance(item, Sample)]
    assert MOST_SAMPLES // 2 <= len(kept) <= MOST_SAMPLES
    assert {later - earlier for earlier, later in itertools.pairwise(kept)} == {4.0}
    assert sum(isinstance(item, Round) for item in items) == 6


def test_the_observer_says_what_a_real_qemu_did() -> None:
    """Rounds end where QEMU's count grows, and their pages are the changes of QEMU's own counters."""
    observer = Observer()
    told = [seen for reading, at_ms in live("converging") for seen in observer.feed(reading, at_ms)]
    rounds = [seen for seen in told if isinstance(seen, Round)]
    assert [(r.round, r.at_ms, r.remaining_pages) for r in rounds] == [
        (1, 1220.9, 21225472 // 4096),
        (2, 1804.3, 7970816 // 4096),
        (3, 2005.1, 3612672 // 4096),
        (4, 2104.8, 3133440 // 4096),
        (5, 2203.1, 3493888 // 4096),
    ]
    assert rounds[1].sent_pages == 19349 - 13206
    assert rounds[1].dirtied_pages == 7970816 // 4096 - 21225472 // 4096 + 19349 - 13206
    assert [type(seen) for seen in told[:1]] == [Sample]
    assert stored("live-converging").items[-1] == Ended(
        Milliseconds(2213.6), "switched by QEMU's rule", Milliseconds(9)
    )
