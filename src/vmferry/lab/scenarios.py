"""A migration to try, as one value, and the one runner for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from vmferry.api.models import GuestList, HandoverList, HandoverView
from vmferry.core.errors import Broken, TimedOut, VmferryError
from vmferry.core.progress import Outcome, Report
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.ports.hypervisor import RunState

THERE_AND_BACK = (("host-a", "host-b"), ("host-b", "host-a"))


@dataclass(frozen=True, slots=True)
class Scenario:
    """One guest and the moves it makes."""

    plan: GuestPlan
    moves: Sequence[tuple[str, str]] = THERE_AND_BACK
    options: dict[str, object] = field(default_factory=dict)  #: of the agent's migrate request


@dataclass(frozen=True, slots=True)
class Leg:
    """One move as it went."""

    report: Report
    oracle: str
    run_state_there: RunState | None
    still_at_source: bool  #: whether a QEMU of the guest still runs where it came from


async def run_scenario(lab: Lab, scenario: Scenario) -> list[Leg]:
    """Start the guest, make its moves, ask its oracle after each, and remove it."""
    guest = await started(lab, scenario.plan)
    legs = [await move(lab, guest, destination, scenario.options) for _, destination in scenario.moves]
    await remove(lab, guest)
    return legs


async def move(lab: Lab, guest: GuestRun, destination: str, options: dict[str, object] | None = None) -> Leg:
    """Move a guest and return how it went, with the oracle's word if the guest runs."""
    source = guest.host
    await wait_until(lambda: _is_free(guest, destination), f"guest {guest.name} is free for a move to {destination}")
    view = await wait_finished(lab, source, await migrate(lab, guest, destination, options))
    if view.report is not None and view.report.outcome == Outcome.MOVED:
        guest.moved_to(destination)
    return await _leg(guest, view, source)


async def started(lab: Lab, plan: GuestPlan, host: str = "host-a") -> GuestRun:
    """Start a guest and wait until its workload works."""
    guest = await GuestRun.start(lab, plan, host)
    await guest.wait_ready()
    return guest


async def migrate(lab: Lab, guest: GuestRun, destination: str, options: dict[str, object] | None = None) -> str:
    """Open a hand-over; returns its id."""
    body = {"destination": destination, "options": options or {}}
    answer = await lab.hosts[guest.host].api.post(f"/v1/guests/{guest.name}/migrate", body)
    return str(answer["handover"])


async def wait_handover(
    lab: Lab, source: str, handover: str, until: Callable[[HandoverView], bool], timeout_s: float = 120.0
) -> HandoverView:
    """Wait until the source's view of a hand-over is as asked.

    Raises:
        TimedOut: it never was; the error has the last view.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        view = HandoverView.model_validate(await lab.hosts[source].api.get(f"/v1/handovers/{handover}"))
        if until(view):
            return view
        if time.monotonic() > deadline:
            raise TimedOut(f"Hand-over {handover} is not as expected after {timeout_s:.0f} s: {view}")
        await asyncio.sleep(0.02)


async def wait_finished(lab: Lab, source: str, handover: str) -> HandoverView:
    """Wait until a hand-over is over, without asking again and again: that would take the CPU from what is measured."""
    await lab.hosts[source].api.follow(f"/v1/handovers/{handover}/watch")
    return await wait_handover(lab, source, handover, lambda view: view.finished and view.report is not None)


async def wait_over(lab: Lab, host: str, handover: str) -> None:
    """Wait until a hand-over is over at a host, with whatever it has to clean up.

    The source is done as soon as its guest runs again, or is gone; the destination hears of it at that moment.
    """
    await wait_handover(lab, host, handover, lambda view: view.finished)


async def wait_state(lab: Lab, source: str, handover: str, state: str) -> HandoverView:
    """Wait until a hand-over is in a state; fails at once when it is over instead.

    Raises:
        Broken: it ended without having been seen there.
    """
    view = await wait_handover(lab, source, handover, lambda seen: seen.state == state or seen.finished)
    if view.state != state:
        raise Broken(f"Hand-over {handover} ended in {view.state}, expected to see {state}: {view.report}")
    return view


async def wait_until(is_so: Callable[[], Awaitable[bool]], what: str, timeout_s: float = 60.0) -> None:
    """Wait until something is so.

    Raises:
        TimedOut: it never was.
    """
    deadline = time.monotonic() + timeout_s
    while not await is_so():
        if time.monotonic() > deadline:
            raise TimedOut(f"{what} is still not so after {timeout_s:.0f} s")
        await asyncio.sleep(0.02)


async def remove(lab: Lab, guest: GuestRun) -> None:
    """End a guest and forget it, when its last hand-over does not hold it any more."""
    api = lab.hosts[guest.host].api

    async def is_free() -> bool:
        return (await guest.view()).busy_with is None

    await wait_until(is_free, f"guest {guest.name} is free")
    await api.post(f"/v1/guests/{guest.name}/stop", {"force": True})
    await api.delete(f"/v1/guests/{guest.name}")


async def empty(lab: Lab) -> None:
    """End whatever runs in the lab: hand-overs are cancelled or waited for at both hosts, guests are removed."""
    for name, view in await _unfinished(lab, "source"):
        with contextlib.suppress(VmferryError):  # it is past its commit
            await lab.hosts[name].api.post(f"/v1/handovers/{view.handover}/cancel")
        await wait_over(lab, name, view.handover)
    for name, view in await _unfinished(lab, "destination"):
        await wait_over(lab, name, view.handover)
    for host in lab.hosts.values():
        for guest in GuestList.model_validate(await host.api.get("/v1/guests")).guests:
            if guest.pid is not None:
                await host.api.post(f"/v1/guests/{guest.name}/stop", {"force": True})
            with contextlib.suppress(VmferryError):  # it is only a row about a guest that left
                await host.api.delete(f"/v1/guests/{guest.name}")


async def _unfinished(lab: Lab, side: str) -> list[tuple[str, HandoverView]]:
    """Return the hand-overs that are not over at this side, with the hosts that say so."""
    found = []
    for name, host in lab.hosts.items():
        known = HandoverList.model_validate(await host.api.get("/v1/handovers"))
        found += [(name, view) for view in known.handovers if view.side == side and not view.finished]
    return found


async def _is_free(guest: GuestRun, destination: str) -> bool:
    """Tell whether nothing of an earlier hand-over holds a guest, where it runs or where it is to go."""
    over = all(view.finished for view in await guest.handovers(destination))
    return over and (await guest.view()).busy_with is None


async def _leg(guest: GuestRun, view: HandoverView, source: str) -> Leg:
    if view.report is None:
        raise Broken(f"Hand-over {view.handover} has no report")
    run_state = (await guest.view()).run_state
    oracle = await guest.oracle() if run_state == RunState.RUNNING else f"not asked: {run_state}"
    left = [seen for seen in await guest.list_on(source) if seen.pid is not None and source != guest.host]
    return Leg(view.report, oracle, run_state, bool(left))
