"""What the journal holds of a hand-over: what was asked for at its source, what is held at its destination.

Each is written and read back here, so that a restarted agent goes on with what an earlier one began.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from vmferry.conductor.plan import Choice
from vmferry.core.capabilities import Compression, Encryption, StreamWish, Transport
from vmferry.core.convergence import DEFAULT
from vmferry.core.errors import NotFound
from vmferry.core.handover.machine import Machine
from vmferry.core.handover.replay import replay
from vmferry.core.handover.states import DestinationState, Side, SourceState
from vmferry.core.ids import Epoch, GuestName, HandoverId, HostName
from vmferry.core.migratable import MigratableDevice
from vmferry.core.units import BytesPerSecond, Milliseconds
from vmferry.ports.peer import ReserveReply, ReserveRequest
from vmferry.ports.store import HandoverRow, Journal

_CLAIMS = {Side.SOURCE: "hand-over", Side.DESTINATION: "arrival"}


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, as the source's row has it."""

    handover: HandoverId
    guest: GuestName
    destination: HostName
    downtime_limit_ms: Milliseconds | None  #: the longest that a policy may set; None = the policy's
    bandwidth: BytesPerSecond | None  #: None = the link's
    encrypted: bool
    time_limit_s: float | None = None  #: pre-copy is given up after this
    postcopy: bool = False  #: allowed; whoever steers may begin it
    postcopy_after_rounds: int | None = None  #: begun when this round begins, whoever steers (1: at once)
    policy: str = DEFAULT
    max_gap_ms: Milliseconds | None = None
    deadline_ms: Milliseconds | None = None
    at_deadline: str | None = None
    throttle: str | None = None
    link: Transport = Transport.TCP
    channels: int | None = None  #: None = one, or what the compression needs
    compression: Compression = Compression.NONE
    pipeline: str | None = None
    encryption: Encryption = Encryption.PSK  #: by what, if encrypted
    copy_disks: bool = False  #: allowed for images that the hosts do not share
    copies: tuple[str, ...] = ()  #: these, by their nodes, as the checks found
    migratable: tuple[MigratableDevice, ...] = ()  #: devices that go with the guest, as the checks found

    @property
    def go_along(self) -> frozenset[str]:
        """Return which of its own the guest does not let go."""
        return frozenset(one.wanted for one in self.migratable)

    @property
    def stream(self) -> StreamWish:
        """Return how the stream shall travel."""
        link, compression, encryption = Transport(self.link), Compression(self.compression), Encryption(self.encryption)
        return StreamWish(link, self.channels, compression, self.encrypted, self.pipeline, encryption)

    @property
    def choice(self) -> Choice:
        """Return the policy, and what it shall reach."""
        return Choice(self.policy, self.max_gap_ms, self.deadline_ms, self.at_deadline, self.throttle)


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """What is held here, for whom, as the destination's row has it."""

    handover: HandoverId
    guest: GuestName
    source: HostName
    epoch: Epoch  #: the source's; a commit names the next one
    reply: ReserveReply  #: where QEMU listens
    copies: tuple[str, ...] = ()  #: paths of images that are made here


def claim_of(handover: HandoverId, side: Side) -> str:
    """Return what a guest is busy with while it moves away, or arrives."""
    return f"{_CLAIMS[side]} {handover}"


def source_row(request: Request) -> HandoverRow:
    """Return the row of a hand-over that begins."""
    return HandoverRow(
        id=request.handover,
        guest=request.guest,
        side=str(Side.SOURCE),
        peer=request.destination,
        state=str(SourceState.CHECKING),
        request=written(request),
        report=None,
        finished=False,
        created_at=time.time(),
    )


def written(request: Request) -> dict[str, object]:
    """Return what was asked for as the journal has it, which knows no tuples."""
    written_out = dataclasses.asdict(request)
    return {**written_out, "copies": list(request.copies), "migratable": list(written_out["migratable"])}


def request_of(row: HandoverRow) -> Request:
    """Return what a source's row asks for: an older agent may have written fewer values, a newer one more."""
    names = {field.name for field in dataclasses.fields(Request)}
    known: dict[str, Any] = {key: value for key, value in row.request.items() if key in names}
    kinds = [field.name for field in dataclasses.fields(MigratableDevice)]
    migratable = tuple(MigratableDevice(*(one[kind] for kind in kinds)) for one in known.get("migratable", ()))
    return Request(**{**known, "copies": tuple(known.get("copies", ())), "migratable": migratable})


def arrival_row(request: ReserveRequest, reply: ReserveReply) -> HandoverRow:
    """Return the row of an arrival that begins.

    The stream's key and ticket are of no use after a restart (QEMU has its stream already, or is undone) and have no
    place in a journal.
    """
    return HandoverRow(
        id=request.handover,
        guest=request.guest.spec.name,
        side=str(Side.DESTINATION),
        peer=request.source,
        state=str(DestinationState.PREPARING),
        request={
            "epoch": request.epoch,
            "running": request.running,
            "address": reply.address,
            "port": reply.port,
            "disk_port": reply.disk_port,
            "copies": [one.image.path for one in request.copies],
        },
        report=None,
        finished=False,
        created_at=time.time(),
    )


def arrival_of(row: HandoverRow) -> Arrival:
    """Return what a destination's row holds."""
    held: dict[str, Any] = dict(row.request)
    reply = ReserveReply(str(held["address"]), int(held["port"]), disk_port=held.get("disk_port"))
    copies = tuple(map(str, held.get("copies", ())))
    return Arrival(row.id, row.guest, row.peer, Epoch(int(held["epoch"])), reply, copies)


def replayed(journal: Journal, row: HandoverRow) -> Machine:
    """Return the machine where the journal left it."""
    return replay(Side(row.side), [event.event for event in journal.events(row.id, row.side)])


def row_of(journal: Journal, handover: HandoverId, side: Side, here: HostName) -> HandoverRow:
    """Return a hand-over's row.

    Raises:
        NotFound: this host was never that side of it.
    """
    row = journal.handover(handover, str(side))
    if row is None:
        raise NotFound(f"Hand-over {handover} is not known on host {here} as {side}")
    return row
