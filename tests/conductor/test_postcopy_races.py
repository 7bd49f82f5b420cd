"""What may come at the wrong moment of a hand-over: late answers, late failures, words that cross."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from tests.conductor.fakes import WatchedLink
from tests.conductor.pair import GUEST, DirectPeer, Host, wait_finished, wait_until
from tests.conductor.test_postcopy import SLOW, begin, process_of

from vmferry.conductor import postcopy_source
from vmferry.conductor.postcopy_destination import PostcopyDestination
from vmferry.core.errors import TimedOut, Unreachable, VmferryError
from vmferry.core.handover.events import DestinationEvent
from vmferry.core.handover.states import DestinationState, SourceState
from vmferry.core.ids import HandoverId
from vmferry.core.migration import MigrationSample, MigrationStatus, RunState
from vmferry.ports.peer import PeerStatus
from vmferry.testing.fake_hypervisor import FakeGuestProcess

S, T = SourceState, DestinationState


async def test_source_that_fails_behind_its_last_page_never_runs(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """QEMU 10.0 lets the guest run that it had stopped by itself: we stop it before, and end what has failed."""
    here, there = hosts
    link.rounds = 10**9
    source = await begin(here, there)
    qemu = process_of(here).qemu
    assert qemu.stream is not None
    assert qemu.stream.before is RunState.PAUSED
    link.break_behind_last_page(qemu.stream)
    assert qemu.state is not RunState.RUNNING
    await wait_until(lambda: not qemu.alive, "the source's QEMU is ended")
    await wait_finished(here, there)
    rows = (
        here.journal.handover(source.request.handover, "source"),
        there.journal.handover(source.request.handover, "destination"),
    )
    assert [row and row.state for row in rows] == ["lost", "lost"]


async def test_guest_that_ran_is_never_given_back(
    hosts: tuple[Host, Host], link: WatchedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `stop` that is answered too late after a good `cont` is no refusal to start."""
    here, there = hosts
    there.hold.ask(T.STARTING)
    source = await here.migrate(there)
    await there.hold.wait_reached(T.STARTING)
    real_cont, real_stop = FakeGuestProcess.cont, FakeGuestProcess.stop

    async def stop(self: FakeGuestProcess) -> None:
        await real_stop(self)
        raise TimedOut("QEMU did not answer stop in 15 s")

    async def cont(self: FakeGuestProcess, *, seen: RunState | None = None) -> int:
        at_ns = await real_cont(self, seen=seen)
        with contextlib.suppress(VmferryError):
            await there.guests.pause(GUEST)
        return at_ns

    monkeypatch.setattr(FakeGuestProcess, "stop", stop)
    monkeypatch.setattr(FakeGuestProcess, "cont", cont)
    there.hold.let_go(T.STARTING)
    await wait_finished(here, there)
    row = there.journal.handover(source.request.handover, "destination")
    assert row is not None
    assert row.state == "running"


async def test_continue_that_is_answered_late_leads_on(
    hosts: tuple[Host, Host], link: WatchedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading of `pre-switchover` from before, and an agent that is away, do not abort what is in post-copy."""
    here, there = hosts
    link.rounds = 10**9
    monkeypatch.setattr(postcopy_source, "_CONTINUES_S", 0.05)
    sent, stale = asyncio.Event(), asyncio.Event()
    real_continue, real_query = FakeGuestProcess.migrate_continue, FakeGuestProcess.query_migration
    real_status = DirectPeer.status

    async def migrate_continue(self: FakeGuestProcess) -> None:
        await asyncio.sleep(0.2)  # QEMU's main loop is busy for longer than we wait
        await real_continue(self)
        sent.set()

    async def query_migration(self: FakeGuestProcess) -> MigrationSample:
        sample = await real_query(self)
        if sent.is_set() and not stale.is_set():
            stale.set()
            return dataclasses.replace(sample, status=MigrationStatus.PRE_SWITCHOVER)
        return sample

    async def status(self: DirectPeer, handover: HandoverId) -> PeerStatus:
        if sent.is_set():
            raise Unreachable("agent of host-b does not answer")
        return await real_status(self, handover)

    monkeypatch.setattr(FakeGuestProcess, "migrate_continue", migrate_continue)
    monkeypatch.setattr(FakeGuestProcess, "query_migration", query_migration)
    monkeypatch.setattr(DirectPeer, "status", status)
    source = await here.migrate(there, postcopy_after=1, bandwidth=SLOW)
    ways = (S.ABORTING, S.ABORTED, S.POSTCOPY_COMMITTED, S.POSTCOPY_RUNNING, S.POSTCOPY_PAUSED)
    await wait_until(lambda: source.runner.machine.state in ways, "it is decided")
    assert stale.is_set()
    assert source.runner.machine.state not in (S.ABORTING, S.ABORTED)


async def test_policy_gives_up_while_postcopy_is_only_ordered(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A cancel by the policy counts until the guest crosses."""
    here, there = hosts
    link.rounds = 10**9
    here.hold.ask(S.POSTCOPY_ORDERED)
    source = await here.migrate(there, postcopy_after=1, bandwidth=SLOW)
    await here.hold.wait_reached(S.POSTCOPY_ORDERED)
    source.steering._give_up("the deadline cannot be met")
    here.hold.let_go(S.POSTCOPY_ORDERED)
    await wait_finished(here, there)
    assert source.runner.machine.state is S.ABORTED
    assert process_of(here).qemu.state is RunState.RUNNING


async def test_last_page_right_behind_the_crossing_is_heard() -> None:
    """QEMU says `postcopy-active` and `completed` before the machine has handled the first of the two."""
    posted: list[DestinationEvent] = []
    runner: Any = SimpleNamespace(
        machine=SimpleNamespace(state=T.RECEIVING), post=lambda kind, why=None, *, only_in=None: posted.append(kind)
    )
    process: Any = SimpleNamespace(query_run_state=AsyncMock(return_value=RunState.PAUSED))
    pages = PostcopyDestination(GUEST, lambda: process, runner, ("127.0.0.1", 1))
    for status in (MigrationStatus.POSTCOPY_ACTIVE, MigrationStatus.COMPLETED):
        assert await pages.saw(process, status)
    assert posted == [DestinationEvent.POSTCOPY_LOADED, DestinationEvent.PAGES_COMPLETED]
