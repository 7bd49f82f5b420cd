"""`FakeJournal`: the Journal in memory, stricter than SQLite, that records the order of calls."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from vmferry.core.device_claims import DeviceClaim, check_claims
from vmferry.core.errors import BadInput, GuestBusy, NotFound, VmferryError
from vmferry.core.ids import GuestName, HandoverId
from vmferry.core.pci import PciAddress
from vmferry.core.units import Bytes
from vmferry.ports.store import EventRow, GuestRow, HandoverRow, JournalStep, Reservation, Saving, Token
from vmferry.store.sqlite import check_reservation


@dataclass
class FakeJournal:
    """A journal that forgets when the process ends.

    Stricter than SQLite: an event that opens what was finished, an epoch that goes back, and a value that is not plain
    JSON raise `AssertionError`, since only a bug of ours does that.

    Args:
        now: returns Unix time.
    """

    now: Callable[[], float] = lambda: 0.0
    calls: list[str] = field(default_factory=list)  #: names of the writes in order
    fail_next: VmferryError | None = None  #: raised by the next write, which then does nothing
    _guests: dict[GuestName, GuestRow] = field(default_factory=dict)
    _handovers: dict[tuple[HandoverId, str], HandoverRow] = field(default_factory=dict)
    _events: list[EventRow] = field(default_factory=list)
    _reservations: dict[HandoverId, Reservation] = field(default_factory=dict)
    _savings: dict[str, Saving] = field(default_factory=dict)
    _devices: dict[PciAddress, DeviceClaim] = field(default_factory=dict)

    def close(self) -> None:
        """Do nothing."""

    def guests(self) -> Sequence[GuestRow]:
        """Return every guest row."""
        return [self._guests[name] for name in sorted(self._guests)]

    def guest(self, name: GuestName) -> GuestRow | None:
        """Return one guest row."""
        return self._guests.get(name)

    def put_guest(self, row: GuestRow) -> None:
        """Insert or replace a guest row."""
        self._write("put_guest")
        self._check_epoch(row.guest.spec.name, row.token)
        self._guests[row.guest.spec.name] = row

    def remove_guest(self, name: GuestName) -> None:
        """Forget a guest."""
        self._write("remove_guest")
        self._guests.pop(name, None)

    def open_handover(self, row: HandoverRow) -> None:
        """Insert a hand-over."""
        self._write("open_handover")
        if (row.id, row.side) in self._handovers:
            raise BadInput(f"Hand-over {row.id} stands in the journal already as {row.side}")
        for other in self._handovers.values():
            if other.guest == row.guest and not other.finished:
                raise GuestBusy(f"Guest {row.guest} is held by hand-over {other.id} with {other.peer}", retry=True)
        self._handovers[row.id, row.side] = replace(row, request=_plain(row.request))

    def append(
        self,
        handover: HandoverId,
        side: str,
        steps: Sequence[JournalStep],
        *,
        token: tuple[GuestName, Token] | None = None,
        finished: bool = False,
    ) -> None:
        """Write events, the last one's state and, if given, the guest's new token."""
        self._write("append")
        row = self._known(handover, side)
        if row.finished and not finished:
            raise AssertionError(f"events {steps} after hand-over {handover} was finished")
        plain = [(_plain(event), state) for event, state in steps]
        if token is not None:
            self._own(*token)
        self._handovers[handover, side] = replace(row, state=steps[-1][1], finished=finished)
        for event, state in plain:
            self._events.append(EventRow(len(self._events) + 1, handover, side, event, state, self.now()))

    def finish(self, handover: HandoverId, side: str) -> None:
        """Note that a hand-over's last effect was carried out."""
        self._write("finish")
        self._handovers[handover, side] = replace(self._known(handover, side), finished=True)

    def handovers(self, *, unfinished_only: bool = False) -> Sequence[HandoverRow]:
        """Return hand-overs, newest first."""
        rows = reversed(list(self._handovers.values()))
        return [copy.deepcopy(row) for row in rows if not (unfinished_only and row.finished)]

    def handover(self, handover: HandoverId, side: str) -> HandoverRow | None:
        """Return one hand-over."""
        return copy.deepcopy(self._handovers.get((handover, side)))

    def events(self, handover: HandoverId, side: str) -> Sequence[EventRow]:
        """Return the events of one hand-over in order."""
        return [copy.deepcopy(row) for row in self._events if (row.handover, row.side) == (handover, side)]

    def put_report(self, handover: HandoverId, side: str, report: dict[str, object]) -> None:
        """Store a hand-over's report."""
        self._write("put_report")
        self._handovers[handover, side] = replace(self._known(handover, side), report=_plain(report))

    def put_request(self, handover: HandoverId, side: str, request: dict[str, object]) -> None:
        """Store what is asked for now."""
        self._write("put_request")
        self._handovers[handover, side] = replace(self._known(handover, side), request=_plain(request))

    def begin_saving(self, saving: Saving) -> None:
        """Note that a guest goes into a file, or out of one."""
        self._write("begin_saving")
        if any(known.guest == saving.guest for known in self._savings.values()):
            raise GuestBusy(f"Guest {saving.guest} has an unfinished save or restore")
        self._savings[saving.id] = saving

    def commit_saving(self, saving: str, guest: GuestName, token: Token, digest: str | None = None) -> None:
        """Note that it is committed, and the guest's new token."""
        self._write("commit_saving")
        if saving not in self._savings or guest not in self._guests:
            raise NotFound(f"Guest {guest} or what was begun with it ({saving}) is not in the journal")
        assert not self._savings[saving].committed  # noqa: S101 - only a bug of ours commits twice
        self._check_epoch(guest, token)
        self._savings[saving] = replace(self._savings[saving], committed=True, digest=digest)
        self._guests[guest] = replace(self._guests[guest], token=token)

    def end_saving(self, saving: str) -> None:
        """Forget it."""
        self._write("end_saving")
        self._savings.pop(saving, None)

    def savings(self) -> Sequence[Saving]:
        """Return what has begun and not ended."""
        return sorted(self._savings.values(), key=lambda saving: saving.guest)

    def claim_devices(self, claims: Sequence[DeviceClaim]) -> None:
        """Note which devices are kept for a guest, all or none."""
        self._write("claim_devices")
        check_claims(claims, self.device_claims())
        self._devices |= {claim.address: claim for claim in claims}

    def release_device(self, address: PciAddress) -> None:
        """Note that a device was given back."""
        self._write("release_device")
        self._devices.pop(address, None)

    def device_claims(self) -> Sequence[DeviceClaim]:
        """Return which devices are kept for guests."""
        return [self._devices[address] for address in sorted(self._devices)]

    def reserve(self, reservation: Reservation, memory_free_bytes: Bytes) -> None:
        """Hold memory, port and name, all or nothing."""
        self._write("reserve")
        if self._reservations.get(reservation.handover) == reservation:
            return
        check_reservation(reservation, self.reservations(), memory_free_bytes)
        self._reservations[reservation.handover] = reservation

    def release(self, handover: HandoverId) -> None:
        """Give a reservation back."""
        self._write("release")
        self._reservations.pop(handover, None)

    def reservations(self) -> Sequence[Reservation]:
        """Return what is held now."""
        return [self._reservations[key] for key in sorted(self._reservations)]

    def _write(self, name: str) -> None:
        """Record a write, or fail it as ordered."""
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        self.calls.append(name)

    def _known(self, handover: HandoverId, side: str) -> HandoverRow:
        """Return a hand-over that must be there."""
        row = self._handovers.get((handover, side))
        if row is None:
            raise NotFound(f"Hand-over {handover} ({side}) is not in the journal")
        return row

    def _own(self, name: GuestName, token: Token) -> None:
        """Write a guest's token."""
        row = self._guests.get(name)
        if row is None:
            raise NotFound(f"Guest {name} is not in the journal, its token cannot be written")
        self._check_epoch(name, token)
        self._guests[name] = replace(row, token=token)

    def _check_epoch(self, name: GuestName, token: Token) -> None:
        """Hold that a guest's epoch never goes back while its row stands."""
        row = self._guests.get(name)
        if row is not None and token.epoch < row.token.epoch:
            raise AssertionError(f"epoch of guest {name} goes back from {row.token.epoch} to {token.epoch}")


def _plain(value: dict[str, object]) -> dict[str, object]:
    """Return a copy that went through JSON; hold that nothing was lost by it."""
    plain: dict[str, object] = json.loads(json.dumps(value, allow_nan=False))
    if plain != value:
        raise AssertionError(f"not plain JSON: {value!r}")
    return plain
