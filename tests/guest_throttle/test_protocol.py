"""The protocol's values: bounds before anything is sent, and no line of a guest is believed that is not exact."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry.core.errors import BadInput, Broken, Refused
from vmferry.core.units import BytesPerSecond, Milliseconds
from vmferry.guest_throttle.protocol import LINE_LIMIT, Answer, ThrottleOrder, order_for_link, parse_answer

FIGURES = b"processes=2 uncovered=1 covered_kib=100 faults=5 holds=4 overruns=0 errors=0 slots=9 longest_hold_us=19000"


def test_an_order_says_its_lines_and_its_bound() -> None:
    """Forty pages of 4 KiB each 20 ms are 8 192 000 bytes per second."""
    order = ThrottleOrder("move-1")
    assert order.begin_line() == b"1 begin 40 20 100 2000 move-1\n"
    assert order.keep_line() == b"1 keep move-1\n"
    assert order.end_line() == b"1 end move-1\n"
    assert order.dirty_bound == 8_192_000


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"writes": 0}, "writes"),
        ({"writes": 4097}, "writes"),
        ({"slot_ms": 0}, "slot_ms"),
        ({"slot_ms": 101}, "max_stall_ms"),
        ({"max_stall_ms": 10001}, "max_stall_ms"),
        ({"lease_ms": 99}, "lease_ms"),
        ({"id": "two words"}, "id"),
        ({"id": ""}, "id"),
        ({"id": "line\n"}, "id"),
    ],
)
def test_an_order_out_of_bounds_is_refused_here(values: dict[str, int | str], name: str) -> None:
    """The host does not send what the helper would refuse, and the error names the value."""
    with pytest.raises(BadInput, match=name):
        ThrottleOrder(**{"id": "move-1", **values})  # type: ignore[arg-type]


def test_an_answer_reads_back() -> None:
    """Every figure stands where it belongs; keys of a later helper are passed over; `-` is no order."""
    answer = parse_answer(b"1 kept move-1 " + FIGURES + b" later=3\r\n")
    assert answer.word == "kept"
    assert answer.figures.order_id == "move-1"
    assert (answer.figures.processes, answer.figures.longest_hold_us) == (2, 19000)
    assert parse_answer(b"1 status - " + FIGURES + b"\n").figures.order_id is None


def test_an_error_of_the_helper_is_a_refusal() -> None:
    """Its code and words are in the text."""
    with pytest.raises(Refused, match="busy: another order"):
        parse_answer(b"1 error busy another order is in force\n")


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"2 kept move-1 " + FIGURES + b"\n",
        b"1 danced move-1 " + FIGURES + b"\n",
        b"1 kept move-1\n",
        b"1 kept move-1 " + FIGURES.replace(b"faults=5 ", b"") + b"\n",
        b"1 kept move-1 " + FIGURES.replace(b"faults=5", b"faults=-5") + b"\n",
        b"1 kept move-1 " + FIGURES.replace(b"faults=5", b"faults=" + b"9" * 20) + b"\n",
        b"1 kept move-1 " + FIGURES + b" faults=6\n",
        b"1 kept move-1 " + FIGURES + b" x=1" * LINE_LIMIT + b"\n",
        b"\xff\x00\n",
    ],
)
def test_what_is_not_an_answer_is_garbage(line: bytes) -> None:
    """Another version, unknown words, missing, negative, huge, doubled or endless figures are all refused."""
    with pytest.raises(Broken, match="no answer of protocol version 1"):
        parse_answer(line)


@given(st.binary(max_size=600))
def test_no_line_does_more_than_fail(line: bytes) -> None:
    """Any bytes are an answer, a refusal or garbage."""
    with contextlib.suppress(Broken, Refused):
        assert isinstance(parse_answer(line), Answer)


@given(st.integers(1, 10**11), st.floats(1, 10**6), st.integers(1, 1000), st.integers(1, 4096))
def test_an_order_for_a_link_keeps_the_promised_gap(rate: int, gap: float, processes: int, writes: int) -> None:
    """No hold is longer than the gap; half the link is not passed unless the gap, or the longest slot, forbids."""
    bandwidth, limit = BytesPerSecond(rate), Milliseconds(gap)
    order = order_for_link("move-1", bandwidth, limit, processes=processes, writes=writes)
    assert order.max_stall_ms <= gap
    assert order.dirty_bound * processes <= rate / 2 or order.slot_ms == min(order.max_stall_ms, 1000)


def test_an_order_for_known_links() -> None:
    """100 Mbit/s need slots of 27 ms, 1 Gbit/s the shortest; a link that carries nothing is refused."""
    gap = Milliseconds(300)
    assert order_for_link("a", BytesPerSecond(12_500_000), gap).slot_ms == 27
    assert order_for_link("a", BytesPerSecond(125_000_000), gap).slot_ms == 5
    with pytest.raises(BadInput):
        order_for_link("a", BytesPerSecond(0), gap)
