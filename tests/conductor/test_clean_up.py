"""An arrival is undone for good before it says so: also a QEMU that was just being started."""

from __future__ import annotations

import asyncio

import pytest
from tests.conductor.pair import GUEST, Host

from vmferry.core.errors import Refused
from vmferry.core.guest import FrozenGuest
from vmferry.core.handover.states import DestinationState
from vmferry.core.ids import HandoverId
from vmferry.core.units import Milliseconds
from vmferry.ports.hypervisor import HostResources, MigrationSetup
from vmferry.ports.peer import ReserveRequest
from vmferry.testing.fake_hypervisor import FakeGuestProcess, FakeHypervisor


async def test_a_qemu_that_is_being_started_is_ended_first(
    hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What starts one may have to wait for it before it can end it: until then nothing is called discarded."""
    here, there = hosts
    hypervisor = there.hypervisor
    assert isinstance(hypervisor, FakeHypervisor)
    start, spawned, goes_on = hypervisor.start, asyncio.Event(), asyncio.Event()

    async def slow(guest: FrozenGuest, resources: HostResources, *, incoming: bool) -> FakeGuestProcess:
        process = await start(guest, resources, incoming=incoming)
        try:
            spawned.set()
            await asyncio.Event().wait()
        finally:  # as a thread that cannot be stopped
            await goes_on.wait()
            await process.kill()
        return process

    monkeypatch.setattr(hypervisor, "start", slow)
    row = here.guests.row(GUEST)
    setup = MigrationSetup({}, None, Milliseconds(100.0))
    request = ReserveRequest(HandoverId("h1"), row.guest, row.token.epoch, True, here.name, setup)
    reserving = asyncio.create_task(there.handovers.arrivals.reserve(request))
    await spawned.wait()
    known = there.handovers.arrivals._destinations[HandoverId("h1")]
    there.handovers.arrivals.discard(HandoverId("h1"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await known.runner.wait_left(frozenset({DestinationState.PREPARING, DestinationState.DISCARDING}))
    goes_on.set()
    with pytest.raises(Refused):
        await reserving
    await known.runner.wait_left(frozenset({DestinationState.DISCARDING}))
    assert known.state is DestinationState.DISCARDED
    assert not [
        one for one in hypervisor.link.processes.values() if one.alive and one.record.boot_id == hypervisor.boot_id
    ]
