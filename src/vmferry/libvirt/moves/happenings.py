"""What a daemon tells by itself of a domain that moves: rounds, the end of its job, and its state. Pure.

Source: libvirt include/libvirt/libvirt-domain.h (virDomainEventType and its details, VIR_DOMAIN_EVENT_ID_*).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmferry.core.migration import MigrationSample
from vmferry.libvirt.facts import JobKind
from vmferry.libvirt.moves.samples import sample_of


class Turn(enum.StrEnum):
    """What became of a domain, in libvirt's order (virDomainEventType)."""

    DEFINED = "defined"
    UNDEFINED = "undefined"
    STARTED = "started"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    STOPPED = "stopped"
    SHUTDOWN = "shutdown"  #: it powers itself off
    PMSUSPENDED = "pmsuspended"  #: asleep by its own wish
    CRASHED = "crashed"
    UNKNOWN = "unknown"  #: a newer libvirt's


@dataclass(frozen=True, slots=True)
class RoundBegan:
    """QEMU has looked again which pages were written: round `round` begins, the one before it is over."""

    round: int


@dataclass(frozen=True, slots=True)
class JobEnded:
    """The domain's job is over, at the host that tells it."""

    sample: MigrationSample


@dataclass(frozen=True, slots=True)
class Turned:
    """The domain's state changed."""

    turn: Turn
    detail: int  #: libvirt's number for why; its meaning depends on `turn`


@dataclass(frozen=True, slots=True)
class Lost:
    """The daemon does not answer any more, or has closed the connection: nothing more will be told."""


Happening = RoundBegan | JobEnded | Turned | Lost

_TURNS = tuple(Turn)[:-1]


def turned(event: int, detail: int) -> Turned:
    """Return a lifecycle event as a value; a number that is not known is `UNKNOWN`."""
    return Turned(_TURNS[event] if 0 <= event < len(_TURNS) else Turn.UNKNOWN, detail)


def job_ended(stats: Mapping[str, Any]) -> JobEnded:
    """Return a job's end by its last statistics.

    They have no type, and libvirt's QEMU driver tells of no move that failed; `success` is of jobs of other kinds.
    """
    kind = JobKind.COMPLETED if stats.get("success", True) else JobKind.FAILED
    return JobEnded(sample_of({"type": list(JobKind).index(kind), **stats}))
