"""What is known of a link, and from where, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmferry.core.units import format_ms, format_rate

_WHOSE = {"asked": "from --bandwidth", "configured": "from migration.max_bandwidth"}
#: Shorter round trips all look the same to a person.
_SHORT_MS = 0.05


def link_text(view: Mapping[str, Any]) -> str:
    """Return one line: what a stream can count on and whose word that is, then what else is known."""
    measured = view["measured"]
    if view["told_by"] == "measured":
        clauses = [f"{_rate(measured)}, measured {_when(measured)}", _limit(view)]
    else:
        clauses = ["nobody knows how fast it is"] if view["bandwidth"] is None else []
        clauses += [_limit(view), _seen(view)]
    return f"link from {view['source']} to {view['destination']}: {'; '.join(clauses)}"


def _limit(view: Mapping[str, Any]) -> str:
    """Return what a stream may take, and who says so; or why nobody does."""
    if view["limit"] is None:
        return str(view["device"])
    whose = _WHOSE.get(view["limited_by"], view["device"])
    word = "at most " if view["told_by"] == "measured" else ""
    return f"{word}{format_rate(view['limit'])}, {whose}"


def _seen(view: Mapping[str, Any]) -> str:
    """Return what was measured and decides nothing."""
    measured = view["measured"]
    if measured is None:
        return f"never measured (`vmferry host probe {view['source']} {view['destination']}`)"
    return f"measured {_rate(measured)} {_when(measured)}{'' if measured['counts'] else ', too long ago to count'}"


def _rate(measured: Mapping[str, Any]) -> str:
    return f"{'at least ' if measured['is_least'] else ''}{format_rate(measured['bytes_per_second'])}"


def _when(measured: Mapping[str, Any]) -> str:
    trip_ms = measured["round_trip_ms"]
    trip = f", round trip {format_ms(trip_ms) if trip_ms >= _SHORT_MS else 'under 0.1 ms'}" if trip_ms else ""
    return f"{_age(measured['age_s'])} ago{trip}"


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
