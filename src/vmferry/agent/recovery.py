"""After a restart, and whenever a person asks: what runs where, what was unfinished, and what was done about it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from vmferry.agent.views import owner_of, parties
from vmferry.api.models import Finding
from vmferry.conductor.guests import Guests
from vmferry.conductor.handovers import Handovers
from vmferry.conductor.saving import GuestSaving
from vmferry.core.errors import VmferryError
from vmferry.core.handover.states import Side
from vmferry.core.ids import GuestName, HandoverId, HostName
from vmferry.core.migration import RunState
from vmferry.ports.store import GuestRow, HandoverRow

_log = structlog.get_logger(__name__)
_SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """Brings journal and reality together.

    Args:
        guests: this host's guests.
        handovers: this host's hand-overs.
        saving: guests that go into files, or come out of them.
    """

    guests: Guests
    handovers: Handovers
    saving: GuestSaving

    async def start(self) -> None:
        """Re-adopt guests, take up what was unfinished, drop rows of arrivals that ended without being forgotten."""
        await self.guests.adopt_all()
        taken_up = {row.guest for row in self.handovers.recover()} | set(self.saving.recover())
        for row in self.guests.journal.guests():
            name = row.guest.spec.name
            if row.token.owner != self.guests.settings.name and name not in taken_up:
                _log.info("row of an ended hand-over dropped", guest=name, owner=row.token.owner)
                await self.guests.adopted(name)
                await self.guests.let_go(name)
        open_ids = {row.id for row in self.handovers.unfinished()}
        for reservation in self.guests.journal.reservations():
            if reservation.handover not in open_ids:
                self.guests.journal.release(reservation.handover)

    async def findings(self, guest: GuestName | None) -> tuple[Finding, ...]:
        """Say of every guest, or of one, where it runs and what is open about it; waits a moment for open matters."""
        await self._settle(guest)
        unfinished = {row.guest: row for row in self.handovers.unfinished()}
        rows = [row for row in self.guests.journal.guests() if guest in (None, row.guest.spec.name)]
        return tuple([await self._finding(row, unfinished.get(row.guest.spec.name)) for row in rows])

    async def _settle(self, guest: GuestName | None) -> None:
        """Give hand-overs that are being taken up a moment to end."""
        deadline = asyncio.get_running_loop().time() + _SETTLE_S
        while asyncio.get_running_loop().time() < deadline:
            if not [row for row in self.handovers.unfinished() if guest in (None, row.guest)]:
                return
            await asyncio.sleep(0.05)

    async def _finding(self, row: GuestRow, open_row: HandoverRow | None) -> Finding:
        name = row.guest.spec.name
        here = self.guests.settings.name
        last = open_row or self._last_handover(name)
        found = (
            f"{await self._reality(row)}; the journal of {here} says epoch {row.token.epoch}, owner {row.token.owner}"
        )
        if open_row is None:
            return Finding(
                guest=name,
                handover=None if last is None else last.id,
                found=found,
                done="nothing" if last is None else f"last hand-over {last.id} ended in state {last.state}",
                owner=row.token.owner,
            )
        return Finding(
            guest=name,
            handover=open_row.id,
            found=f"{found}; hand-over {open_row.id} is in state {open_row.state}",
            done=self._pending(open_row),
            owner=owner_of(open_row, here),
        )

    def _pending(self, row: HandoverRow) -> str:
        source, destination = parties(row, self.guests.settings.name)
        other = destination if row.side == str(Side.SOURCE) else source
        return (
            f"it goes on by itself; if it waits for {other}, bring {other} back, or say that it is off for certain: "
            f"vmferry recover --fenced {other}"
        )

    async def _reality(self, row: GuestRow) -> str:
        process = self.guests.process(row.guest.spec.name)
        if process is None:
            return "no QEMU process here" + (f" ({row.note})" if row.note else "")
        try:
            state = await process.query_run_state()
        except VmferryError as error:
            return f"QEMU process {process.record.pid} does not answer ({error.what})"
        running = "its vCPUs run" if state is RunState.RUNNING else f"its vCPUs stand ({state})"
        return f"QEMU process {process.record.pid} is here and {running}"

    def _last_handover(self, name: GuestName) -> HandoverRow | None:
        return next((row for row in self.guests.journal.handovers() if row.guest == name), None)

    async def fenced(self, host: HostName) -> tuple[Finding, ...]:
        """Take a person's word that a host is off, end every wait for it, and say what came of it."""
        concerned: list[HandoverRow] = self.handovers.fenced(host)
        await self._settle(None)
        found = []
        for row in concerned:
            now = self.guests.journal.handover(HandoverId(row.id), row.side) or row
            found.append(
                Finding(
                    guest=row.guest,
                    handover=row.id,
                    found=f"hand-over {row.id} waited for {host} in state {row.state}",
                    done=f"it is in state {now.state} now{await self._leases(row.guest)}",
                    owner=owner_of(now, self.guests.settings.name),
                )
            )
        return tuple(found)

    async def _leases(self, guest: GuestName) -> str:
        """Return what keeps a guest from being started here although its host is off; empty: nothing does."""
        why = await self.guests.leases.why_not(guest)
        return "" if why is None else f"; it cannot be started here before the lease has ended: {why}"
