"""Every state of either side x every fault: how it ends, as `testing/outcomes.py` says.

The guest is to have a virtual function of its host, and has it again wherever it runs in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conductor.fakes import HOST_A, HOST_B, WatchedLink, make_pair, qemu_of
from tests.conductor.functions import WITH_FUNCTION, give_cards, wait_free, wait_has_it
from tests.conductor.pair import GUEST, Host, running, wait_finished, wait_until

from vmferry.conductor.source import Source
from vmferry.core.handover.states import FACTS, AnyState, DestinationState, Side, SourceState
from vmferry.core.migration import RunState
from vmferry.testing.outcomes import OUTCOMES, ROUTES, Blow, Expected, Fate, Fault


def cell_id(state: AnyState, fault: Fault) -> str:
    """Return the name of a cell's test."""
    side = Side.SOURCE if isinstance(state, SourceState) else Side.DESTINATION
    return f"{side}-{state}-{fault}"


CELLS = [
    pytest.param(state, fault, expected, id=cell_id(state, fault)) for (state, fault), expected in OUTCOMES.items()
]


class Scene:
    """One hand-over from host-a to host-b, and what may strike it."""

    def __init__(self, here: Host, there: Host, link: WatchedLink) -> None:
        self.here, self.there, self.link = here, there, link

    def states(self) -> tuple[object, ...]:
        """Return where both journals and all QEMUs stand."""
        rows = [(row.side, row.state) for host in (self.here, self.there) for row in host.journal.handovers()]
        return (*rows, *[(qemu.record.pid, qemu.state, qemu.alive) for qemu in self.link.processes.values()])

    async def rest(self) -> None:
        """Wait until nothing moves any more."""
        before, still = self.states(), 0
        while still < 15:
            await asyncio.sleep(0.002)
            now = self.states()
            still = still + 1 if now == before else 0
            before = now

    async def wait_undelayed(self) -> None:
        """Wait until no deadline can end anything by itself any more."""

        def waits_for_nothing() -> bool:
            open_rows = [row for host in (self.here, self.there) for row in host.handovers.unfinished()]
            states = [(SourceState if row.side == "source" else DestinationState)(row.state) for row in open_rows]
            return all(FACTS[state].deadline_ms is None for state in states)

        while True:
            await wait_until(waits_for_nothing, "no deadline is armed")
            before = self.states()
            await self.rest()
            if before == self.states() and waits_for_nothing():
                return

    async def reach(self, state: AnyState) -> Source:
        """Begin a hand-over and hold it in a state, the other side at rest."""
        self.link.keeps_device = state is SourceState.DESTINATION_LOADED
        by_way_of, blow = ROUTES.get(state, (None, None))
        if by_way_of is not None:
            self._hold(by_way_of)
        self._hold(state)
        if state is SourceState.SOURCE_COMPLETED:
            self._hold(DestinationState.RECEIVING)  # else its word comes first
        source = await self.here.migrate(self.there, copy_disks=state is SourceState.COPYING_DISKS)
        if by_way_of is not None and blow is not None:
            await self._reached(by_way_of)
            await self.rest()
            self._strike_blow(blow, source)
            self._let_go(by_way_of)
        await self._reached(state)
        if state is SourceState.SOURCE_COMPLETED:
            self._let_go(DestinationState.RECEIVING)
        await self.rest()
        return source

    def _hold(self, state: AnyState) -> None:
        self._side(state).hold.ask(state)

    def _let_go(self, state: AnyState) -> None:
        self._side(state).hold.let_go(state)

    async def _reached(self, state: AnyState) -> None:
        async with asyncio.timeout(10):
            await self._side(state).hold.wait_reached(state)

    def _side(self, state: AnyState) -> Host:
        return self.here if isinstance(state, SourceState) else self.there

    def _strike_blow(self, blow: Blow, source: Source) -> None:
        if blow is Blow.CANCEL:
            source.cancel()
        else:
            self._kill(self.here if blow is Blow.KILL_SOURCE_QEMU else self.there)

    def _kill(self, host: Host) -> None:
        qemu = qemu_of(host, self.link)
        assert qemu is not None, f"no QEMU to kill on {host.name}"
        assert qemu.alive, f"QEMU on {host.name} is dead already"
        self.link.die(qemu, "killed from outside")

    async def strike(self, state: AnyState, fault: Fault) -> None:
        """Let a fault strike, let the hold end, and heal what can be healed."""
        if fault is Fault.CUT:
            await self._cut(state)
            return
        if fault in (Fault.SOURCE_QEMU, Fault.DESTINATION_QEMU):
            self._kill(self.here if fault is Fault.SOURCE_QEMU else self.there)
            await asyncio.sleep(0.005)
            self._let_go(state)
        else:
            restarted = {Fault.SOURCE_AGENT: [self.here], Fault.DESTINATION_AGENT: [self.there]}
            hosts = restarted.get(fault, [self.here, self.there])
            for host in hosts:
                await host.stop()
            self._let_go(state)
            for host in hosts:
                host.build()
                await host.start()
        self.link.free_device()

    async def _cut(self, state: AnyState) -> None:
        self.here.pair.cut = True
        self.link.cut()
        self._let_go(state)
        await self.wait_undelayed()
        held = OUTCOMES[state, Fault.CUT].held
        assert (self.link.running() == []) is held or OUTCOMES[state, Fault.CUT].fate is Fate.LOST
        self.here.pair.cut = False
        self.link.keeps_device = False
        self.link.heal()

    async def check(self, expected: Expected) -> None:
        """Hold that journals and reality agree, and that nothing is left."""
        owner, other = (self.here, self.there) if expected.owner is Side.SOURCE else (self.there, self.here)
        row = owner.journal.guest(GUEST)
        assert row is not None, "its owner does not know the guest"
        assert row.token.owner == owner.name
        assert other.journal.guest(GUEST) is None
        alive = [(qemu.record, qemu.state) for qemu in self.link.alive()]
        if expected.fate is Fate.ONE:
            assert row.process is not None
            assert alive == [(row.process, RunState.RUNNING)]
            assert row.note is None
            await wait_has_it(owner, self.link)
        else:
            assert alive == []
            assert row.process is None
            assert row.note is not None
            await wait_free(owner)
        await wait_free(other)
        for host in (self.here, self.there):
            assert list(host.journal.reservations()) == []
            assert host.guests.busy_with(GUEST) is None
        assert self.link.doubled == []


@pytest.fixture
async def hosts(tmp_path: Path, link: WatchedLink, hurried: None) -> AsyncIterator[tuple[Host, Host]]:
    """Two hosts on fakes; the guest runs on the first, with its function."""
    pair = make_pair(tmp_path, link)
    give_cards(pair, link)
    here, there = pair.hosts[HOST_A], pair.hosts[HOST_B]
    async with running(here, there):
        await here.guests.run(WITH_FUNCTION)
        await wait_has_it(here, link)
        yield here, there
    assert link.doubled == []


@pytest.mark.parametrize(("state", "fault", "expected"), CELLS)
async def test_outcome(
    state: AnyState, fault: Fault, expected: Expected, hosts: tuple[Host, Host], link: WatchedLink
) -> None:
    """One owner, one running guest or a noted crash, and nothing left, whatever strikes wherever."""
    scene = Scene(*hosts, link)
    await scene.reach(state)
    await scene.strike(state, fault)
    await wait_finished(*hosts)
    await scene.rest()
    await scene.check(expected)


def test_table_is_complete() -> None:
    """Every state of either side meets every fault, but for QEMUs that do not live then; post-copy: test_postcopy."""
    states = [state for state in (*SourceState, *DestinationState) if not str(state).startswith("postcopy")]
    missing = {(state, fault) for state in states for fault in Fault} - set(OUTCOMES)
    killed = {Fault.SOURCE_QEMU, Fault.DESTINATION_QEMU}
    assert {fault for _, fault in missing} <= killed
    gone = {(state, blow) for state, (_, blow) in ROUTES.items()}
    for state, fault in missing:
        if fault is Fault.SOURCE_QEMU:
            over = state in {SourceState.DONE, DestinationState.RUNNING}
            assert over or (state, Blow.KILL_SOURCE_QEMU) in gone or state in {SourceState.LOST, DestinationState.LOST}
