"""Ours: the agents' own migration, by default and with each policy that the project has."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from grid.cells import GOAL_GAP_MS, GUEST, Cell
from grid.figures import Word
from grid.observe import DESTINATION, NS_PER_MS, SOURCE

from movers.base import Mover
from movers.guest_files import guest_plan
from vmferry.api.models import HandoverView
from vmferry.core.convergence import DEFAULT, POLICIES, Policy
from vmferry.core.errors import Broken, VmferryError
from vmferry.core.progress import Outcome, Report
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import empty

#: The report waits for what the guest and the network say after the move.
REPORT_S = 30.0


class OurMover(Mover):
    """The agents, with options of the migrate request.

    Args:
        lab: a lab.
        name: in tables.
        options: of the request.
        postcopy: whether they allow post-copy.
    """

    ours = True

    def __init__(self, lab: Lab, name: str, options: Mapping[str, object], *, postcopy: bool = False) -> None:
        super().__init__(lab)
        self.name, self.postcopy = name, postcopy
        self._options = dict(options)
        self._open = contextlib.AsyncExitStack()  #: the connection to the source's agent

    async def boot(self, cell: Cell) -> None:
        """Run the guest on host-a."""
        await GuestRun.start(self.lab, await self._plan(cell), SOURCE)
        # As the other movers' connections to their sources, it is there before the order.
        await self._open.enter_async_context(self.lab.hosts[SOURCE].api.kept_open())

    async def _plan(self, cell: Cell) -> GuestPlan:
        return await guest_plan(cell)

    async def order(self, limit_s: float) -> Word:
        """Ask host-a's agent to move the guest, and watch it as the command does; a late one is cancelled."""
        api = self.lab.hosts[SOURCE].api
        body = {"destination": DESTINATION, "options": self._options}
        answer = await api.post(f"/v1/guests/{GUEST}/migrate", body)
        opened_ns, handover = time.monotonic_ns(), str(answer["handover"])
        # One connection: to ask again and again costs the agent more than the migration does.
        watching = asyncio.create_task(api.follow(f"/v1/handovers/{handover}/watch", limit_s + 2 * REPORT_S))
        await asyncio.wait({watching}, timeout=limit_s)
        if late := not watching.done():
            with contextlib.suppress(VmferryError):  # it is past its commit: it arrives
                await api.post(f"/v1/handovers/{handover}/cancel")
            await asyncio.wait({watching}, timeout=REPORT_S)
        if not watching.done():
            watching.cancel()
            raise Broken(f"Hand-over {handover} does not end; agent: {self.lab.hosts[SOURCE].agent.tail(5)}")
        view = HandoverView.model_validate(await api.get(f"/v1/handovers/{handover}"))
        return _word(view.report, opened_ns, late=late)

    def control(self, host: str) -> Path:
        """Return the guest's control socket on a host."""
        return self._socket(host, "control.sock")

    def console(self, host: str) -> Path:
        """Return the guest's console socket on a host."""
        return self._socket(host, "console.sock")

    def _socket(self, host: str, name: str) -> Path:
        found = list(self.lab.hosts[host].run_dir.rglob(f"{GUEST}/{name}"))
        if not found:
            raise Broken(f"Guest {GUEST} has no {name} on {host}")
        return found[0]

    async def end(self) -> None:
        """Remove the guest from both hosts."""
        await self._open.aclose()
        await empty(self.lab)


class ThrottledMover(OurMover):
    """The agents with the article's 40 writes, and the guest with the helper that holds them."""

    helped = True

    async def _plan(self, cell: Cell) -> GuestPlan:
        plan = await guest_plan(cell)
        return dataclasses.replace(plan, throttle=plan.kind == "linux")


def _word(report: Report | None, opened_ns: int, *, late: bool) -> Word:
    """Return the report as every mover's word; its times begin when the hand-over was opened."""
    if report is None:
        raise Broken("A finished hand-over has no report")
    arrived = report.outcome is Outcome.MOVED
    reason = "not there within the time limit" if late else f"{report.outcome}: {report.reason}"
    total = report.total_ms or 0.0
    return Word(
        arrived,
        opened_ns + int(total * NS_PER_MS),
        None if arrived else reason,
        report.transferred_bytes,
        None if report.first_byte_ms is None else total - report.first_byte_ms,
        report.downtime_ms,
        report.rounds,
        {
            "first_byte_ms": report.first_byte_ms,
            "commit_ms": report.commit_ms,
            "their_guest_gap_ms": report.guest_gap.largest_ms if report.guest_gap else None,
            "timeline_ms": report.timeline_ms,
        },
    )


def our_movers(lab: Lab) -> list[OurMover]:
    """Return ours by default, in the clear, with post-copy allowed, with the write throttle, and with each policy."""
    gap = {"max_gap_ms": GOAL_GAP_MS}
    return [
        OurMover(lab, "vmferry", gap),
        OurMover(lab, "vmferry unencrypted", {**gap, "plain": True}),
        OurMover(lab, "vmferry post-copy", {**gap, "postcopy": True}, postcopy=True),
        OurMover(lab, "vmferry post-copy unencrypted", {**gap, "postcopy": True, "plain": True}, postcopy=True),
        ThrottledMover(lab, "vmferry 40-writes", {**gap, "throttle": "40-writes"}),
        *(_with_policy(lab, kind, gap) for name, kind in POLICIES.items() if name != DEFAULT),
    ]


def _with_policy(lab: Lab, kind: type[Policy], gap: Mapping[str, object]) -> OurMover:
    """Return a mover by another manager's policy: in the clear as that one sends, its own idea of the goal."""
    name = kind.description.name
    risks = "postcopy" in name
    options = {"policy": name, "plain": True, "postcopy": risks, **(gap if kind.heeds_goal else {})}
    return OurMover(lab, f"policy {name}", options, postcopy=risks)
