"""The dirty curve's outlook takes any lengths and sizes that a reading can have."""

import math

from hypothesis import given
from hypothesis import strategies as st

from vmferry.core.convergence.outlook import outlook
from vmferry.core.rounds.curve import DirtyPoint, fit

SIZES = st.floats(0, 1e300)


def test_the_smallest_numbers_have_a_logarithm() -> None:
    """A quotient of the two would be 0, which has none."""
    points = [DirtyPoint(5e-324, 5e-324), DirtyPoint(1e8, 1e15)]
    assert 0.0 <= fit(points).exponent <= 1.0


@given(st.lists(st.builds(DirtyPoint, SIZES, SIZES), max_size=4), st.floats(0, 2))
def test_any_rounds_have_an_outlook(points: list[DirtyPoint], share: float) -> None:
    """Whatever the rounds were, the outlook is told: a bent curve, and proof only by the last round's share."""
    found = outlook(points, share, 100.0, 1e5)
    assert 0.0 <= found.curve.exponent <= 1.0
    assert not math.isnan(found.curve.bytes_after(100.0))
