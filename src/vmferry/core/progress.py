"""What a migration tells while it runs, and the report at its end: plain frozen facts, one type per line of NDJSON.

Every fact carries `at_ms`, milliseconds since the hand-over was opened, on the source agent's monotonic clock.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from vmferry.core.errors import Blocker
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds, Pages


class Step(enum.IntEnum):
    """The six steps of a migration, as the article counts them."""

    RESERVE = 1  #: check the destination and reserve there
    COPY = 2  #: copy all memory while the guest runs
    ROUNDS = 3  #: copy what changed, again and again
    PAUSE = 4  #: the difference is small enough: pause the source
    LAST_PAGES = 5  #: last dirty pages and device state
    HANDOVER = 6  #: locks over, start at the destination, network


class Outcome(enum.StrEnum):
    """How a hand-over ended."""

    MOVED = "moved"  #: the guest runs at the destination
    ABORTED = "aborted"  #: it failed before the commit; the guest runs on at the source
    CANCELLED = "cancelled"  #: as asked, before the commit; the guest runs on at the source
    BLOCKED = "blocked"  #: nothing was touched
    RETURNED = "returned"  #: committed, but the destination gave it back before it ever ran there
    LOST = "lost"  #: the only QEMU that held the guest died
    HELD = "held"  #: nobody runs it until ownership is certain


@dataclass(frozen=True, slots=True)
class StateEntered:
    """The hand-over machine entered a state."""

    at_ms: Milliseconds
    state: str
    step: Step | None
    owner: str
    why: str | None = None
    event: str = "state"


@dataclass(frozen=True, slots=True)
class Progress:
    """A reading during pre-copy, about five times a second."""

    at_ms: Milliseconds
    round: int
    transferred_bytes: Bytes
    remaining_bytes: Bytes
    total_bytes: Bytes
    bandwidth: BytesPerSecond
    dirty_bytes_per_second: BytesPerSecond
    #: what the rest would take, if the guest were stopped now
    expected_downtime_ms: Milliseconds | None
    downtime_limit_ms: Milliseconds
    verdict: str  #: "first round", "converging", "not converging", "fits", in one or two words
    #: time left until the switchover, when it can be said; never grows without `why_longer`
    time_left_ms: Milliseconds | None
    why_longer: str | None = None
    event: str = "progress"


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """One pass over dirty memory is done; several in one row when they passed between two readings (`covers`)."""

    at_ms: Milliseconds
    round: int  #: the round that ended, 1 = all of RAM; the last of them when the row covers several
    duration_ms: Milliseconds
    sent_bytes: Bytes
    dirtied_bytes: Bytes | None  #: dirtied meanwhile = what the next round has to send
    bandwidth: BytesPerSecond
    expected_downtime_ms: Milliseconds | None
    downtime_limit_ms: Milliseconds
    verdict: str
    covers: int = 1  #: rounds in this row: duration and bytes are their sum, dirtied is the last one's
    event: str = "round"


@dataclass(frozen=True, slots=True)
class PolicyBegan:
    """The policy that decides on the switchover has begun, and what it could not get."""

    at_ms: Milliseconds
    policy: str
    left_out: tuple[str, ...] = ()  #: what it wished of the stream and cannot have, each with the reason
    again: str | None = None  #: why it begins anew, without what it had seen; None: it begins for the first time
    event: str = "policy"


@dataclass(frozen=True, slots=True)
class PolicyOrdered:
    """The policy ordered something; it was carried out unless `refused` says why not."""

    at_ms: Milliseconds
    policy: str
    order: str  #: in a few words, with units
    rule: str  #: which rule fired
    elapsed_ms: Milliseconds  #: since the stream began; 0: before it
    round: int | None = None  #: under way, or the one that has just ended; None: before the first
    left_pages: Pages | None = None  #: still to send at the decision; None: before the first reading
    refused: str | None = None
    event: str = "order"


@dataclass(frozen=True, slots=True)
class DisksCopied:
    """How far the copies of images are, before memory is sent."""

    at_ms: Milliseconds
    copied_bytes: Bytes
    total_bytes: Bytes  #: grows with what the guest writes meanwhile
    images: int
    event: str = "disks"


@dataclass(frozen=True, slots=True)
class Gap:
    """A largest gap seen from outside, and the same guest's largest gap without a migration."""

    largest_ms: Milliseconds
    uncertainty_ms: Milliseconds
    baseline_ms: Milliseconds | None  #: None = not measured
    baseline_window_ms: Milliseconds | None = None
    window_ms: Milliseconds | None = None  #: how long it was watched for `largest_ms`
    ended: bool = True  #: False: it had not ended when the watch did, so it lasted at least this long


@dataclass(frozen=True, slots=True)
class Throttled:
    """What the write throttle did until the guest stopped, as the guest's helper said last (docs/write-throttle.md)."""

    writes: int  #: pages that each process might write per slot
    slot_ms: int
    processes: int  #: that were slowed
    uncovered: int  #: that could not be
    held: int  #: writes that had to wait for a slot
    longest_hold_ms: Milliseconds


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured; None is "not measured", never an estimate (docs/measures.md)."""

    handover: str
    guest: str
    source: str
    destination: str
    outcome: Outcome
    reason: str | None
    guarantee: str
    acceleration: str  #: TCG, nested KVM or bare-metal KVM
    encrypted: bool
    total_ms: Milliseconds | None  #: opened -> the guest runs at the destination, or the hand-over has ended otherwise
    rounds: int | None
    transferred_bytes: Bytes | None
    ram_bytes: Bytes | None
    bandwidth: BytesPerSecond | None  #: transferred_bytes over the stream's whole time
    downtime_limit_ms: Milliseconds
    downtime_ms: Milliseconds | None  #: QEMU's figure
    guest_gap: Gap | None  #: by beats, stamped by an outside clock
    in_guest_stall_ms: Milliseconds | None
    network_outage: Gap | None  #: by sequence-numbered UDP
    commit_ms: Milliseconds | None  #: our own share of the stopped time
    commit_parts_ms: dict[str, float] = field(default_factory=dict)
    first_byte_ms: Milliseconds | None = None  #: opened -> the stream is set up and memory flows
    timeline_ms: dict[str, float] = field(default_factory=dict)  #: state -> at_ms
    ran_twice_ms: Milliseconds | None = None  #: for how long both hosts saw beats; above 0 the guest ran twice
    write_throttle: Throttled | None = None  #: None: it was not in force
    policy: str | None = None  #: that decided on the switchover
    switchover_rule: str | None = None  #: which rule fired it; None: nobody saw it fire
    pages_at_decision: Pages | None = None  #: still to send when it fired
    pages_at_stop: Pages | None = None  #: sent while the guest stood still
    left_out: tuple[str, ...] = ()  #: what the policy wished of the stream and could not have
    restart_price: str | None = None  #: what another attempt costs, where a policy gave this one up
    link: str = "tcp"  #: how the stream travelled (docs/streams.md)
    channels: int | None = None  #: that pages went over
    compression: str = "none"
    pipeline: str | None = None  #: through which it went
    encryption: str | None = None  #: by what QEMU encrypted it: psk or x509; None: it did not
    compression_why: str | None = None  #: why that one, where it was left to us
    #: the guest runs there -> the source's bridges know it; None: they did not in time, or have no part in it
    network_moved_ms: Milliseconds | None = None
    announced_again: int | None = None  #: times that the guest was announced beside what QEMU does; None: on no bridge
    disks: tuple[str, ...] = ()  #: images of which the destination got a copy; the source's were put aside
    disk_bytes: Bytes | None = None  #: that were copied
    disks_ms: Milliseconds | None = None  #: that it took until the copies were in step
    event: str = "report"


@dataclass(frozen=True, slots=True)
class Finished:
    """The hand-over is over (or held): the last line of a watch."""

    at_ms: Milliseconds
    outcome: Outcome
    owner: str | None
    reason: str | None
    fix: str | None
    blockers: tuple[Blocker, ...]
    report: Report | None
    event: str = "finished"


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What a driver can promise for this guest (docs/handover.md)."""

    commit_owner: str  #: vmferry or libvirt
    rollback_until: str  #: the last state from which the guest goes back to the source
    disk_fence: str  #: image locks across hosts, lock manager, SCSI reservation, or none
    sentence: str  #: the same for people


ProgressEvent = StateEntered | DisksCopied | Progress | RoundEnded | PolicyBegan | PolicyOrdered | Finished
