"""What may wait in the kernel lasts a link for ten milliseconds."""

from __future__ import annotations

import pytest

from vmferry.core.rounds.unsent import most_unsent
from vmferry.core.units import KIB, BytesPerSecond


@pytest.mark.parametrize(
    ("link", "most"), [(0, 128 * KIB), (12_500_000, 128 * KIB), (125_000_000, 1_250_000), (1_250_000_000, 12_500_000)]
)
def test_ten_milliseconds(link: int, most: int) -> None:
    """And never less than QEMU needs to be woken in time."""
    assert most_unsent(BytesPerSecond(link)) == most
