"""What one move is measured by, and what its mover says of it: plain values that go into the result."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Word:
    """How a move ended, in the mover's own words.

    Attributes:
        arrived: Whether the guest runs at the destination and nothing of it is left to send.
        ended_ns: When the mover said so; CLOCK_MONOTONIC.
        reason: Why it did not arrive.
        qemu_bytes: Bytes that QEMU counted on the stream.
        stream_ms: QEMU's own total time: the stream alone, without starting the destination.
        downtime_ms: QEMU's own figure.
        rounds: QEMU's dirty-sync-count.
        more: What only this mover says, by name.
    """

    arrived: bool
    ended_ns: int
    reason: str | None = None
    qemu_bytes: int | None = None
    stream_ms: float | None = None
    downtime_ms: float | None = None
    rounds: int | None = None
    more: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """One move as it was seen from outside; times in ms, None is "not measured".

    Attributes:
        total_ms: From the order to the latest of: the mover's word, the first beat at the destination, the stream's
            last byte. None when it did not arrive.
        gap_ms: The guest's longest silence from the order until a second after the end.
        gap_before_ms: The same in a quiet window just before.
        stall_ms: The longest stall by the guest's own clock.
        outage_ms: The longest run of lost datagrams; `outage_before_ms` in the quiet window.
        wire_bytes: Over the link from source to destination, everything included.
        efficiency: Bytes over link rate over transfer time; None without a limit.
        rate_before: Pages a second that the workload wrote in the quiet window.
        lost_ms: The work that the guest lost: how long it would have needed, undisturbed, for what it did less.
        lost_share: The same as a share of the window.
        beats_dropped: Beats that the observer could not keep; above 0 a gap may be the observer's.
    """

    cell: str
    mover: str
    round: int
    began: float  #: Unix time, for people
    load: float
    arrived: bool
    reason: str | None
    total_ms: float | None
    gap_ms: float | None
    gap_before_ms: float | None
    gap_at_switch_ms: float | None
    stall_ms: float | None
    outage_ms: float | None
    outage_before_ms: float | None
    wire_bytes: int
    qemu_bytes: int | None
    stream_ms: float | None
    downtime_ms: float | None
    rounds: int | None
    efficiency: float | None
    rate_before: float | None
    lost_ms: float | None
    lost_share: float | None
    oracle: str
    beats_dropped: int
    took_s: float  #: with the boot and everything else
    more: dict[str, object]

    @property
    def is_clean(self) -> bool:
        """Whether the guest's memory is what it should be."""
        return self.oracle.startswith("oracle clean") or self.oracle.startswith("not asked")

    def as_json(self) -> dict[str, Any]:
        """Return it for the result."""
        return asdict(self)
