"""Whose a device is: one device to one guest, one group to one guest, and back by groups."""

from __future__ import annotations

from typing import Any

import pytest

from vmferry.core.device_claims import (
    DeviceClaim,
    attached_blocker,
    check_claims,
    find_devices,
    given_back,
    plan_claims,
)
from vmferry.core.errors import BadInput, Blocked, NotFound, Refused
from vmferry.core.guest import Acceleration, BiosBoot, FrozenGuest, GuestSpec
from vmferry.core.ids import GuestName, GuestUuid
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import HostNet, Inventory, PciDevice
from vmferry.core.units import MIB, Bytes
from vmferry.qemu.freeze import ROOT_PORTS, Drawn, freeze

WEB, DB = GuestName("web-7"), GuestName("db-1")


def at(text: str) -> PciAddress:
    """Return an address."""
    return PciAddress.parse(text)


def card(text: str, group: int | None, **more: Any) -> PciDevice:
    """Return a network card that VFIO could have."""
    fields: dict[str, Any] = {"driver": "igb", "resets": ("flr",), **more}
    return PciDevice(at(text), 0x8086, 0x10C9, 0x020000, iommu_group=group, **fields)


def claim(text: str, guest: GuestName, group: int, port: str) -> DeviceClaim:
    """Return a device that is kept for a guest."""
    return DeviceClaim(at(text), guest, group, port)


def guest_of(machine: str = "pc-q35-7.2") -> FrozenGuest:
    """Return a guest."""
    spec = GuestSpec(WEB, Bytes(64 * MIB), BiosBoot(), machine=machine)
    drawn = Drawn(GuestUuid("6f1c1a1e-0000-4000-8000-000000000001"), ())
    return freeze(spec, acceleration=Acceleration.TCG, cpu="qemu64-v1", drawn=drawn)


def test_all_of_a_group_go_together() -> None:
    """One alone is blocked by its companion, which the host uses; both at once are not."""
    both = [card("01:00.0", 11), card("01:00.1", 11)]
    found = Inventory.of(both)
    with pytest.raises(Blocked) as told:
        find_devices(found, [at("01:00.1")])
    assert [blocker.code for blocker in told.value.blockers] == ["pci.group-shared"]
    assert find_devices(found, [at("01:00.0"), at("01:00.1")]) == tuple(both)


def test_every_reason_of_every_device_is_told() -> None:
    """Of both devices, not only of the first."""
    used = card("01:00.0", 11, nets=(HostNet("ens1", is_up=True),))
    found = Inventory.of([used, card("02:00.0", None, resets=())])
    with pytest.raises(Blocked) as told:
        find_devices(found, [at("02:00.0"), at("01:00.0")])
    assert [blocker.code for blocker in told.value.blockers] == ["pci.no-group", "pci.no-reset", "pci.net-in-use"]


@pytest.mark.parametrize(
    ("addresses", "error"), [([], BadInput), (["01:00.0", "01:00.0"], BadInput), (["01:00.0", "09:00.0"], NotFound)]
)
def test_devices_that_are_none(addresses: list[str], error: type[Exception]) -> None:
    """Nothing, the same twice, and what is not there."""
    with pytest.raises(error):
        find_devices(Inventory.of([card("01:00.0", 11)]), [at(text) for text in addresses])


def test_each_device_gets_a_port_of_its_own() -> None:
    """Ports that are taken are passed over; what VFIO has already is known again."""
    held = [claim("03:00.0", WEB, 20, "rp0"), claim("04:00.0", DB, 21, "rp1")]
    devices = [card("01:00.0", 11), card("02:00.0", 12, driver="vfio-pci")]
    planned = plan_claims(guest_of(), devices, held)
    assert [(one.port, one.iommu_group, one.was_kept) for one in planned] == [("rp1", 11, False), ("rp2", 12, True)]
    assert planned[0].id == "pci_0000_01_00_0"
    check_claims(planned, held)


def test_a_guest_without_room_says_so() -> None:
    """All ports taken, or a machine that has none."""
    held = [claim(f"03:00.{number}", WEB, 20, f"rp{number}") for number in range(ROOT_PORTS)]
    with pytest.raises(Refused, match=f"0 of its {ROOT_PORTS} ports free"):
        plan_claims(guest_of(), [card("01:00.0", 11)], held)
    with pytest.raises(Refused, match="no port for devices"):
        plan_claims(guest_of("pc-i440fx-7.2"), [card("01:00.0", 11)], [])


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (claim("01:10.0", DB, 30, "rp0"), "0000:01:10.0 is kept for guest web-7"),
        (claim("01:10.0", WEB, 30, "rp1"), "0000:01:10.0 is kept for guest web-7"),
        (claim("01:10.2", DB, 30, "rp0"), "group 30 with 0000:01:10.0, which is kept for guest web-7"),
        (claim("02:00.0", WEB, 40, "rp0"), "Port rp0 of guest web-7 is kept for 0000:01:10.0"),
    ],
)
def test_nothing_has_two_owners(new: DeviceClaim, words: str) -> None:
    """A device, a group, a port."""
    with pytest.raises(Refused, match=words):
        check_claims([claim("05:00.0", DB, 50, "rp3"), new], [claim("01:10.0", WEB, 30, "rp0")])


def test_a_group_comes_back_as_a_whole() -> None:
    """As long as the guest has one of it, the others wait."""
    claims = [claim("01:00.0", WEB, 11, "rp0"), claim("01:00.1", WEB, 11, "rp1"), claim("02:00.0", WEB, 12, "rp2")]
    assert list(given_back(claims, {claims[0].id, "nic0"})) == [claims[2]]
    assert list(given_back(claims, frozenset())) == claims


def test_a_guest_with_devices_stays() -> None:
    """The reason names all of them, the fix how they are detached."""
    blocker = attached_blocker(WEB, "host-a", ("0000:01:10.0", "0000:02:00.0"))
    assert "0000:01:10.0, 0000:02:00.0 of host-a" in blocker.what
    assert blocker.fix == "`vmferry guest detach web-7 0000:01:10.0`, and the others"
