"""A guest's device whose state QEMU can move (VFIO migration) goes with it, into an equal one of the other host.

On fakes alone: no machine that we have makes such devices (docs/devices.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conductor.fakes import HOST_A, HOST_B, WatchedLink, make_pair, qemu_of
from tests.conductor.functions import (
    FABRIC,
    FUNCTIONS,
    WITH_FUNCTION,
    give_cards,
    inventory,
    plugged,
    wait_free,
    wait_has_it,
)
from tests.conductor.pair import GUEST, Host, running, wait_finished, wait_until

from vmferry.core.device_claims import DeviceClaim
from vmferry.core.functions import NO_MAC
from vmferry.core.handover.states import SourceState
from vmferry.core.migratable import MigratableDevice, agreed, is_blocked, kind_of, plugging_s
from vmferry.core.pci_devices import Inventory
from vmferry.core.units import GIB, Bytes
from vmferry.testing.fake_hypervisor import FakeGuestProcess

DRIVER = "mlx5_vfio_pci"
KIND = MigratableDevice("nic0", "8086:10ca", DRIVER)


@pytest.fixture
async def pair(tmp_path: Path, link: WatchedLink, hurried: None) -> AsyncIterator[tuple[Host, Host]]:
    """Two hosts on fakes whose functions have a driver that knows their state."""
    made = make_pair(tmp_path, link)
    give_cards(made, link, 2)
    here, there = made.hosts[HOST_A], made.hosts[HOST_B]
    for host in (here, there):
        host.devices.inventory = inventory(2, DRIVER)
    async with running(here, there):
        yield here, there
    assert link.doubled == []


@pytest.fixture
async def moving(pair: tuple[Host, Host], link: WatchedLink) -> tuple[Host, Host]:
    """The same, and the guest has a function of the first."""
    await pair[0].guests.run(WITH_FUNCTION)
    await wait_has_it(pair[0], link)
    return pair


async def find(source: Host, destination: Host, *, postcopy: bool = False) -> tuple[MigratableDevice, ...]:
    """Return what the checks find, and have the source's hand-overs begin with it."""
    process, row = source.guests.process(GUEST), source.journal.guest(GUEST)
    assert process is not None
    assert row is not None
    reasons = (await process.query_migration()).blocked_reasons
    has = await source.given.migratable(await source.given.plugged(GUEST), reasons)
    source.migratable = agreed(has, await destination.given.offers(row.guest), postcopy=postcopy)
    return source.migratable


async def wait_told(host: Host, link: WatchedLink) -> None:
    """Wait until the guest has a function on a host, whose card is told of it once the guest runs there."""
    await wait_until(lambda: any(told.mac != NO_MAC for told in host.devices.told.values()), "its card is told")
    await wait_has_it(host, link)


async def test_there_and_back(moving: tuple[Host, Host], link: WatchedLink) -> None:
    """The guest has it all the time; each host gives an equal one, and has its own back."""
    here, there = moving
    for source, destination in ((here, there), (there, here)):
        assert await find(source, destination) == (KIND,)
        (had,) = source.given.of(GUEST)
        source.hold.ask(SourceState.PRECOPY)
        handover = await source.migrate(destination)
        await source.hold.wait_reached(SourceState.PRECOPY)
        assert plugged(source, link) == [had.address]
        (kept,) = destination.given.of(GUEST)
        qemu = next(one for one in link.processes.values() if one.incoming and one.alive and kept.id in one.plugged)
        assert qemu.plugged[kept.id].port == had.port
        source.hold.let_go(SourceState.PRECOPY)
        await wait_finished(source, destination)
        assert handover.state is SourceState.DONE
        assert handover.marks.at("detaching") is None
        await wait_told(destination, link)
        await wait_free(source)
        assert destination.given.degraded(GUEST) == {}


async def test_a_move_that_fails(moving: tuple[Host, Host], link: WatchedLink) -> None:
    """The guest has its own still, whose card was told nothing; the other host has its own back."""
    here, there = moving
    await find(here, there)
    (had,) = here.given.of(GUEST)
    told = here.devices.told[had.address]
    here.hold.ask(SourceState.PRECOPY)
    handover = await here.migrate(there)
    await here.hold.wait_reached(SourceState.PRECOPY)
    handover.cancel()
    here.hold.let_go(SourceState.PRECOPY)
    await wait_finished(here, there)
    assert plugged(here, link) == [had.address]
    assert here.devices.told[had.address] == told
    assert here.given.of(GUEST) == (had,)
    await wait_free(there)


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_an_agent_is_killed(moving: tuple[Host, Host], link: WatchedLink, side: str) -> None:
    """While the stream runs: the guest has one, on one host, wherever it ends."""
    here, there = moving
    await find(here, there)
    here.hold.ask(SourceState.PRECOPY)
    await here.migrate(there)
    await here.hold.wait_reached(SourceState.PRECOPY)
    here.hold.let_go(SourceState.PRECOPY)
    await (here if side == "source" else there).restart()
    await wait_finished(here, there)
    where = [host for host in (here, there) if (qemu := qemu_of(host, link)) is not None and qemu.alive]
    (host,) = where
    await wait_told(host, link)
    await wait_free(there if host is here else here)


async def test_the_other_host_has_another_kind(moving: tuple[Host, Host], link: WatchedLink) -> None:
    """Then it is let go, and the guest has another one there; who asks for more all the same is refused."""
    here, there = moving
    there.devices.inventory = inventory(2, "virtio_vfio_pci")
    assert await find(here, there) == ()
    here.migratable = (KIND,)
    refused = await here.migrate(there)
    await wait_finished(here, there)
    assert refused.state is SourceState.ABORTED
    assert (
        "nic0 comes with the state of a 8086:10ca with driver mlx5_vfio_pci, and host-b has 0000:01:10.0, a"
        " 8086:10ca with virtio_vfio_pci for it" in (refused.reason or "")
    )
    await wait_has_it(here, link)
    await wait_free(there)
    here.migratable = ()
    moved = await here.migrate(there)
    await wait_finished(here, there)
    assert moved.marks.at("detaching") is not None
    await wait_has_it(there, link)


async def test_one_goes_along_and_one_does_not(pair: tuple[Host, Host], link: WatchedLink) -> None:
    """The guest lets go what cannot, and keeps the other."""
    here, there = pair
    for host in pair:
        devices = inventory(2, DRIVER).devices.values()
        plain = {FUNCTIONS[1]: "vfio-pci"}
        host.devices.inventory = Inventory.of(
            replace(one, driver=plain.get(one.address, one.driver)) for one in devices
        )
    await here.guests.run(replace(WITH_FUNCTION, nics=(FABRIC, FABRIC)))
    await wait_until(lambda: len(plugged(here, link)) == 2, "it has both")
    assert await find(here, there) == (KIND,)
    here.hold.ask(SourceState.PRECOPY)
    await here.migrate(there)
    await here.hold.wait_reached(SourceState.PRECOPY)
    assert plugged(here, link) == [FUNCTIONS[0]]
    assert here.devices.told[FUNCTIONS[1]].mac == NO_MAC
    here.hold.let_go(SourceState.PRECOPY)
    await wait_finished(here, there)
    await wait_until(lambda: len(plugged(there, link)) == 2, "it has both there")


@pytest.mark.parametrize("state", [SourceState.RESERVED, SourceState.PRECOPY])
async def test_the_guest_ejects_it(moving: tuple[Host, Host], link: WatchedLink, state: SourceState) -> None:
    """By itself, before or while pages are sent: the move is given up, and the guest is given one again."""
    here, there = moving
    await find(here, there)
    (had,) = here.given.of(GUEST)
    process = here.guests.process(GUEST)
    assert isinstance(process, FakeGuestProcess)
    here.hold.ask(state)
    handover = await here.migrate(there)
    await here.hold.wait_reached(state)
    process.plugs.guest_lets_go(had.id)
    await asyncio.sleep(0.05)  # it is told before the hand-over goes on
    here.hold.let_go(state)
    await wait_finished(here, there)
    assert handover.state is SourceState.ABORTED
    assert "has nic0 no more, which was to go along" in (handover.reason or "")
    await wait_has_it(here, link)
    await wait_free(there)


async def test_the_network_is_not_told_of_the_standby(moving: tuple[Host, Host], link: WatchedLink) -> None:
    """What comes for the guest goes to its function, where it was heard last; where it is let go, to its standby."""
    here, there = moving
    await find(here, there)
    await here.migrate(there)
    await wait_finished(here, there)
    qemu = qemu_of(there, link)
    assert qemu is not None
    assert qemu.announced == []
    await there.given.take_away(GUEST)
    assert set(qemu.announced) == {frozenset({"nic0"})}


async def test_not_beside_post_copy(moving: tuple[Host, Host]) -> None:
    """QEMU has not both: the guest lets its device go where post-copy is allowed."""
    assert await find(*moving, postcopy=True) == ()


@pytest.mark.parametrize(
    ("reasons", "blocked"),
    [
        ((), False),
        (("the guest has a 9p directory mounted",), False),
        (("0000:01:10.0: VFIO device doesn't support device dirty tracking",), True),
        (("0000:01:10.2: VFIO migration is not supported in kernel",), False),
        (("VFIO device doesn't support migration",), True),
        (("Migration is currently not supported with multiple VFIO devices",), True),
    ],
)
def test_what_qemu_says(reasons: tuple[str, ...], blocked: bool) -> None:
    """Of this device, or of all of them."""
    claim = DeviceClaim(FUNCTIONS[0], GUEST, 20, "rp0", wanted="nic0")
    assert is_blocked(claim, reasons) is blocked


def test_how_long_plugging_may_take() -> None:
    """A guest's memory is pinned meanwhile, which a large one's preparation must have the time for; others none."""
    assert plugging_s((), Bytes(100 * GIB)) == 0
    assert plugging_s((KIND,), Bytes(100 * GIB)) == 310


def test_kinds() -> None:
    """Only a driver for such devices alone knows their state; what the guest was given by hand stays out of it."""
    claim = DeviceClaim(FUNCTIONS[0], GUEST, 20, "rp0", wanted="nic0")
    devices = {driver: inventory(1, driver).devices[FUNCTIONS[0]] for driver in (DRIVER, "vfio-pci", "igbvf", None)}
    assert kind_of(claim, devices[DRIVER]) == KIND
    assert [kind_of(claim, devices[driver]) for driver in ("vfio-pci", "igbvf", None)] == [None] * 3
    assert kind_of(replace(claim, wanted=None), devices[DRIVER]) is None
    assert kind_of(claim, None) is None
