"""The small record of one migration as its policy saw it: a header, then one JSON object per line.

    {"vmferry_trace": 1, "policy": "qemu", "note": "...", "facts": {...}, "goal": {...}}
    {"t": "order", "at_ms": 0, "order": "SetDowntimeLimit", "value": 300, "rule": "QEMU's default"}
    {"t": "sample", "at_ms": 100.0, "round": 1, "sent_bytes": 1, "remaining_bytes": 2, "bandwidth": 3, ...}
    {"t": "round", "at_ms": 900.0, "round": 1, "duration_ms": 900.0, "sent_pages": 4, ...}
    {"t": "end", "at_ms": 1200.0, "how": "switched by QEMU's rule", "downtime_ms": 12.0}

A trace may come from anywhere: every field is checked, and what is wrong is told with the file and the line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from vmferry.core.convergence.facts import AtDeadline, Facts, Goal, Throttle
from vmferry.core.convergence.observations import Round, Sample, is_plausible
from vmferry.core.convergence.orders import Order, SetBandwidth, SetDowntimeLimit, SetThrottle, ThrottleOff, order_text
from vmferry.core.errors import BadInput
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds, Pages, Percent

VERSION = 1
MOST_LINES = 200_000
MOST_CHARACTERS = 4000  #: in one line
_MOST_MS = 1e12
_MOST = 1 << 60


@dataclass(frozen=True, slots=True)
class Ordered:
    """What was ordered while this was recorded."""

    at_ms: Milliseconds
    order: str  #: the class's name
    value: float | str | None
    rule: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended."""

    at_ms: Milliseconds
    how: str
    downtime_ms: Milliseconds | None = None


Item = Sample | Round | Ordered | Ended


@dataclass(frozen=True, slots=True)
class Trace:
    """One migration; item number i stands in line i + 2."""

    policy: str
    facts: Facts
    goal: Goal
    items: tuple[Item, ...]
    note: str = ""


def ordered(at_ms: Milliseconds, order: Order) -> Ordered:
    """Return an order as a trace keeps it."""
    value: float | str | None = None
    if isinstance(order, SetDowntimeLimit):
        value = order.limit_ms
    elif isinstance(order, SetBandwidth):
        value = order.bandwidth
    elif isinstance(order, SetThrottle):
        value = order_text(order)
    elif isinstance(order, ThrottleOff):
        value = str(order.throttle)
    return Ordered(at_ms, type(order).__name__, value, order.rule)


def encode(trace: Trace) -> Iterator[str]:
    """Yield the lines of a trace, without line ends."""
    facts, goal = trace.facts, trace.goal
    header = {
        "vmferry_trace": VERSION,
        "policy": trace.policy,
        "note": trace.note,
        "facts": {
            "ram_bytes": facts.ram_bytes,
            "page_bytes": facts.page_bytes,
            "link": facts.link,
            "fixed_cost_ms": facts.fixed_cost_ms,
            "postcopy": facts.postcopy,
            "throttles": sorted(facts.throttles),
            "compressed": facts.compressed,
        },
        "goal": {
            "max_gap_ms": goal.max_gap_ms,
            "deadline_ms": goal.deadline_ms,
            "at_deadline": goal.at_deadline,
            "allow_postcopy": goal.allow_postcopy,
            "throttles": sorted(goal.throttles),
        },
    }
    yield json.dumps(header, ensure_ascii=False)
    for item in trace.items:
        fields = {name: getattr(item, name) for name in item.__slots__}
        yield json.dumps({"t": _KIND[type(item)], **fields}, ensure_ascii=False)


_KIND: dict[type, str] = {Sample: "sample", Round: "round", Ordered: "order", Ended: "end"}


def decode(lines: Iterable[str], source: str) -> Trace:
    """Return the trace in these lines.

    Args:
        lines: with or without line ends.
        source: the file's name, for messages.

    Raises:
        BadInput: it is no trace, of another version, too long, or has a field that cannot be; with file and line.
    """
    fields = _parse(lines, source)
    try:
        header = next(fields)
    except StopIteration:
        raise BadInput(f"{source} is empty", fix="give what `vmferry trace HANDOVER` printed") from None
    if header.values.get("vmferry_trace") != VERSION:
        seen = header.values.get("vmferry_trace")
        raise header.wrong(f"this is no trace of version {VERSION} (vmferry_trace is {seen!r})")
    return Trace(
        policy=header.text("policy", 100),
        note=header.text("note", 2000),
        facts=_facts(header.part("facts")),
        goal=_goal(header.part("goal")),
        items=tuple(_item(line) for line in fields),
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    """The fields of one line (or of a part of it), taken out with what they may be."""

    values: Mapping[str, object]
    where: str

    def wrong(self, what: str) -> BadInput:
        return BadInput(f"{self.where}: {what}", fix="give what `vmferry trace HANDOVER` printed, unchanged")

    def number(self, name: str, least: float = 0.0, most: float = _MOST_MS) -> Milliseconds:
        value = self.values.get(name)
        is_odd = isinstance(value, float) and not math.isfinite(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or is_odd:
            raise self.wrong(f"{name} is {value!r}, not a number")
        if not least <= value <= most:  # before it becomes a float, for which an int may be too large
            raise self.wrong(f"{name} is {value!r:.80}, not within {least:g} to {most:g}")
        return Milliseconds(float(value))

    def count(self, name: str, least: int = 0) -> int:
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
            raise self.wrong(f"{name} is {value!r}, not a whole number of at least {least}")
        return value

    def text(self, name: str, most: int) -> str:
        value = self.values.get(name)
        if not isinstance(value, str) or len(value) > most:
            raise self.wrong(f"{name} is not a text of at most {most} characters")
        return value

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self.wrong(f"{name} is {value!r}, neither true nor false")
        return value

    def part(self, name: str) -> _Fields:
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.wrong(f"{name} is missing")
        return _Fields(value, f"{self.where}, {name}")

    def throttles(self) -> frozenset[Throttle]:
        value = self.values.get("throttles")
        if not isinstance(value, list) or not all(isinstance(v, str) and v in list(Throttle) for v in value):
            raise self.wrong(f"throttles is {value!r}, not a list of {', '.join(Throttle)}")
        return frozenset(Throttle(v) for v in value)


def _parse(lines: Iterable[str], source: str) -> Iterator[_Fields]:
    for number, line in enumerate(lines, 1):
        here = _Fields({}, f"{source}, line {number}")
        if number > MOST_LINES:
            raise here.wrong(f"more than {MOST_LINES} lines")
        if len(line) > MOST_CHARACTERS:
            raise here.wrong(f"{len(line)} characters, more than {MOST_CHARACTERS}")
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise here.wrong(f"not JSON ({error})") from None
        if not isinstance(value, dict):
            raise here.wrong("not a JSON object")
        yield _Fields(value, here.where)


def _facts(fields: _Fields) -> Facts:
    link = None if fields.values.get("link") is None else BytesPerSecond(fields.count("link", 1))
    return Facts(
        ram_bytes=Bytes(fields.count("ram_bytes", 1)),
        page_bytes=Bytes(fields.count("page_bytes", 1)),
        link=link,
        fixed_cost_ms=fields.number("fixed_cost_ms"),
        postcopy=fields.flag("postcopy"),
        throttles=fields.throttles(),
        compressed="compressed" in fields.values and fields.flag("compressed"),
    )


def _goal(fields: _Fields) -> Goal:
    at_deadline = fields.text("at_deadline", 20)
    if at_deadline not in list(AtDeadline):
        raise fields.wrong(f"at_deadline is {at_deadline!r}, not one of {', '.join(AtDeadline)}")
    return Goal(
        max_gap_ms=fields.number("max_gap_ms"),
        deadline_ms=None if fields.values.get("deadline_ms") is None else fields.number("deadline_ms"),
        at_deadline=AtDeadline(at_deadline),
        allow_postcopy=fields.flag("allow_postcopy"),
        throttles=fields.throttles(),
    )


def _item(fields: _Fields) -> Item:
    read = _READERS.get(str(fields.values.get("t")))
    if read is None:
        raise fields.wrong(f"t is {fields.values.get('t')!r}, not one of {', '.join(_READERS)}")
    item = read(fields)
    if isinstance(item, Sample | Round) and not is_plausible(item):
        raise fields.wrong("the numbers cannot be true")
    return item


def _time(fields: _Fields) -> Milliseconds:
    return fields.number("at_ms", -_MOST_MS)  # a clock that jumped is worth a replay


def _sample(fields: _Fields) -> Sample:
    return Sample(
        _time(fields),
        fields.count("round", 1),
        Bytes(fields.count("sent_bytes")),
        Bytes(fields.count("remaining_bytes")),
        BytesPerSecond(fields.count("bandwidth")),
        Percent(fields.count("throttle") if "throttle" in fields.values else 0),
    )


def _round(fields: _Fields) -> Round:
    return Round(
        at_ms=_time(fields),
        round=fields.count("round", 1),
        duration_ms=fields.number("duration_ms"),
        sent_pages=Pages(fields.count("sent_pages")),
        dirtied_pages=Pages(fields.count("dirtied_pages")),
        remaining_pages=Pages(fields.count("remaining_pages")),
        bandwidth=BytesPerSecond(fields.count("bandwidth")),
        covers=fields.count("covers", 1) if "covers" in fields.values else 1,
    )


def _ordered(fields: _Fields) -> Ordered:
    value = fields.values.get("value")
    if isinstance(value, str):
        value = fields.text("value", 100)
    elif value is not None:
        value = fields.number("value", 0.0, _MOST)
    return Ordered(_time(fields), fields.text("order", 40), value, fields.text("rule", 2000))


def _ended(fields: _Fields) -> Ended:
    downtime = None if fields.values.get("downtime_ms") is None else fields.number("downtime_ms")
    return Ended(_time(fields), fields.text("how", 2000), downtime)


_READERS: Mapping[str, Callable[[_Fields], Item]] = {
    "sample": _sample,
    "round": _round,
    "order": _ordered,
    "end": _ended,
}
