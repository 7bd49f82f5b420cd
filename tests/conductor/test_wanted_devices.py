"""What a guest is to have of its host by its definition: it has it wherever it runs, and the host has it otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.conductor.fakes import HOST_A, HOST_B, SPEC, WatchedLink, make_pair, qemu_of
from tests.conductor.functions import (
    CARD,
    FABRIC,
    FUNCTIONS,
    NVME,
    WITH_FUNCTION,
    give_cards,
    inventory,
    plugged,
    wait_free,
    wait_has_it,
)
from tests.conductor.pair import GUEST, Host, running, wait_finished, wait_until

from vmferry.conductor import carrying, guest_devices
from vmferry.conductor.saving import GuestSaving
from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import BadInput, Blocked, Blocker, Broken, Refused
from vmferry.core.functions import NO_MAC, QUIET, FunctionSettings
from vmferry.core.guest import HostDevice, NetworkKind
from vmferry.core.handover.states import SourceState
from vmferry.core.ids import GuestName
from vmferry.core.pci_devices import Inventory
from vmferry.core.wanted_devices import Pools, WantedDevice, choose_devices
from vmferry.ports.host_devices import Carrier
from vmferry.testing.fake_hypervisor import FakeGuestProcess, FakeHypervisor
from vmferry.testing.fake_qemu import FakeQemu

OTHER = GuestName("db-1")


@pytest.fixture
async def pair(tmp_path: Path, link: WatchedLink, hurried: None) -> AsyncIterator[tuple[Host, Host]]:
    """Two hosts on fakes with two functions each; nothing runs."""
    made = make_pair(tmp_path, link)
    give_cards(made, link, 2)
    here, there = made.hosts[HOST_A], made.hosts[HOST_B]
    async with running(here, there):
        yield here, there
    assert link.doubled == []


def qemu(host: Host, link: WatchedLink) -> FakeQemu:
    """Return the guest's process on a host."""
    found = qemu_of(host, link)
    assert found is not None
    return found


async def test_there_and_back(pair: tuple[Host, Host], link: WatchedLink) -> None:
    """Each host in turn gives it one, and gets its own back; its MAC is one card's at a time (the fake looks)."""
    here, there = pair
    await here.guests.run(WITH_FUNCTION)
    await wait_has_it(here, link)
    for source, destination in ((here, there), (there, here)):
        await source.migrate(destination)
        await wait_finished(source, destination)
        await wait_has_it(destination, link)
        await wait_free(source)
        assert destination.given.degraded(GUEST) == {}
        assert destination.given.carriers(GUEST) == {"nic0": Carrier.FUNCTION}
    await here.guests.stop(GUEST)
    await wait_free(here)


async def test_two_functions_and_two_guests(pair: tuple[Host, Host], link: WatchedLink) -> None:
    """The third that is wanted is not there: its guest runs degraded, and gets it when another guest is stopped."""
    here, _ = pair
    await here.guests.run(replace(WITH_FUNCTION, nics=(FABRIC, FABRIC)))
    await wait_until(lambda: plugged(here, link) == [*FUNCTIONS[:2]], "it has both")
    await here.guests.run(replace(WITH_FUNCTION, name=OTHER, disks=()))
    await wait_until(lambda: here.given.degraded(OTHER) != {}, "it has none")
    assert "has 2 functions, 2 of them kept for guests, and none is free" in here.given.degraded(OTHER)["nic0"]
    await here.guests.stop(GUEST)
    await wait_until(lambda: here.given.degraded(OTHER) == {} and bool(here.given.of(OTHER)), "it has one")
    assert [claim.wanted for claim in here.given.of(OTHER)] == ["nic0"]


async def test_none_free_at_the_destination(pair: tuple[Host, Host], link: WatchedLink) -> None:
    """The check says so; a move that is begun all the same is refused, and the guest keeps its own all the time."""
    here, there = pair
    await here.guests.run(WITH_FUNCTION)
    await wait_has_it(here, link)
    await there.guests.run(replace(WITH_FUNCTION, name=OTHER, disks=(), nics=(FABRIC, FABRIC)))
    await wait_until(lambda: len(there.given.of(OTHER)) == 2, "the other guest has both")
    row = here.journal.guest(GUEST)
    assert row is not None
    assert [blocker.code for blocker in await there.given.why_not(row.guest)] == ["device.no-function"]
    there.networks.clear()
    assert [blocker.code for blocker in await there.given.why_not(row.guest)] == ["device.no-network"]
    there.networks["fabric"] = (CARD,)
    claim = here.given.of(GUEST)
    source = await here.migrate(there)
    await wait_finished(here, there)
    assert source.state is SourceState.ABORTED
    assert "could not prepare" in (source.reason or "")
    assert here.given.of(GUEST) == claim
    await wait_has_it(here, link)


@pytest.mark.parametrize("refuses", [True, False])
async def test_a_guest_that_does_not_let_go(
    pair: tuple[Host, Host], link: WatchedLink, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    """The move is given up and told; it has its function still, and again when it lets go long afterwards."""
    monkeypatch.setattr(guest_devices, "LET_GO_WITHIN_S", 0.05)
    here, there = pair
    await here.guests.run(WITH_FUNCTION)
    await wait_has_it(here, link)
    process = here.guests.process(GUEST)
    assert isinstance(process, FakeGuestProcess)
    process.qemu.refuses_unplug, process.qemu.obeys_unplug = refuses, False
    source = await here.migrate(there)
    await wait_finished(here, there)
    assert source.state is SourceState.ABORTED
    assert ("does not let" if refuses else "has not let") in (source.reason or "")
    await wait_has_it(here, link)
    await wait_free(there)
    process.plugs.guest_lets_go(here.given.of(GUEST)[0].id)
    process.qemu.refuses_unplug, process.qemu.obeys_unplug = False, True
    await wait_has_it(here, link)
    await here.migrate(there)
    await wait_finished(here, there)
    await wait_has_it(there, link)


async def test_a_move_that_fails_gives_it_back(pair: tuple[Host, Host], link: WatchedLink) -> None:
    """Cancelled in the first round: the source's card delivers to it again, before it has it again."""
    here, there = pair
    await here.guests.run(WITH_FUNCTION)
    await wait_has_it(here, link)
    here.hold.ask(SourceState.PRECOPY)
    source = await here.migrate(there)
    await here.hold.wait_reached(SourceState.PRECOPY)
    assert plugged(here, link) == []
    (kept,) = here.given.of(GUEST)
    assert here.devices.told[kept.address].mac == NO_MAC
    source.cancel()
    here.hold.let_go(SourceState.PRECOPY)
    await wait_finished(here, there)
    await wait_has_it(here, link)
    await wait_free(there)


async def test_it_vanishes(pair: tuple[Host, Host], link: WatchedLink) -> None:
    """Somebody makes the card's functions anew: the guest loses its own, and gets another."""
    here, _ = pair
    await here.guests.run(WITH_FUNCTION)
    await wait_has_it(here, link)
    (had,) = here.given.of(GUEST)
    here.devices.gone.add(had.address)
    here.devices.told.pop(had.address)
    process = here.guests.process(GUEST)
    assert isinstance(process, FakeGuestProcess)
    process.plugs.guest_lets_go(had.id)
    await wait_until(lambda: plugged(here, link) == [FUNCTIONS[1]], "it has the other one")


async def test_its_driver_is_missing(
    pair: tuple[Host, Host], link: WatchedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that goes on sending through its standby is told as degraded, until it is heard from its function."""
    monkeypatch.setattr(carrying, "PATIENCE_S", 0.05)
    monkeypatch.setattr(carrying, "_LOOK_LATER_S", 0.01)
    monkeypatch.setattr(carrying, "_LOOK_EVERY_S", 0.01)
    here, _ = pair
    here.standbys.carrier = Carrier.STANDBY
    await here.guests.run(WITH_FUNCTION)
    await wait_has_it(here, link)
    await wait_until(lambda: here.given.degraded(GUEST) != {}, "it is told")
    assert "no driver for the function" in here.given.degraded(GUEST)["nic0"]
    row = here.journal.guest(GUEST)
    assert row is not None
    assert ("br0", row.guest.macs[0]) in here.standbys.forgotten
    for _ in range(2):  # its driver comes, and goes again
        here.standbys.carrier = Carrier.FUNCTION
        await wait_until(lambda: here.given.degraded(GUEST) == {}, "it is heard")
        here.standbys.carrier = Carrier.STANDBY
        await wait_until(lambda: here.given.degraded(GUEST) != {}, "it is heard from its standby again")


async def test_one_that_is_silent_is_not_late(
    pair: tuple[Host, Host], link: WatchedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heard once from its standby, and once more much later: nobody knows what it used in between."""
    monkeypatch.setattr(carrying, "PATIENCE_S", 0.1)
    monkeypatch.setattr(carrying, "_LOOK_LATER_S", 0.01)
    monkeypatch.setattr(carrying, "_LOOK_EVERY_S", 0.01)
    here, _ = pair
    for _ in range(3):
        here.standbys.carrier = Carrier.STANDBY
        if not here.given.of(GUEST):
            await here.guests.run(WITH_FUNCTION)
            await wait_has_it(here, link)
        await wait_until(lambda: here.given.carriers(GUEST) == {"nic0": Carrier.STANDBY}, "it is heard")
        here.standbys.carrier = None
        await asyncio.sleep(0.25)
        assert here.given.degraded(GUEST) == {}


async def test_its_card_is_told_otherwise_by_others(
    pair: tuple[Host, Host], link: WatchedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card is told again what the guest knows its function by; where it does not take it, the guest is degraded."""
    monkeypatch.setattr(guest_devices, "_LOOK_AGAIN_S", 0.01)
    here, _ = pair
    await here.guests.run(WITH_FUNCTION)
    await wait_has_it(here, link)
    (claim,) = here.given.of(GUEST)
    right = here.devices.told[claim.address]
    here.devices.told[claim.address] = replace(right, mac="52:54:00:00:00:99")
    await wait_until(lambda: here.devices.told[claim.address] == right, "its card is told again")
    assert here.given.degraded(GUEST) == {}
    here.devices.told[claim.address] = replace(right, vlan=8)
    here.devices.fail_next = Broken("the card says no")
    await wait_until(lambda: here.given.degraded(GUEST) != {}, "the card does not take it")
    assert here.given.degraded(GUEST) == {
        "nic0": f"nic0's virtual function of fabric ({claim.address}) may get nothing: the card says no"
    }
    await wait_until(lambda: here.devices.told[claim.address] == right, "its card is told again")
    await wait_until(lambda: here.given.degraded(GUEST) == {}, "and it is not degraded any more")
    assert plugged(here, link) == [claim.address]


async def test_not_by_hand(pair: tuple[Host, Host], link: WatchedLink) -> None:
    """It is not detached by hand, its port is not given to another device, and a guest that stands still keeps it."""
    here, there = pair
    await here.guests.run(WITH_FUNCTION)
    await wait_has_it(here, link)
    (claim,) = here.given.of(GUEST)
    with pytest.raises(Refused, match="is nic0 of guest web-7, which is to have it wherever it runs"):
        await here.given.detach(GUEST, claim.address, 1)
    await here.given.attach(GUEST, [FUNCTIONS[1]])
    assert [one.port for one in here.given.of(GUEST)] == ["rp0", "rp1"]
    await here.given.detach(GUEST, FUNCTIONS[1], 1)
    await here.guests.pause(GUEST)
    with pytest.raises(BadInput, match="stands still"):
        await here.given.take_away(GUEST)
    await here.migrate(there)
    await wait_finished(here, there)
    await here.guests.resume(GUEST)
    await wait_has_it(here, link)


async def test_an_agent_is_killed_while_a_guest_waits_for_one(pair: tuple[Host, Host], link: WatchedLink) -> None:
    """The next agent gives it what the last one could not."""
    here, _ = pair
    here.devices.fail_next = Broken("the kernel says no")
    await here.guests.run(WITH_FUNCTION)
    await here.restart()
    await wait_has_it(here, link)
    await here.restart()
    await wait_until(lambda: here.given.carriers(GUEST) == {"nic0": Carrier.FUNCTION}, "the next one watches it too")


async def test_without_a_network_it_does_not_run(pair: tuple[Host, Host]) -> None:
    """What no function could ever be is told before the guest is started."""
    here, _ = pair
    there_is = replace(WITH_FUNCTION, nics=(replace(FABRIC, physical_network="storage", network=NetworkKind.NONE),))
    assert here.given.why_not_run(WITH_FUNCTION) == []
    assert here.given.why_not_run(there_is) == [
        "network card 0 is a virtual function of storage, which this host does not have (its agent.toml has fabric)"
    ]


async def test_it_is_not_saved(pair: tuple[Host, Host], link: WatchedLink, tmp_path: Path) -> None:
    """What is in a card cannot be written down: told, with what to do instead."""
    here, _ = pair
    await here.guests.run(WITH_FUNCTION)
    await wait_has_it(here, link)
    saving = GuestSaving(here.guests, cast("Any", None), cast("Any", None))
    with pytest.raises(Blocked) as told:
        await saving._saveable(GUEST)
    assert [(blocker.code, blocker.fix) for blocker in told.value.blockers] == [
        ("device.attached", "shut it down instead: as long as it runs it is to have it")
    ]


@pytest.mark.parametrize("device", ["1b36:0010", str(NVME)])
async def test_a_whole_device(pair: tuple[Host, Host], link: WatchedLink, device: str) -> None:
    """By model or address: it is taken away before the guest moves, and the other host's given; no card is told."""
    here, there = pair
    await here.guests.run(replace(SPEC, host_devices=(HostDevice(device, may_detach=True),)))
    await wait_until(lambda: plugged(here, link) == [NVME], "it has it")
    row = here.journal.guest(GUEST)
    assert row is not None
    assert await there.given.why_not(row.guest) == ()
    await here.migrate(there)
    await wait_finished(here, there)
    await wait_until(lambda: plugged(there, link) == [NVME], "it has the other one")
    await wait_free(here)
    assert here.devices.told == there.devices.told == {}
    assert there.given.carriers(GUEST) == {}
    other = replace(row.guest, spec=replace(row.guest.spec, name=OTHER))
    (blocker,) = await there.given.why_not(other)
    assert (blocker.code, "0000:03:00.0 is kept for a guest" in blocker.what) == ("device.none-free", True)


async def test_a_refused_move_does_not_end_the_waiting(pair: tuple[Host, Host], link: WatchedLink) -> None:
    """A guest that waits for a function is checked and stays; it gets one when there is one."""
    here, there = pair
    there_are = here.devices.inventory
    here.devices.inventory = inventory(0)
    await here.guests.run(WITH_FUNCTION)
    await wait_until(lambda: here.given.degraded(GUEST) != {}, "it waits")
    here.blockers = (Blocker("guest.busy", "no", "wait"),)
    here.hold.ask(SourceState.CHECKING)
    source = await here.migrate(there)
    await here.hold.wait_reached(SourceState.CHECKING)
    here.given.settle_later(GUEST)
    await wait_until(lambda: here.given.degraded(GUEST) == {}, "it is looked after while it is checked")
    here.hold.let_go(SourceState.CHECKING)
    await wait_finished(here, there)
    assert source.state is SourceState.ABORTED
    here.devices.inventory = there_are
    await wait_has_it(here, link)


async def test_a_function_that_is_not_plugged_gets_nothing(pair: tuple[Host, Host], link: WatchedLink) -> None:
    """Its card delivers to nobody what the guest's standby is to get."""
    here, _ = pair
    assert isinstance(here.hypervisor, FakeHypervisor)
    here.hypervisor.refuse_next("plug", Broken("the group is busy"))
    seen: list[str | None] = []
    told = here.devices.tell

    async def tell(claim: DeviceClaim, wanted: FunctionSettings) -> None:
        await told(claim, wanted)
        seen.append(here.devices.told[claim.address].mac)

    here.devices.tell = tell  # type: ignore[method-assign]
    await here.guests.run(WITH_FUNCTION)
    await wait_has_it(here, link)
    row = here.journal.guest(GUEST)
    assert row is not None
    assert seen == [row.guest.macs[0], NO_MAC, row.guest.macs[0]]


async def test_one_that_is_another_by_now(pair: tuple[Host, Host], link: WatchedLink) -> None:
    """A function that is not what was kept for the guest is given back, and another one taken."""
    here, _ = pair
    here.devices.fail_next = Refused("PCI device was changed meanwhile")
    await here.guests.run(WITH_FUNCTION)
    await wait_has_it(here, link)
    assert len(here.given.of(GUEST)) == 1
    assert list(here.devices.lent) == [claim.address for claim in here.given.of(GUEST)]


async def test_it_comes_back_before_its_functions_do(
    pair: tuple[Host, Host], link: WatchedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its former host has not got back yet is the guest's again when it arrives there."""
    here, there = pair
    await here.guests.run(WITH_FUNCTION)
    await wait_has_it(here, link)

    async def held(claim: DeviceClaim) -> None:
        raise Refused("a program has it")

    with monkeypatch.context() as patch:
        patch.setattr(here.devices, "give_back", held)
        await here.migrate(there)
        await wait_finished(here, there)
        await wait_has_it(there, link)
        (kept,) = here.given.of(GUEST)
        here.devices.told[kept.address] = QUIET
        row = there.journal.guest(GUEST)
        assert row is not None
        assert await here.given.why_not(row.guest) == ()
        await there.migrate(here)
        await wait_finished(here, there)
        await wait_has_it(here, link)
        assert here.given.of(GUEST) == (kept,)
    await wait_free(there)


async def test_by_hand_it_is_not_given_without_its_address(pair: tuple[Host, Host]) -> None:
    """What is kept for a card of the guest is no device for `guest attach`."""
    here, _ = pair
    assert isinstance(here.hypervisor, FakeHypervisor)
    for _ in range(3):
        here.hypervisor.refuse_next("plug", Broken("the group is busy"))
        if not here.journal.guests():
            await here.guests.run(WITH_FUNCTION)
        await wait_until(lambda: bool(here.given.of(GUEST)), "one is kept")
    with pytest.raises(Refused, match="is kept for guest web-7"):
        await here.given.attach(GUEST, [here.given.of(GUEST)[0].address])


def test_two_of_one_group_are_not_promised() -> None:
    """Only one of them could be had: the check says so beforehand."""
    found = inventory(2)
    twins = [replace(device, iommu_group=20) for device in found.devices.values() if device.physical is not None]
    pools = Pools("host-b", Inventory.of([*found.devices.values(), *twins]), {"fabric": (CARD,)})
    wanted = [WantedDevice(f"nic{n}", f"rp{n}", False, "fabric", f"52:54:00:00:00:0{n}") for n in range(2)]
    chosen, blockers = choose_devices(wanted, pools)
    assert (len(chosen), [blocker.code for blocker in blockers]) == (1, ["device.no-function"])
