"""Makes hand-made courses of rounds, and finds the traces that are stored beside this file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vmferry.core.convergence import Facts, Goal, Observer, Policy, Round, Sample
from vmferry.core.convergence.observations import Observation
from vmferry.core.convergence.orders import Order, Orders, SetDowntimeLimit
from vmferry.core.convergence.recorder import Recorder
from vmferry.core.convergence.trace import Trace, decode
from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.units import GIB, MIB, Bytes, BytesPerSecond, Milliseconds, Pages

TRACES = Path(__file__).parent / "traces"
LIVE_TRACES = TRACES.parents[1] / "core/traces"
PAGE = 4096
LINK = BytesPerSecond(125_000_000)
FACTS = Facts(Bytes(GIB), link=LINK)
GUEST_PAGES = GIB // PAGE

K = TypeVar("K")


def ended(
    number: int,
    sent: int,
    dirtied: int,
    left: int | None = None,
    *,
    at_s: float | None = None,
    ms: float = 1000.0,
    bandwidth: int = LINK,
) -> Round:
    """Return a round that ended; it leaves what it dirtied, and lasted as long as its number's distance."""
    at_ms = number * 1000.0 if at_s is None else at_s * 1000
    left = dirtied if left is None else left
    return Round(
        Milliseconds(at_ms),
        number,
        Milliseconds(ms),
        Pages(sent),
        Pages(dirtied),
        Pages(left),
        BytesPerSecond(bandwidth),
    )


def rounds(*pages: int, first: int = GUEST_PAGES) -> list[Round]:
    """Return rounds that dirtied so many pages each and sent what the one before dirtied."""
    return [
        ended(number, sent, dirtied)
        for number, (sent, dirtied) in enumerate(zip([first, *pages], pages, strict=False), 1)
    ]


def sample(at_s: float, left: int, *, number: int = 1, bandwidth: int = LINK) -> Sample:
    """Return a reading."""
    return Sample(Milliseconds(at_s * 1000), number, Bytes(0), Bytes(left), BytesPerSecond(bandwidth))


@dataclass
class Played:
    """What a policy ordered: (index of the observation, -1 for the start; order)."""

    orders: list[tuple[int, Order]]

    def of(self, kind: type[K]) -> list[tuple[int, K]]:
        """Return the orders of one kind."""
        return [(index, order) for index, order in self.orders if isinstance(order, kind)]


def play(policy: Policy, seen: Iterable[Observation], facts: Facts = FACTS) -> Played:
    """Show a policy a course; return all that it ordered."""
    played = Played([(-1, order) for order in policy.begin(facts)])
    for index, observation in enumerate(seen):
        orders: Orders = policy.on(observation)
        played.orders += [(index, order) for order in orders]
    return played


def stored(name: str) -> Trace:
    """Return a stored trace."""
    path = TRACES / f"{name}.ndjson"
    return decode(path.read_text("utf-8").splitlines(), path.name)


def live(name: str) -> Iterator[tuple[MigrationSample, Milliseconds]]:
    """Yield the readings of a migration that a real QEMU made."""
    trace = json.loads((LIVE_TRACES / f"{name}.json").read_text("utf-8"))
    for values in trace["rows"]:
        row = dict(zip(trace["columns"], values, strict=True))
        at_ms = row.pop("at_ms")
        yield MigrationSample(**{**row, "status": MigrationStatus(row["status"])}), Milliseconds(at_ms)


def record(name: str, note: str) -> Trace:
    """Return the trace of a live migration, made by the observer and the recorder."""
    facts = Facts(Bytes(268_967_936), link=BytesPerSecond(40 * MIB), fixed_cost_ms=Milliseconds(10.0))
    recorder, observer, last = Recorder("qemu", facts, Goal(), note), Observer(), Milliseconds(0.0)
    recorder.ordered(last, [SetDowntimeLimit(Milliseconds(100.0), "as it was run")])
    downtime: Milliseconds | None = None
    for reading, at_ms in live(name):
        for observation in observer.feed(reading, at_ms):
            recorder.saw(observation)
        last, downtime = at_ms, reading.downtime_ms
    recorder.ended(last, "switched by QEMU's rule" if downtime is not None else "cut", downtime)
    return recorder.trace()
