"""Journal rows as the API shows them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from pydantic import TypeAdapter

from vmferry.api import models as m
from vmferry.conductor.guest_devices import GuestDevices
from vmferry.conductor.guests import Guests
from vmferry.conductor.source import Source
from vmferry.core.device_claims import addresses_of
from vmferry.core.errors import VmferryError
from vmferry.core.handover.replay import from_json
from vmferry.core.handover.states import FACTS, AnyState, DestinationState, Owner, Side, SourceState
from vmferry.core.ids import GuestName, HandoverId, HostName
from vmferry.core.migration import RunState
from vmferry.core.progress import Finished, Outcome, ProgressEvent, Report, StateEntered
from vmferry.core.saved import SavedGuest
from vmferry.core.units import Milliseconds
from vmferry.ports.store import HandoverRow, Journal

_REPORT = TypeAdapter(Report)
#: One QEMU that does not answer must not hide the others of its host.
_QEMU_LIMIT_S = 1.0


async def guest_view(guests: Guests, name: GuestName, acceleration_tag: str, devices: GuestDevices) -> m.GuestView:
    """Return a guest of this host as it is now; its run state is None when its QEMU does not answer."""
    row = guests.row(name)
    process = guests.process(name)
    run_state: RunState | None = None
    if process is not None:
        with contextlib.suppress(VmferryError, TimeoutError):
            async with asyncio.timeout(_QEMU_LIMIT_S):
                run_state = await process.query_run_state()
    busy = guests.busy_with(name)
    return m.GuestView(
        name=name,
        uuid=row.guest.uuid,
        host=guests.settings.name,
        owner=row.token.owner,
        epoch=row.token.epoch,
        desired=row.desired,
        run_state=run_state,
        acceleration=row.guest.acceleration,
        acceleration_tag=acceleration_tag,
        pid=None if process is None else process.record.pid,
        busy_with=None if busy is None else HandoverId(busy),
        note=row.note,
        spec=row.guest.spec,
        macs=row.guest.macs,
        devices=addresses_of(name, guests.journal.device_claims()),
        carriers={card: None if by is None else str(by) for card, by in devices.carriers(name).items()},
        degraded=dict(devices.degraded(name)),
    )


def saved_view(path: str, saved: SavedGuest) -> m.SavedView:
    """Return a guest in a file."""
    return m.SavedView(
        path=path,
        name=saved.guest.spec.name,
        epoch=saved.epoch,
        running=saved.running,
        qemu=saved.qemu,
        mapped=saved.mapped,
        state_bytes=saved.state_bytes,
        sha256=saved.sha256,
    )


def state_of(row: HandoverRow) -> AnyState:
    """Return the state in a row as its machine's own."""
    return SourceState(row.state) if row.side == str(Side.SOURCE) else DestinationState(row.state)


def parties(row: HandoverRow, here: HostName) -> tuple[HostName, HostName]:
    """Return source and destination of a hand-over in this host's journal."""
    return (here, row.peer) if row.side == str(Side.SOURCE) else (row.peer, here)


def owner_of(row: HandoverRow, here: HostName) -> HostName:
    """Return the host whose vCPUs may run, as this row has it."""
    source, destination = parties(row, here)
    return source if FACTS[state_of(row)].owner is Owner.SOURCE else destination


def report_of(row: HandoverRow) -> Report | None:
    """Return a hand-over's report."""
    return None if row.report is None else _REPORT.validate_python(row.report)


def handover_view(row: HandoverRow, here: HostName, source: Source | None) -> m.HandoverView:
    """Return a hand-over as this host knows it."""
    origin, destination = parties(row, here)
    return m.HandoverView(
        handover=row.id,
        guest=row.guest,
        side="source" if row.side == str(Side.SOURCE) else "destination",
        source=origin,
        destination=destination,
        state=row.state,
        step=FACTS[state_of(row)].step,
        owner=owner_of(row, here),
        finished=row.finished,
        created_at=row.created_at,
        progress=None if source is None else source.feed.last_progress,
        report=report_of(row),
    )


async def past_events(row: HandoverRow, journal: Journal, here: HostName) -> AsyncIterator[ProgressEvent]:
    """Yield what the journal still knows of a hand-over that this agent did not live through."""
    source, destination = parties(row, here)
    for event in journal.events(row.id, row.side):
        state = SourceState(event.state)
        facts = FACTS[state]
        at_ms = Milliseconds(1000 * (event.at - row.created_at))
        owner = source if facts.owner is Owner.SOURCE else destination
        yield StateEntered(at_ms, event.state, facts.step, owner, from_json(Side.SOURCE, event.event).why)
    report = report_of(row)
    if row.finished:
        outcome = Outcome.HELD if report is None else report.outcome
        reason = "the agent was restarted before its report was written" if report is None else report.reason
        yield Finished(Milliseconds(0.0), outcome, owner_of(row, here), reason, None, (), report)
