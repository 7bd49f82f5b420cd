"""What a change of mind costs: capabilities are fixed when a migration starts, so it is cancelled and started again.

Two bills, never mixed: what is lost was measured; what has to be done again is foretold, and each figure says from
what. A figure that nothing speaks for is missing, not guessed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from vmferry.core.migration import MigrationSample
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds, format_bytes, format_ms

FigureT = TypeVar("FigureT", int, float)


class Basis(enum.StrEnum):
    """Where a figure comes from."""

    MEASURED = "measured"  #: it happened, and was read
    REPEATED = "as it was the first time"  #: foretold: the same again
    ESTIMATED = "estimated"  #: foretold: reckoned from other readings


@dataclass(frozen=True, slots=True)
class Figure(Generic[FigureT]):
    """A number that says where it comes from."""

    value: FigureT
    basis: Basis
    how: str  #: from which readings


@dataclass(frozen=True, slots=True)
class FirstRound:
    """The first round of the migration that runs, when it has ended."""

    sent_bytes: Bytes
    duration_ms: Milliseconds


@dataclass(frozen=True, slots=True)
class RestartPrice:
    """What cancel and start again costs, compared with going on."""

    lost_bytes: Figure[int]  #: sent in vain
    lost_ms: Figure[float] | None  #: spent in vain; None: QEMU did not say
    again_setup_ms: Figure[float] | None  #: until the first page of the new attempt
    again_bytes: Figure[int] | None  #: the new attempt's first round
    again_ms: Figure[float] | None  #: how long that round takes; the guest runs meanwhile

    def text(self) -> str:
        """Return it for people, one sentence, each figure with its basis."""
        lost = f"{format_bytes(self.lost_bytes.value)} and {_ms(self.lost_ms)} of this attempt are lost"
        size = "an unknown amount" if self.again_bytes is None else _told(self.again_bytes, format_bytes)
        return (
            f"{lost}; again: {_ms(self.again_setup_ms)} of set-up, then a first round of {size} in {_ms(self.again_ms)}"
        )


def restart_price(
    sample: MigrationSample, first_round: FirstRound | None, bandwidth: BytesPerSecond | None = None
) -> RestartPrice:
    """Return the price of giving up this attempt now and starting another.

    The guest runs all the while; cancelling itself is not in the price, since nothing foretells how long the last
    write to a stuck link takes. A new attempt with other capabilities may send its first round in more or fewer bytes
    (compression) or faster (channels): the figures are the old attempt's, and say so.

    Args:
        sample: the last reading of the migration that runs.
        first_round: its first round, if that has ended.
        bandwidth: the wire's rate as measured by the caller; None: QEMU's own figure, if it has one.
    """
    lost_ms = None if sample.total_ms is None else Figure(float(sample.total_ms), Basis.MEASURED, "total-time")
    setup = None if sample.setup_ms is None else Figure(float(sample.setup_ms), Basis.REPEATED, "setup-time")
    again_bytes, again_ms = _first_round_again(sample, first_round, bandwidth or sample.bandwidth or None)
    return RestartPrice(
        lost_bytes=Figure(int(sample.transferred_bytes), Basis.MEASURED, "ram.transferred"),
        lost_ms=lost_ms,
        again_setup_ms=setup,
        again_bytes=again_bytes,
        again_ms=again_ms,
    )


def _first_round_again(
    sample: MigrationSample, first_round: FirstRound | None, bandwidth: BytesPerSecond | None
) -> tuple[Figure[int] | None, Figure[float] | None]:
    if first_round is not None:
        how = "the first round of this attempt"
        return (
            Figure(int(first_round.sent_bytes), Basis.REPEATED, how),
            Figure(float(first_round.duration_ms), Basis.REPEATED, how),
        )
    if sample.total_bytes <= 0 or sample.rounds > 1:
        return None, None
    # In the first round every page is either sent or still to be sent; pages of zeros cost nearly nothing, so this is
    # too much rather than too little.
    size = int(sample.transferred_bytes) + int(sample.remaining_bytes)
    sized = Figure(size, Basis.ESTIMATED, "sent and remaining bytes of the first round, pages of zeros counted whole")
    if bandwidth is None:
        return sized, None
    return sized, Figure(size / bandwidth * 1000, Basis.ESTIMATED, "that size at the bandwidth of now")


def _ms(figure: Figure[float] | None) -> str:
    return "an unknown time" if figure is None else _told(figure, format_ms)


def _told(figure: Figure[FigureT], shown: Callable[[FigureT], str]) -> str:
    note = "" if figure.basis is Basis.MEASURED else f" ({figure.basis})"
    return f"{shown(figure.value)}{note}"
