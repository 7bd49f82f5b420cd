"""Recorded moves of real libvirts (`python -m vmferry.lab.libvirt.record`), and what our policies make of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmferry.conductor.plan import Asked, Choice, policy_of
from vmferry.core.convergence import Facts, Guarded, Observation, Observer, Round
from vmferry.core.convergence.orders import Orders, order_text
from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.units import MIB, Bytes, BytesPerSecond, Milliseconds
from vmferry.libvirt.moves.samples import sample_of

DIRECTORY = Path(__file__).parent / "transcripts"
FILES = tuple(sorted(path.stem for path in DIRECTORY.glob("libvirt-*.json")))


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer of virDomainGetJobStats, 0.1 s apart."""

    at_ms: float
    stats: dict[str, Any]
    in_postcopy: bool

    @property
    def sample(self) -> MigrationSample:
        """What we make of it."""
        return sample_of(self.stats, in_postcopy=self.in_postcopy)


@dataclass(frozen=True, slots=True)
class Transcript:
    """One recorded move."""

    head: dict[str, Any]
    lines: tuple[dict[str, Any], ...]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of a kind, in time."""
        return [line for line in self.lines if line["t"] == kind]

    def events(self, host: str, event: str) -> list[str]:
        """Return what a daemon told, in time."""
        return [line["words"] for line in self.of("event") if (line["host"], line["event"]) == (host, event)]

    def readings(self) -> Iterator[Reading]:
        """Yield every reading; the file has what changed since the one before."""
        stats: dict[str, Any] = {}
        for line in self.of("stats"):
            stats = {key: value for key, value in stats.items() if key not in line.get("gone", ())} | line["changed"]
            yield Reading(line["at_ms"], stats, line["postcopy"])


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing that a policy was told, and what it ordered; None: it begins."""

    told: Observation | None
    orders: tuple[str, ...]
    rules: tuple[str, ...]


def load(name: str) -> Transcript:
    """Return a recorded move."""
    found = json.loads((DIRECTORY / f"{name}.json").read_text("utf-8"))
    return Transcript(found["head"], tuple(found["lines"]))


def replay(transcript: Transcript, policy: str) -> Iterator[Seen]:
    """Yield what a policy is told of a recorded move and what it orders, by the same steps as `DomainMove` takes."""
    head = transcript.head
    ram, link = Bytes(head["memory_mib"] * MIB), BytesPerSecond(head["bandwidth"])
    asked = Asked(Choice(policy), ram, link, None, postcopy=head["postcopy"])
    guarded, observer = Guarded(policy_of(asked)), Observer()

    def seen(told: Observation | None, orders: Orders) -> Seen:
        bound = [asked.bound(order) for order in orders]
        return Seen(told, tuple(map(order_text, bound)), tuple(order.rule for order in bound))

    first = guarded.begin(Facts(ram, link=asked.link, postcopy=asked.postcopy))
    began: float | None = None
    for reading in transcript.readings():
        sample = reading.sample
        if sample.status is MigrationStatus.ACTIVE and began is None:
            began = reading.at_ms
            yield seen(None, first)
        for told in observer.feed(sample, Milliseconds(reading.at_ms - (began or 0.0))):
            yield seen(told, () if guarded.is_over else guarded.on(told))


def story(transcript: Transcript, policy: str) -> Iterator[str]:
    """Yield the rounds and the orders of a replay, a line each."""
    for seen in replay(transcript, policy):
        if isinstance(told := seen.told, Round):
            yield (
                f"  round {told.round}: {told.sent_pages} pages sent, {told.dirtied_pages} dirtied,"
                f" {told.remaining_pages} left, {told.duration_ms:.1f} ms"
            )
        for order, rule in zip(seen.orders, seen.rules, strict=True):
            yield f"  -> {order} ({rule})"
