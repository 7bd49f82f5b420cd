"""Ours: the agents' own migration, by default and with each policy that the project has."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from grid.cells import GOAL_GAP_MS, GUEST, Cell
from grid.figures import Word
from grid.observe import DESTINATION, NS_PER_MS, SOURCE

from movers.base import Mover
from movers.guest_files import guest_plan
from vmferry.api.models import HandoverView, MigrateOptions
from vmferry.core.errors import Broken, VmferryError
from vmferry.core.progress import Outcome, Report
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import empty

POLL_S = 0.02
#: The report waits for what the guest and the network say after the move.
REPORT_S = 30.0
#: Options of the agents' request by what the bench wants of them: the first that there is.
_POLICY, _MAX_GAP, _POSTCOPY = ("policy",), ("max_gap_ms",), ("allow_postcopy", "postcopy", "post_copy")


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

    async def boot(self, cell: Cell) -> None:
        """Run the guest on host-a."""
        await GuestRun.start(self.lab, await guest_plan(cell), SOURCE)

    async def order(self, limit_s: float) -> Word:
        """Ask host-a's agent to move the guest, and wait for the report; a late one is cancelled."""
        api = self.lab.hosts[SOURCE].api
        deadline = time.monotonic() + limit_s
        body = {"destination": DESTINATION, "options": self._options}
        answer = await api.post(f"/v1/guests/{GUEST}/migrate", body)
        opened_ns, handover = time.monotonic_ns(), str(answer["handover"])
        late = False
        while not _is_over(view := HandoverView.model_validate(await api.get(f"/v1/handovers/{handover}"))):
            now = time.monotonic()
            if now > deadline and not late:
                late = True
                with contextlib.suppress(VmferryError):  # it is past its commit: it arrives
                    await api.post(f"/v1/handovers/{handover}/cancel")
            if now > deadline + REPORT_S:
                raise Broken(
                    f"Hand-over {handover} does not end: {view}; agent: {self.lab.hosts[SOURCE].agent.tail(5)}"
                )
            await asyncio.sleep(POLL_S)
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
        await empty(self.lab)


def _is_over(view: HandoverView) -> bool:
    return view.finished and view.report is not None


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
    """Return ours by default, with post-copy allowed, and with each policy; as far as the agents have the options."""
    gap = _option(_MAX_GAP, GOAL_GAP_MS)
    allowed = _option(_POSTCOPY, True)  # noqa: FBT003  (a value of the request)
    found = [OurMover(lab, "vmferry", gap), OurMover(lab, "vmferry unencrypted", {**gap, "plain": True})]
    if allowed:
        found.append(OurMover(lab, "vmferry post-copy", {**gap, **allowed}, postcopy=True))
    for name in _policies():
        risks = "postcopy" in name
        extra = allowed if risks else {}
        found.append(OurMover(lab, f"policy {name}", {**gap, **_option(_POLICY, name), **extra}, postcopy=risks))
    return found


def _policies() -> Iterable[str]:
    """Return the names of all policies but the default one, if a request can name one."""
    if not _option(_POLICY, ""):
        return ()
    from vmferry.core.convergence import DEFAULT, POLICIES

    return tuple(name for name in POLICIES if name != DEFAULT)


def _option(names: tuple[str, ...], value: object) -> dict[str, object]:
    """Return the option as the agents know it now; nothing when they do not."""
    return {name: value for name in names[:] if name in MigrateOptions.model_fields}
