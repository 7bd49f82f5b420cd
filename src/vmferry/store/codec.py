"""Rows <-> dataclasses: strict JSON both ways, so that a damaged or foreign value is noticed, never guessed."""

from __future__ import annotations

import functools
import json
import sqlite3
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import Broken
from vmferry.core.functions import FunctionSettings
from vmferry.core.guest import Desired, FrozenGuest
from vmferry.core.ids import Epoch, GuestName, HandoverId, HostName
from vmferry.core.pci import PciAddress
from vmferry.core.units import Bytes
from vmferry.ports.hypervisor import ProcessRecord
from vmferry.ports.store import EventRow, GuestRow, HandoverRow, Reservation, Saving, SavingKind, Token

T = TypeVar("T")

# A tuple of one: pydantic takes a configuration beside a type only when the type is not itself a dataclass.
_STRICT = ConfigDict(extra="forbid", strict=True)
_GUEST: TypeAdapter[tuple[FrozenGuest]] = TypeAdapter(tuple[FrozenGuest], config=_STRICT)
_PROCESS: TypeAdapter[tuple[ProcessRecord]] = TypeAdapter(tuple[ProcessRecord], config=_STRICT)


def dump_guest(guest: FrozenGuest) -> str:
    """Return the guest as JSON."""
    return _GUEST.dump_json((guest,)).decode()


def dump_process(process: ProcessRecord | None) -> str | None:
    """Return the process record as JSON, None for none."""
    return None if process is None else _PROCESS.dump_json((process,)).decode()


def dump_object(value: dict[str, object]) -> str:
    """Return a JSON object in one form for one content; refuses NaN, which JSON does not have."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def load_guest_row(row: sqlite3.Row) -> GuestRow:
    """Return the guest of one row of `guests`.

    Raises:
        Broken: a column does not hold what this version writes.
    """
    process = row["process"]
    return GuestRow(
        guest=_load_guest(row["guest"], row["name"]),
        token=Token(Epoch(row["epoch"]), HostName(row["owner"]), bool(row["running"]), bool(row["cont_intent"])),
        desired=Desired(row["desired"]),
        process=None if process is None else _load(_PROCESS, process, f"process of guest {row['name']}"),
        beat_port=row["beat_port"],
        uid=row["uid"],
        note=row["note"],
    )


@functools.lru_cache(maxsize=256)
def _load_guest(text: str, name: str) -> FrozenGuest:
    """Return a guest; read once for each text, since tokens are asked for while a guest stands still."""
    return _load(_GUEST, text, f"guest {name}")


def load_handover_row(row: sqlite3.Row) -> HandoverRow:
    """Return the hand-over of one row of `handovers`."""
    return HandoverRow(
        id=HandoverId(row["id"]),
        guest=GuestName(row["guest"]),
        side=row["side"],
        peer=HostName(row["peer"]),
        state=row["state"],
        request=json.loads(row["request"]),
        report=None if row["report"] is None else json.loads(row["report"]),
        finished=bool(row["finished"]),
        created_at=row["created_at"],
    )


def load_event_row(row: sqlite3.Row) -> EventRow:
    """Return the event of one row of `events`."""
    return EventRow(
        row["seq"], HandoverId(row["handover"]), row["side"], json.loads(row["event"]), row["state"], row["at"]
    )


def load_reservation(row: sqlite3.Row) -> Reservation:
    """Return the reservation of one row of `reservations`."""
    return Reservation(HandoverId(row["handover"]), GuestName(row["guest"]), Bytes(row["memory_bytes"]), row["port"])


def load_saving(row: sqlite3.Row) -> Saving:
    """Return the saving of one row of `savings`."""
    kind, committed = SavingKind(row["kind"]), bool(row["committed"])
    return Saving(row["id"], GuestName(row["guest"]), kind, row["path"], committed, row["digest"])


def load_claim(row: sqlite3.Row) -> DeviceClaim:
    """Return the claim of one row of `devices`."""
    address, guest = PciAddress.parse(row["address"]), GuestName(row["guest"])
    before = FunctionSettings(mac=row["before_mac"], vlan=row["before_vlan"])
    return DeviceClaim(address, guest, row["iommu_group"], row["port"], bool(row["was_kept"]), row["wanted"], before)


def dump_claim(claim: DeviceClaim) -> tuple[str | int | None, ...]:
    """Return the row of `devices` of a claim."""
    before = claim.before
    device = (str(claim.address), claim.guest, claim.iommu_group, claim.port, claim.was_kept)
    return (*device, claim.wanted, before.mac, before.vlan)


def _load(adapter: TypeAdapter[tuple[T]], text: str, what: str) -> T:
    """Return the one value in a column.

    Raises:
        Broken: the column does not hold what this version writes.
    """
    try:
        return adapter.validate_json(text)[0]
    except ValidationError as error:
        raise Broken(
            f"Journal row of {what} is not what this agent writes: {error.errors()[0]['msg']}",
            fix="start the agent version that wrote it, or restore the journal from a backup",
        ) from error
