"""Devices of a host that its guests have: given, taken back, and never lost, whoever dies."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.conductor.fakes import HOST_A, SPEC, WatchedLink, make_pair
from tests.conductor.pair import GUEST, Host, running, wait_until

from vmferry.conductor import guest_devices
from vmferry.conductor.guest_devices import GuestDevices
from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import BadInput, Blocked, Broken, GuestBusy, NotFound, Refused, TimedOut, VmferryError
from vmferry.core.ids import GuestName
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import Inventory, PciDevice
from vmferry.ports.store import Journal
from vmferry.testing.fake_hypervisor import FakeGuestProcess
from vmferry.testing.fake_journal import FakeJournal
from vmferry.testing.fake_plugs import FakeHostDevices, FakePlugs, FakeStandbys

OTHER = GuestName("db-1")
VFS = [PciAddress.parse(f"01:10.{number}") for number in range(6)]
#: Two functions of one device, in one group.
TWINS = [PciAddress.parse("02:00.0"), PciAddress.parse("02:00.1")]


def inventory() -> Inventory:
    """Return six virtual functions in groups of their own, and a device with two functions in one."""
    vfs = [
        PciDevice(address, 0x8086, 0x10CA, 0x020000, iommu_group=20 + number, physical=PciAddress.parse("01:00.0"))
        for number, address in enumerate(VFS)
    ]
    twins = [PciDevice(one, 0x8086, 0x10D3, 0x020000, "e1000e", iommu_group=30, resets=("flr",)) for one in TWINS]
    return Inventory.of([*vfs, *twins])


@dataclass
class Place:
    """A host with two guests, and what lends its devices."""

    host: Host
    link: WatchedLink
    devices: FakeHostDevices
    given: GuestDevices

    def process(self, name: GuestName = GUEST) -> FakeGuestProcess:
        """Return the handle on a guest's process."""
        process = self.host.guests.process(name)
        assert isinstance(process, FakeGuestProcess)
        return process

    def plugged(self, name: GuestName = GUEST) -> list[PciAddress]:
        """Return which of its host's devices a guest has."""
        return sorted(claim.address for claim in self.process(name).qemu.plugged.values())

    def kept(self) -> list[PciAddress]:
        """Return what the journal says is kept for guests."""
        return [claim.address for claim in self.host.journal.device_claims()]

    def lent(self) -> list[PciAddress]:
        """Return which devices the host's drivers do not have."""
        return sorted(self.devices.lent)

    async def wait_free(self) -> None:
        """Wait until everything is the host's again."""
        await wait_until(lambda: not self.kept() and not self.lent(), "all devices are the host's again")


@pytest.fixture
async def place(tmp_path: Path, link: WatchedLink, hurried: None) -> AsyncIterator[Place]:
    """A host whose two guests run."""
    host = make_pair(tmp_path, link).hosts[HOST_A]
    devices = FakeHostDevices(link, inventory())
    async with running(host):
        for name in (GUEST, OTHER):
            await host.guests.run(replace(SPEC, name=name, disks=()))
        made = Place(host, link, devices, GuestDevices(host.guests, devices, {}, FakeStandbys()))
        yield made
        await made.given.close()


async def test_there_and_back(place: Place) -> None:
    """The guest has it, journal and host know; then nobody does."""
    await place.given.attach(GUEST, [VFS[0]])
    assert place.plugged() == place.kept() == place.lent() == [VFS[0]]
    assert [claim.port for claim in place.given.of(GUEST)] == ["rp0"]
    await place.given.detach(GUEST, VFS[0], 5)
    assert place.plugged() == place.kept() == place.lent() == []
    with pytest.raises(NotFound, match="has no device 0000:01:10.0 of its host; it has none"):
        await place.given.detach(GUEST, VFS[0], 5)


async def test_several_at_once_and_several_guests(place: Place) -> None:
    """Two functions each; a third guest's wish for one of them is refused, and changes nothing."""
    await place.given.attach(GUEST, VFS[:2])
    await place.given.attach(OTHER, VFS[2:4])
    for taken in (VFS[0], VFS[3]):
        with pytest.raises(Refused, match="is kept for guest"):
            await place.given.attach(OTHER, [VFS[4], taken])
    assert (place.plugged(), place.plugged(OTHER), place.kept()) == (VFS[:2], VFS[2:4], VFS[:4])
    await place.given.detach(GUEST, VFS[1], 5)
    assert (place.plugged(), place.kept()) == (VFS[:1], [VFS[0], *VFS[2:4]])


async def test_a_group_is_one_guests(place: Place) -> None:
    """Half of it is blocked; all of it goes, and comes back when the last half is let go."""
    with pytest.raises(Blocked) as told:
        await place.given.attach(GUEST, TWINS[:1])
    assert [blocker.code for blocker in told.value.blockers] == ["pci.group-shared"]
    await place.given.attach(GUEST, TWINS)
    await place.given.detach(GUEST, TWINS[0], 5)
    assert (place.plugged(), place.kept()) == (TWINS[1:], TWINS)
    with pytest.raises(Refused, match="is kept for guest web-7"):
        await place.given.attach(OTHER, TWINS[:1])
    await place.given.detach(GUEST, TWINS[1], 5)
    assert place.lent() == place.kept() == []


async def test_a_device_that_is_not_lent(place: Place) -> None:
    """The host keeps both, the one that was lent before too."""
    await place.given.attach(GUEST, [VFS[0]])
    lends, asked = place.devices.lend, []

    async def second_fails(claim: DeviceClaim, uid: int | None, together: frozenset[PciAddress]) -> None:
        asked.append(claim.address)
        if len(asked) == 2:
            raise Broken("the kernel says no")
        await lends(claim, uid, together)

    place.devices.lend = second_fails  # type: ignore[method-assign]
    with pytest.raises(Broken, match="the kernel says no"):
        await place.given.attach(GUEST, VFS[1:3])
    assert asked == VFS[1:3]
    assert place.plugged() == place.kept() == place.lent() == VFS[:1]


async def test_a_device_that_qemu_does_not_take(place: Place) -> None:
    """The first one comes back from the guest, both from VFIO."""
    plug, asked = place.process().plugs.plug, []

    async def second_fails(claim: DeviceClaim) -> None:
        asked.append(claim)
        if len(asked) == 2:
            raise Broken("vfio 0000:01:10.1: group 21 is not viable")
        await plug(claim)

    place.process().plugs.plug = second_fails  # type: ignore[method-assign]
    with pytest.raises(Broken, match="not viable"):
        await place.given.attach(GUEST, VFS[:2])
    await place.wait_free()
    assert place.plugged() == []


async def test_a_guest_that_does_not_let_go(place: Place) -> None:
    """It is told, and the guest keeps the device; when it lets go later, the host gets it by itself."""
    await place.given.attach(GUEST, [VFS[0]])
    qemu = place.process().qemu
    qemu.obeys_unplug = False
    with pytest.raises(
        TimedOut, match=r"has not let 0000:01:10.0 go in 0.05 s, and has it still; guest runs on host-a"
    ):
        await place.given.detach(GUEST, VFS[0], 0.05)
    assert place.plugged() == place.kept() == [VFS[0]]
    place.process().plugs.guest_lets_go(VFS[0].nodedev)
    await place.wait_free()
    qemu.refuses_unplug = True
    await place.given.attach(GUEST, [VFS[0]])
    with pytest.raises(Refused, match="does not let 0000:01:10.0 go"):
        await place.given.detach(GUEST, VFS[0], 5)
    assert place.plugged() == place.kept() == [VFS[0]]


async def test_a_guest_that_stands_still(place: Place) -> None:
    """It is given a device, and cannot let it go."""
    await place.host.guests.pause(GUEST)
    await place.given.attach(GUEST, [VFS[0]])
    with pytest.raises(BadInput, match="stands still"):
        await place.given.detach(GUEST, VFS[0], 5)
    assert place.plugged() == [VFS[0]]


async def test_a_guest_that_ends(place: Place) -> None:
    """Stopped by an order, or dead: its devices are the host's again, the other guest's stay."""
    await place.given.attach(OTHER, [VFS[5]])
    await place.given.attach(GUEST, VFS[:2])
    await place.host.guests.stop(GUEST)
    await wait_until(lambda: place.kept() == place.lent() == [VFS[5]], "those of the guest are free")
    with pytest.raises(BadInput, match="is not running"):
        await place.given.attach(GUEST, VFS[:2])
    place.link.die(place.process(OTHER).qemu, "killed")
    await place.wait_free()


async def test_a_device_that_is_pulled_out(place: Place) -> None:
    """The guest loses it, and nothing is kept of it."""
    await place.given.attach(GUEST, VFS[:2])
    place.devices.gone.add(VFS[0])
    place.process().plugs.guest_lets_go(VFS[0].nodedev)
    await wait_until(lambda: place.kept() == [VFS[1]], "it is forgotten")
    with pytest.raises(NotFound):
        await place.given.attach(GUEST, [VFS[0]])


async def test_a_device_that_does_not_come_back(place: Place) -> None:
    """It stays kept, so that nobody is given it, and the next look at the guest's devices tries again."""
    await place.given.attach(GUEST, [VFS[0]])
    place.devices.fail_next = Broken("the kernel says no")
    with pytest.raises(Broken):
        await place.given.detach(GUEST, VFS[0], 5)
    assert (place.plugged(), place.kept()) == ([], [VFS[0]])
    with pytest.raises(Refused):
        await place.given.attach(OTHER, [VFS[0]])
    await place.given.attach(GUEST, [VFS[0]])
    assert place.plugged() == place.kept() == [VFS[0]]


async def test_a_guest_that_is_busy(place: Place) -> None:
    """Nothing is given to a guest that moves, and nothing taken from it."""
    async with place.host.guests.operation(GUEST, "hand-over h1"):
        with pytest.raises(GuestBusy):
            await place.given.attach(GUEST, [VFS[0]])
        with pytest.raises(GuestBusy):
            await place.given.detach(GUEST, VFS[0], 5)
    assert place.kept() == place.lent() == []


async def test_half_a_group_that_was_let_go_can_be_had_again(place: Place) -> None:
    """It waited for the other half, with VFIO; the same guest takes it back."""
    await place.given.attach(GUEST, TWINS)
    await place.given.detach(GUEST, TWINS[0], 5)
    await place.given.attach(GUEST, [TWINS[0], VFS[0]])
    assert place.plugged() == [VFS[0], *TWINS]


async def test_a_failure_is_no_reason_to_take_a_device_back_later(place: Place) -> None:
    """What the guest did not get at first, and then got, stays with it."""
    await place.given.attach(GUEST, TWINS)
    await place.given.detach(GUEST, TWINS[0], 5)
    plugs = place.process().plugs
    plug = plugs.plug

    async def fails_once(claim: DeviceClaim) -> None:
        plugs.plug = plug  # type: ignore[method-assign]
        raise Broken(f"QEMU does not take {claim.address}")

    plugs.plug = fails_once  # type: ignore[method-assign]
    with pytest.raises(Broken):
        await place.given.attach(GUEST, TWINS[:1])
    await place.given.attach(GUEST, TWINS[:1])
    await place.given.attach(GUEST, [VFS[0]])
    assert place.plugged() == [VFS[0], *TWINS]


async def test_what_does_not_come_back_is_tried_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, also when the guest is gone; meanwhile its name is not free, so that nobody inherits the device."""
    monkeypatch.setattr(guest_devices, "_FIRST_PAUSE_S", 0.05)
    await place.given.attach(GUEST, [VFS[0]])
    place.devices.fail_next = Broken("the kernel says no")
    await place.host.guests.stop(GUEST)
    await asyncio.sleep(0)
    with pytest.raises(Refused, match="0000:01:10.0, not given back yet"):
        await place.host.guests.remove(GUEST)
    await place.wait_free()
    await place.host.guests.remove(GUEST)


async def test_an_order_that_waits_for_the_guest_does_not_keep_it_from_being_ended(place: Place) -> None:
    """Stop with force comes in between; the host has the device then."""
    await place.given.attach(GUEST, [VFS[0]])
    place.process().qemu.obeys_unplug = False
    waits = asyncio.create_task(place.given.detach(GUEST, VFS[0], 20))
    await wait_until(lambda: place.host.guests.busy_with(GUEST) is not None, "it waits")
    await asyncio.sleep(0.05)
    await place.host.guests.stop(GUEST)
    await waits
    await place.wait_free()


class Killed(BaseException):
    """The agent was killed."""


class Mortal:
    """Ends an agent at one of the calls by which it changes anything; a dead one changes nothing.

    Args:
        calls: before which call, or behind which when it is not whole.
    """

    def __init__(self, calls: float) -> None:
        self._left = calls
        self.is_dead = False

    def wrap(self, owner: object, *names: str) -> None:
        """Count the calls of these methods."""
        for name in names:
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def counted(*arguments: Any) -> Any:
            with self._alive():
                return await method(*arguments)

        def counted_at_once(*arguments: Any) -> Any:
            with self._alive():
                return method(*arguments)

        return counted if inspect.iscoroutinefunction(method) else counted_at_once

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        self._half()
        yield
        self._half()

    def _half(self) -> None:
        self._left -= 0.5
        self.is_dead = self.is_dead or self._left < 0
        if self.is_dead:
            raise Killed


async def test_hundreds_of_cycles_with_agents_that_are_killed(place: Place) -> None:
    """Never a device with two guests, or lost: after each death the next agent knows what is whose."""
    chance = random.Random(6)
    journal = place.host.journal
    attached = died = 0
    for _ in range(600):
        given = mortal_agent(place, journal, chance)
        try:
            for name in chance.sample([GUEST, OTHER], 2):
                attached += await there_and_back(given, name, chance)
        except Killed:
            died += 1
        await given.close()
        check(place)
        survivor = next_agent(place, journal)
        await wait_until(lambda: place.kept() == place.lent() == owned(place), "each device is somebody's")
        await survivor.close()
        if chance.random() < 0.3:
            for name in (GUEST, OTHER):
                for address in place.plugged(name):
                    await survivor.detach(name, address, 5)
            assert place.kept() == place.lent() == []
    assert attached > 100
    assert died > 100


def mortal_agent(place: Place, journal: Journal, chance: random.Random) -> GuestDevices:
    """Return an agent's part that ends at one of its next calls."""
    mortal = Mortal(chance.randrange(16) / 2)
    assert isinstance(journal, FakeJournal)
    agents_journal, agents_devices = replace(journal), replace(place.devices)
    mortal.wrap(agents_journal, "claim_devices", "release_device")
    mortal.wrap(agents_devices, "lend", "give_back")
    for name in (GUEST, OTHER):
        mortal.wrap(place.process(name).plugs, "plug", "unplug")
    place.host.guests.journal = agents_journal
    return GuestDevices(place.host.guests, agents_devices, {}, FakeStandbys())


async def there_and_back(given: GuestDevices, name: GuestName, chance: random.Random) -> bool:
    """Attach one or two devices, and detach one as a rule; tells whether the guest got them."""
    wanted = chance.sample(VFS, chance.randint(1, 2)) if chance.random() < 0.7 else TWINS
    attached = False
    with contextlib.suppress(VmferryError):  # another has it, or no port is free
        await given.attach(name, wanted)
        attached = True
        if chance.random() < 0.7:
            await given.detach(name, wanted[0], 5)
    return attached


def next_agent(place: Place, journal: Journal) -> GuestDevices:
    """Return the part of an agent that takes over, and begins."""
    place.host.guests.journal = journal
    for name in (GUEST, OTHER):
        place.process(name).plugs = FakePlugs(place.process(name).qemu, place.link, lambda _: None)
    survivor = GuestDevices(place.host.guests, place.devices, {}, FakeStandbys())
    survivor.recover()
    return survivor


def owned(place: Place) -> list[PciAddress]:
    """Return what guests have, and what waits for others of its group."""
    has = sorted([*place.plugged(GUEST), *place.plugged(OTHER)])
    return sorted({*has, *(TWINS if set(has) & set(TWINS) else ())})


def check(place: Place) -> None:
    """No device has two guests, no group has two; what a guest has is in the journal."""
    by_guest = {name: place.process(name).qemu.plugged.values() for name in (GUEST, OTHER)}
    mine, others = ({claim.iommu_group for claim in claims} for claims in by_guest.values())
    assert not mine & others
    assert set(owned(place)) <= set(place.kept())
