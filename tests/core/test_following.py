"""How fast pages follow a guest that has just started: quiet at first, then in steps, then freely."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry.core.rounds.following import QUIET, may_follow
from vmferry.core.units import BytesPerSecond, Milliseconds

SLOW, FAST = BytesPerSecond(12_500_000), BytesPerSecond(125_000_000)


@pytest.mark.parametrize(
    ("since_ms", "link", "share"),
    [
        (0.0, SLOW, None),
        (249.0, SLOW, None),
        (250.0, SLOW, 1 / 16),
        (250.0 + 340, SLOW, 1 / 8),  # 4 MiB take 335.5 ms
        (250.0 + 680, SLOW, 1 / 4),
        (250.0 + 1010, SLOW, 1 / 2),
        (250.0, FAST, 1 / 16),
        (250.0 + 110, FAST, 1 / 2),
    ],
)
def test_steps_last_as_long_as_the_link_needs(since_ms: float, link: BytesPerSecond, share: float | None) -> None:
    """On a link a tenth as fast a step lasts ten times as long."""
    expected = QUIET if share is None else int(link * share)
    assert may_follow(Milliseconds(since_ms), link) == expected


@pytest.mark.parametrize(("link", "ends_ms"), [(SLOW, 250.0 + 1343), (FAST, 250.0 + 135)])
def test_it_ends(link: BytesPerSecond, ends_ms: float) -> None:
    """After four steps nothing is held back any more."""
    assert may_follow(Milliseconds(ends_ms - 10), link) is not None
    assert may_follow(Milliseconds(ends_ms), link) is None


@given(st.integers(0, 10**12))
def test_it_ends_soon_whatever_was_read(link: int) -> None:
    """One reading of a link may be far too low: pages do not crawl because of it."""
    assert may_follow(Milliseconds(250.0 + 4 * 500), BytesPerSecond(link)) is None


def test_unknown_link_has_no_steps() -> None:
    """Quiet, then freely: an agent that was restarted does not know what the link carried."""
    assert may_follow(Milliseconds(249.0), BytesPerSecond(0)) == QUIET
    assert may_follow(Milliseconds(250.0), BytesPerSecond(0)) is None


@given(st.floats(0, 1e7), st.floats(0, 1e7), st.integers(0, 10**12))
def test_it_never_gets_slower(one: float, other: float, link: int) -> None:
    """A later moment never holds back more than an earlier one."""
    early, late = (may_follow(Milliseconds(ms), BytesPerSecond(link)) for ms in sorted((one, other)))
    assert late is None or (early is not None and QUIET <= early <= late)
