"""Journal -> machine: replaying the events gives the same machine as living through them."""

from __future__ import annotations

from collections.abc import Iterable

from vmferry.core.handover.events import AnyEvent, DestinationEvent, Happened, SourceEvent
from vmferry.core.handover.machine import Machine
from vmferry.core.handover.states import Side


def to_json(happened: Happened) -> dict[str, object]:
    """Return the event as it stands in the journal."""
    return {"kind": str(happened.kind), "why": happened.why}


def from_json(side: Side, row: dict[str, object]) -> Happened:
    """Return the event that a journal row holds.

    Raises:
        ValueError: the row was not written by `to_json`.
    """
    kinds: type[SourceEvent | DestinationEvent] = SourceEvent if side is Side.SOURCE else DestinationEvent
    why = row.get("why")
    kind: AnyEvent = kinds(str(row["kind"]))
    return Happened(kind, why if isinstance(why, str) else None)


def replay(side: Side, rows: Iterable[dict[str, object]]) -> Machine:
    """Return the machine as it stood after the last journalled event.

    Effects are not ordered again: `AGENT_RESTARTED` comes next, and its effects ask before they act.
    """
    machine = Machine(side)
    for row in rows:
        machine.handle(from_json(side, row))
    return machine
