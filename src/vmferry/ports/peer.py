"""What one agent asks of another. The destination's agent answers all but `verdict`, which it asks of the source's."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vmferry.core.capabilities import Transport
from vmferry.core.disks import ImageCopy
from vmferry.core.guest import FrozenGuest
from vmferry.core.host import GuestProbe, HostFacts
from vmferry.core.ids import Epoch, HandoverId, HostName
from vmferry.core.migratable import MigratableDevice
from vmferry.core.units import Milliseconds, Nanoseconds
from vmferry.ports.hypervisor import MigrationSetup, MigrationStatus, RunState
from vmferry.ports.stream import Ticket


class Verdict(enum.StrEnum):
    """Who owns the guest of a hand-over, in the source's words."""

    OPEN = "open"  #: not decided: the destination waits
    ABORTED = "aborted"  #: the guest stays at the source: the destination lets go
    RELEASED = "released"  #: the token is the destination's: it acquires and starts
    UNKNOWN = "unknown"  #: no such hand-over in the source's journal


@dataclass(frozen=True, slots=True)
class ReserveRequest:
    """A guest that comes: everything the destination needs to hold its place and listen."""

    handover: HandoverId
    guest: FrozenGuest
    epoch: Epoch  #: the source's present epoch; the destination will acquire epoch + 1
    running: bool  #: whether the guest ran (else it arrives paused)
    source: HostName
    setup: MigrationSetup
    link: Transport = Transport.TCP
    pipeline: str | None = None  #: with link = pipe: through which of the destination's
    copies: tuple[ImageCopy, ...] = ()  #: images that the destination makes and its QEMU serves
    migratable: tuple[MigratableDevice, ...] = ()  #: devices of which its QEMU gets the state


@dataclass(frozen=True, slots=True)
class ReserveReply:
    """Where the destination's QEMU listens, or how to reach its agent for the stream.

    With a ticket QEMU listens at address and port only for a stream that is to be recovered.
    """

    address: str
    port: int
    ticket: Ticket | None = None
    disk_port: int | None = None  #: where its QEMU serves the images that are copied


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """The destination's machine and QEMU, in its agent's words."""

    state: str  #: of the destination's machine; "unknown" when it has no such hand-over
    qemu_alive: bool
    run_state: RunState | None = None
    migration_status: MigrationStatus | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class CommitReply:
    """What became of the token at the destination.

    `state` is the destination's machine's: "running", "returned", "lost", or one on the way there.
    """

    state: str
    epoch: Epoch
    resumed_at_ns: Nanoseconds | None = None  #: CLOCK_MONOTONIC of the destination at QEMU's RESUME
    detail: str | None = None
    #: what the destination's share of the commit was made of, name -> ms
    parts_ms: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RejoinReply:
    """How a post-copy's destination stands, and where its QEMU listens for the recovered stream."""

    state: str  #: of the destination's machine
    address: str | None = None  #: None: it does not listen
    port: int | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class ClockSample:
    """One ping: all stamps CLOCK_MONOTONIC, `sent` and `received` ours, `theirs` the peer's in between."""

    sent_ns: Nanoseconds
    theirs_ns: Nanoseconds
    received_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class Seen:
    """What the destination saw of a guest that arrived."""

    stamps_ns: Sequence[int] = ()  #: of its beats, their CLOCK_MONOTONIC, at most 200 000
    complete: bool = True  #: False: beats are missing from the stamps, so a gap in them may be nobody's
    in_guest_stall_ms: Milliseconds | None = None  #: in its own words, since its meter was reset; None: it said nothing


class Peer(Protocol):
    """Another host's agent. Every call is bounded in time and raises Unreachable, Denied or what the peer said."""

    async def hello(self) -> HostFacts:
        """Ask who is there and what the host offers."""

    async def probe(self, guest: FrozenGuest) -> GuestProbe:
        """Ask what stands against a guest coming there; reserves nothing."""

    async def reserve(self, request: ReserveRequest) -> ReserveReply:
        """Have everything held and QEMU listening. Same hand-over again: same answer."""

    async def wait_loaded(self, handover: HandoverId, limit_ms: Milliseconds) -> PeerStatus:
        """Wait until the destination is loaded, has failed or is gone, at most so long; return how it stands."""

    async def commit(self, handover: HandoverId, epoch: Epoch, *, running: bool) -> CommitReply:
        """Hand the token over; answers when the guest runs there, or why not. Idempotent."""

    async def rejoin(self, handover: HandoverId, *, source_alive: bool) -> RejoinReply:
        """Tell that a post-copy's stream is broken at the source; the answer comes when QEMU there listens anew.

        Args:
            handover: whose.
            source_alive: False: the source's QEMU is proven dead, and no page comes any more.
        """

    async def announce(self, handover: HandoverId) -> None:
        """Have a guest that runs there announced to the network again; nothing happens when it does not. Idempotent."""

    async def discard(self, handover: HandoverId) -> None:
        """Have the arrival undone; unknown ones are no error. Idempotent."""

    async def status(self, handover: HandoverId) -> PeerStatus:
        """Ask how an arrival stands."""

    async def verdict(self, handover: HandoverId) -> Verdict:
        """Ask the source who owns the guest."""

    async def ping(self) -> ClockSample:
        """Measure the clock once."""

    async def beats(self, handover: HandoverId, start_ns: Nanoseconds, end_ns: Nanoseconds) -> Seen:
        """Return the guest's beats in a window of their CLOCK_MONOTONIC, and ask the guest for its longest stall."""
