"""Sizes, rates and durations as people write them: always with their unit, since a bare number is guessed wrong."""

from __future__ import annotations

import math
import re

from vmferry.core.errors import BadInput
from vmferry.core.units import GIB, KIB, MIB, BytesPerSecond, Milliseconds

_NUMBER = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z/]+)\s*$")

_RATE_UNITS = {
    "B/s": 1.0,
    "KiB/s": float(KIB),
    "MiB/s": float(MIB),
    "GiB/s": float(GIB),
    "kB/s": 1e3,
    "MB/s": 1e6,
    "GB/s": 1e9,
    "kbit/s": 1e3 / 8,
    "Mbit/s": 1e6 / 8,
    "Gbit/s": 1e9 / 8,
}
_DURATION_UNITS = {"ms": 1.0, "s": 1e3, "min": 60e3, "h": 3600e3}


#: Faster than any link; a number that QEMU can hold.
MOST_RATE = 1e12


def parse_rate(text: str, option: str) -> BytesPerSecond:
    """Return a rate in bytes per second, e.g. of `1Gbit/s` or `100MiB/s`.

    Args:
        text: what the person wrote.
        option: where, for the message.

    Raises:
        BadInput: it is no rate, or has no unit; the message names the units.
    """
    return BytesPerSecond(round(_parse(text, option, _RATE_UNITS, "a rate", "1Gbit/s or 100MiB/s", (1.0, MOST_RATE))))


def parse_duration(text: str, option: str, *, least_ms: float = 0.0, most_ms: float = math.inf) -> Milliseconds:
    """Return a duration in milliseconds, e.g. of `300ms` or `2s`.

    Args:
        text: what the person wrote.
        option: where, for the message.
        least_ms: the least that makes sense there.
        most_ms: the most.

    Raises:
        BadInput: it is no duration, too short or too long, or has no unit; the message names the units.
    """
    return Milliseconds(_parse(text, option, _DURATION_UNITS, "a duration", "300ms or 2s", (least_ms, most_ms)))


def _parse(
    text: str, option: str, units: dict[str, float], kind: str, examples: str, limits: tuple[float, float]
) -> float:
    found = _NUMBER.match(text)
    if found is None or found.group(2) not in units or float(found.group(1)) == 0:
        raise BadInput(
            f"{option} {text!r} is not {kind} with its unit",
            fix=f"write a number above 0 and one of {', '.join(units)}, e.g. {examples}",
        )
    value = float(found.group(1)) * units[found.group(2)]
    least, most = limits
    if not least <= value <= most:
        raise BadInput(
            f"{option} {text} is too {'little' if value < least else 'much'}",
            fix=f"write {_readable(least, units)} to {_readable(most, units)}",
        )
    return value


def _readable(value: float, units: dict[str, float]) -> str:
    """Return a limit in the unit that makes it shortest."""
    texts = [f"{value / size:g}{name}" for name, size in units.items() if size <= value]
    return min(texts, key=lambda text: ("e+" in text, len(text)), default="more")
