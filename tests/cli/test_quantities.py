"""Quantities have units, and come out in the units of the core."""

from __future__ import annotations

import pytest

from vmferry.cli.quantities import parse_duration, parse_rate
from vmferry.core.errors import BadInput


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1Gbit/s", 125_000_000),
        ("100MiB/s", 104_857_600),
        ("1.5 MB/s", 1_500_000),
        (" 8kbit/s ", 1000),
        ("2GiB/s", 2_147_483_648),
        ("10B/s", 10),
    ],
)
def test_rates(text: str, expected: int) -> None:
    """Bits and bytes, binary and decimal, become bytes per second."""
    assert parse_rate(text, "--bandwidth") == expected


@pytest.mark.parametrize(("text", "expected"), [("300ms", 300.0), ("0.5s", 500.0), ("2 min", 120_000.0), ("1h", 3.6e6)])
def test_durations(text: str, expected: float) -> None:
    """Durations become milliseconds."""
    assert parse_duration(text, "--downtime-limit") == expected


@pytest.mark.parametrize("text", ["", "1", "Gbit/s", "-1Gbit/s", "1 gbit/s", "1Gb/s", "0MiB/s", "1e3MiB/s", "nan s"])
def test_what_is_no_rate_names_the_units(text: str) -> None:
    """A number without unit, below or at zero, or with an unknown unit is refused with the units there are."""
    with pytest.raises(BadInput, match="Gbit/s, e.g. 1Gbit/s") as caught:
        parse_rate(text, "--bandwidth")
    assert "--bandwidth" in caught.value.what
