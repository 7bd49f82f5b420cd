"""What happens to a real guest when something comes in between: people, the guest itself, an agent's death."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from vmferry.api.models import HandoverView
from vmferry.core.errors import GuestBusy, VmferryError
from vmferry.core.progress import Outcome
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.lab.commands import end
from vmferry.lab.guest_plans import GuestPlan, micro_guest
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.processes import identify, is_alive
from vmferry.lab.scenarios import empty, migrate, remove, started, wait_finished, wait_state, wait_until
from vmferry.ports.hypervisor import RunState

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

#: Small enough that pre-copy lasts while a test does something meanwhile, and every test ends by widening it.
SLOW_LINK = BytesPerSecond(4 * MIB)
BUSY = GuestPlan("micro", memory_mib=64, working_set_mib=32, rate=8)


@pytest_asyncio.fixture(loop_scope="module")
async def slow_lab(lab: Lab) -> AsyncIterator[Lab]:
    """The lab with a link on which pre-copy takes long; wide and empty again afterwards."""
    assert lab.network is not None
    lab.network.limit(SLOW_LINK)
    yield lab
    lab.network.limit(None)
    await empty(lab)


def widen(lab: Lab) -> None:
    """Let the migration come to its end."""
    assert lab.network is not None
    lab.network.limit(None)


async def in_precopy(lab: Lab, plan: GuestPlan = BUSY) -> tuple[GuestRun, str]:
    """Start a guest and a hand-over to host-b; returns when memory is being sent."""
    guest = await started(lab, plan)
    handover = await migrate(lab, guest, "host-b")
    await wait_state(lab, "host-a", handover, "precopy")
    return guest, handover


async def assert_runs_whole(guest: GuestRun) -> None:
    """The guest runs where we think it does, with its memory whole."""
    assert (await guest.view()).run_state == RunState.RUNNING
    assert (await guest.oracle()).startswith("oracle clean")


def outcome(view: HandoverView) -> Outcome:
    """Return how a finished hand-over ended."""
    assert view.report is not None
    return view.report.outcome


async def test_a_cancelled_guest_runs_on_at_its_source(slow_lab: Lab) -> None:
    """Cancelling in PRECOPY ends with the guest running at the source and nothing at the destination."""
    guest, handover = await in_precopy(slow_lab)
    await slow_lab.hosts["host-a"].api.post(f"/v1/handovers/{handover}/cancel")
    assert outcome(await wait_finished(slow_lab, "host-a", handover)) == Outcome.CANCELLED
    await assert_runs_whole(guest)
    assert await guest.list_on("host-b") == []
    await remove(slow_lab, guest)


async def test_two_migrations_of_one_guest_are_one(slow_lab: Lab) -> None:
    """A second migration of a guest that is moving is refused, and the first goes on."""
    guest, handover = await in_precopy(slow_lab)
    with pytest.raises(GuestBusy):
        await migrate(slow_lab, guest, "host-b")
    widen(slow_lab)
    assert outcome(await wait_finished(slow_lab, "host-a", handover)) == Outcome.MOVED
    guest.moved_to("host-b")
    await assert_runs_whole(guest)
    await remove(slow_lab, guest)


async def test_watch_picks_up_a_migration_whose_command_was_closed(slow_lab: Lab) -> None:
    """Closing `vmferry migrate` changes nothing; `vmferry watch` shows it from its start to its end."""
    guest = await started(slow_lab, BUSY)
    process = await asyncio.create_subprocess_exec(
        *slow_lab.command("host-a", "migrate", guest.name, "host-b", "--json"),
        env=slow_lab.environment(),
        stdout=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    first = json.loads(await process.stdout.readline())
    assert first["event"] == "state"
    process.kill()
    await process.stdout.read()  # to its end: it may have more lines than a pipe holds
    await end(process)
    watching = asyncio.create_task(slow_lab.cli("host-a", "watch", guest.name, "--json"))
    widen(slow_lab)
    watched = await watching
    events = [json.loads(line) for line in watched.stdout.splitlines()]
    assert watched.exit_code == 0, watched.stderr
    assert events[0] == first
    assert (events[-1]["event"], events[-1]["outcome"]) == ("finished", "moved")
    guest.moved_to("host-b")
    await assert_runs_whole(guest)
    await remove(slow_lab, guest)


async def test_a_reboot_in_mid_migration_is_a_reboot_and_no_crash(slow_lab: Lab) -> None:
    """A guest that reboots itself while it moves arrives and works."""
    guest, handover = await in_precopy(slow_lab)
    starts = guest.console(10_000).count("vmferry-guest ready")  # the log outlives guests of the same name
    await guest.tell("reboot")

    async def booted_again() -> bool:
        return guest.console(10_000).count("vmferry-guest ready") > starts

    await wait_until(booted_again, "the reboot")
    widen(slow_lab)
    assert outcome(await wait_finished(slow_lab, "host-a", handover)) == Outcome.MOVED
    guest.moved_to("host-b")
    await guest.wait_ready()
    await assert_runs_whole(guest)
    await remove(slow_lab, guest)


async def test_a_power_off_in_mid_migration_is_told_apart_from_a_crash(slow_lab: Lab) -> None:
    """A guest that powers itself off while it moves runs nowhere, and its agent says why."""
    guest, handover = await in_precopy(slow_lab)
    await guest.tell("poweroff")

    async def is_off() -> bool:
        return (await guest.view()).run_state != RunState.RUNNING

    await wait_until(is_off, "the power-off")
    widen(slow_lab)
    view = await wait_finished(slow_lab, "host-a", handover)
    where = "host-b" if outcome(view) == Outcome.MOVED else "host-a"
    guest.moved_to(where)
    seen = await guest.view()
    assert seen.run_state != RunState.RUNNING
    assert seen.note is not None
    assert "powered off" in seen.note
    other = await guest.list_on("host-a" if where == "host-b" else "host-b")
    assert all(row.pid is None for row in other)
    await remove(slow_lab, guest)


async def test_a_pause_in_mid_migration_is_refused_or_kept(slow_lab: Lab) -> None:
    """Pausing a guest that moves is refused with GuestBusy, or it arrives paused: never lost, never running twice."""
    guest, handover = await in_precopy(slow_lab)
    paused = True
    try:
        await slow_lab.hosts["host-a"].api.post(f"/v1/guests/{guest.name}/pause")
    except GuestBusy:
        paused = False
    widen(slow_lab)
    assert outcome(await wait_finished(slow_lab, "host-a", handover)) == Outcome.MOVED
    guest.moved_to("host-b")
    assert (await guest.view()).run_state == (RunState.PAUSED if paused else RunState.RUNNING)
    await remove(slow_lab, guest)


async def test_guests_outlive_their_agent_and_are_adopted(lab: Lab) -> None:
    """Kill -9 of the agent's worker: the same QEMU runs on, the next worker knows it, and it can still move."""
    guest = await started(lab, micro_guest())
    before = await guest.view()
    assert before.pid is not None
    qemu = identify(before.pid)
    assert qemu is not None
    lab.hosts["host-a"].agent.kill_worker()
    await lab.hosts["host-a"].api.wait_answer()

    async def is_known() -> bool:
        return (await guest.view()).run_state is not None

    await wait_until(is_known, "the next worker has found its QEMU")
    after = await guest.view()
    assert (after.pid, after.run_state, after.epoch) == (before.pid, RunState.RUNNING, before.epoch)
    assert is_alive(qemu)
    assert outcome(await wait_finished(lab, "host-a", await migrate(lab, guest, "host-b"))) == Outcome.MOVED
    guest.moved_to("host-b")
    await assert_runs_whole(guest)
    await remove(lab, guest)


def available_mib() -> int:
    """Return the machine's available memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) // 1024


@pytest_asyncio.fixture(loop_scope="module")
async def small_lab() -> AsyncIterator[Lab]:
    """A lab whose host-b has 3 GiB for guests, whatever the machine has."""
    reserve = available_mib() - 3 * 1024
    if reserve < 0:
        pytest.skip("less than 3 GiB of memory available: end something, or use a larger machine")
    async with Lab(settings={"host-b": {"memory_reserve": f"{reserve}MiB"}}) as made:
        yield made


async def test_of_two_guests_racing_for_the_last_memory_one_is_refused(small_lab: Lab) -> None:
    """Two migrations that each fit, but not together: one is refused before anything moves, the other arrives."""
    plans = [replace(micro_guest(name), memory_mib=1792) for name in ("left", "right")]
    guests = [await started(small_lab, plan) for plan in plans]
    results = await asyncio.gather(*(migrated(small_lab, guest) for guest in guests))
    assert sorted(results) == [False, True]
    for guest, moved in zip(guests, results, strict=True):
        guest.moved_to("host-b" if moved else "host-a")
        await assert_runs_whole(guest)


async def migrated(lab: Lab, guest: GuestRun) -> bool:
    """Try to move a guest to host-b; tell whether it arrived."""
    try:
        view = await wait_finished(lab, "host-a", await migrate(lab, guest, "host-b"))
    except VmferryError:
        return False
    return outcome(view) == Outcome.MOVED
