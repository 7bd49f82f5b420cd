"""What the agent's journal must be able to do. Every write is durable when the call returns."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vmferry.core.device_claims import DeviceClaim
from vmferry.core.guest import Desired, FrozenGuest
from vmferry.core.ids import Epoch, GuestName, HandoverId, HostName
from vmferry.core.pci import PciAddress
from vmferry.core.units import Bytes
from vmferry.ports.hypervisor import ProcessRecord


@dataclass(frozen=True, slots=True)
class Token:
    """Who owns a guest: whose vCPUs may run. Written with every change of ownership."""

    epoch: Epoch
    owner: HostName  #: this host, or the one it was released to
    running: bool  #: whether the owner's guest ran (else it was paused or stopped by order)
    cont_intent: bool = False  #: the owner was about to send, or has sent, `cont` in this epoch


@dataclass(frozen=True, slots=True)
class GuestRow:
    """One guest that this host owns, owned, or holds for an arrival."""

    guest: FrozenGuest
    token: Token
    desired: Desired
    process: ProcessRecord | None
    beat_port: int | None = None
    uid: int | None = None
    note: str | None = None  #: why it stopped: "powered off by the guest", "crashed", "lost in hand-over ..."


@dataclass(frozen=True, slots=True)
class HandoverRow:
    """One hand-over as one side's journal knows it. `side` is "source" or "destination"."""

    id: HandoverId
    guest: GuestName
    side: str
    peer: HostName
    state: str
    request: dict[str, object]  #: what was asked for, as JSON
    report: dict[str, object] | None
    finished: bool
    created_at: float  #: Unix time


@dataclass(frozen=True, slots=True)
class EventRow:
    """One journalled event: replaying them in order gives the machine again."""

    seq: int
    handover: HandoverId
    side: str
    event: dict[str, object]
    state: str  #: the state that it led to
    at: float  #: Unix time


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is held at a destination before anything moves."""

    handover: HandoverId
    guest: GuestName
    memory_bytes: Bytes
    port: int


class SavingKind(enum.StrEnum):
    """Which way a guest goes."""

    SAVE = "save"  #: into the file
    RESTORE = "restore"  #: out of it


@dataclass(frozen=True, slots=True)
class Saving:
    """A guest on its way into a file or out of it."""

    id: str
    guest: GuestName
    kind: SavingKind
    path: str
    committed: bool = False  #: the file owns the guest (saved), or this host does (restored): nothing leads back
    digest: str | None = None  #: of the header that was sealed, once a save is committed


#: One event as JSON, and the state that it led to.
JournalStep = tuple[dict[str, object], str]


class Journal(Protocol):
    """The agent's durable memory (SQLite). Calls are short and synchronous: about 0.3 ms each."""

    def guests(self) -> Sequence[GuestRow]:
        """Return every guest row."""

    def guest(self, name: GuestName) -> GuestRow | None:
        """Return one guest row."""

    def put_guest(self, row: GuestRow) -> None:
        """Insert or replace a guest row."""

    def remove_guest(self, name: GuestName) -> None:
        """Forget a guest; unknown names are no error."""

    def open_handover(self, row: HandoverRow) -> None:
        """Insert a hand-over; raises GuestBusy when the guest has an unfinished one here."""

    def append(
        self,
        handover: HandoverId,
        side: str,
        steps: Sequence[JournalStep],
        *,
        token: tuple[GuestName, Token] | None = None,
        finished: bool = False,
    ) -> None:
        """Write events in order, the last one's state and, if given, the guest's new token in one transaction."""

    def finish(self, handover: HandoverId, side: str) -> None:
        """Note that the last effect of the final state was carried out: a restart takes it up no more. Idempotent."""

    def handovers(self, *, unfinished_only: bool = False) -> Sequence[HandoverRow]:
        """Return hand-overs, newest first."""

    def handover(self, handover: HandoverId, side: str) -> HandoverRow | None:
        """Return one hand-over."""

    def events(self, handover: HandoverId, side: str) -> Sequence[EventRow]:
        """Return the events of one hand-over in order."""

    def put_request(self, handover: HandoverId, side: str, request: dict[str, object]) -> None:
        """Store what is asked for now, where it was changed on the way."""

    def put_report(self, handover: HandoverId, side: str, report: dict[str, object]) -> None:
        """Store a hand-over's report."""

    def begin_saving(self, saving: Saving) -> None:
        """Note that a guest goes into a file, or out of one; raises GuestBusy when it does already."""

    def commit_saving(self, saving: str, guest: GuestName, token: Token, digest: str | None = None) -> None:
        """Note that it is committed, and the guest's new token, in one transaction."""

    def end_saving(self, saving: str) -> None:
        """Forget it; unknown ones are no error."""

    def savings(self) -> Sequence[Saving]:
        """Return what has begun and not ended."""

    def claim_devices(self, claims: Sequence[DeviceClaim]) -> None:
        """Note which devices are kept for a guest, all or none; raises Refused as `check_claims`."""

    def release_device(self, address: PciAddress) -> None:
        """Note that a device was given back; unknown ones are no error."""

    def device_claims(self) -> Sequence[DeviceClaim]:
        """Return which devices are kept for guests, by their addresses."""

    def reserve(self, reservation: Reservation, memory_free_bytes: Bytes) -> None:
        """Hold memory, port and name, all or nothing; raises Refused when any is gone.

        `memory_free_bytes` is what the host has now; the sum of all reservations is held against it.
        """

    def release(self, handover: HandoverId) -> None:
        """Give a reservation back; unknown ones are no error."""

    def reservations(self) -> Sequence[Reservation]:
        """Return what is held now."""
