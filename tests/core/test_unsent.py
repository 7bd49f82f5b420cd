"""What may wait in the kernel lasts a link for twenty milliseconds."""

from __future__ import annotations

import pytest

from vmferry.core.rounds.unsent import most_unsent
from vmferry.core.units import KIB, BytesPerSecond


@pytest.mark.parametrize(
    ("link", "most"), [(0, 256 * KIB), (12_500_000, 256 * KIB), (125_000_000, 2_500_000), (1_250_000_000, 25_000_000)]
)
def test_twenty_milliseconds(link: int, most: int) -> None:
    """And never less than QEMU needs to be woken in time."""
    assert most_unsent(BytesPerSecond(link)) == most
