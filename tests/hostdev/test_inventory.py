"""What is read of devices, and every reason why one cannot be given to a guest."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.hostdev.kit import BRIDGE, CARD, NVME, OLD, OLD_TOO, PORT, SATA, SOUND, VGA, at, host

from vmferry.core.pci_devices import HostNet, SriovFacts
from vmferry.hostdev import Known, Sysfs, bind, read_inventory, set_functions

ROOT_ON_SATA = Known({"8:1": "mounted at /"})


def codes(root: Path, address: str, *, iommu: bool = True) -> list[str]:
    """Return the codes of why a device cannot be given away."""
    found = read_inventory(host(root, iommu=iommu), ROOT_ON_SATA)
    return [blocker.code for blocker in found.why_not(found.devices[at(address)])]


def test_a_card_is_read_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    """Numbers, driver, group, what is above it, its interface, and the functions it makes."""
    kernel = host(tmp_path)
    set_functions(kernel, at(CARD), 2)
    found = read_inventory(kernel, Known(name_of=lambda vendor, device: f"maker {vendor:x} model {device:x}"))
    card = found.devices[at(CARD)]
    assert (card.ids, card.kind, card.driver, card.iommu_group) == ("8086:10c9", "Ethernet controller", "igb", 11)
    assert card.name == "maker 8086 model 10c9"
    assert card.above == (at(PORT),)
    assert card.nets == (HostNet("ens1", is_up=False),)
    functions = (at("0000:01:10.0"), at("0000:01:10.2"))
    assert card.sriov == SriovFacts(7, 2, autoprobe=False, functions=functions)
    assert [found.devices[one].physical for one in functions] == [at(CARD)] * 2
    assert [found.devices[one].driver for one in functions] == [None, None]
    assert len({found.devices[one].iommu_group for one in functions}) == 2


def test_conventional_devices_are_told_from_express(tmp_path: Path) -> None:
    """By the size of what they let one configure."""
    found = read_inventory(host(tmp_path)).devices
    assert [str(one.address) for one in found.values() if not one.is_express] == [OLD, OLD_TOO]


def test_disks_and_what_they_are_used_for(tmp_path: Path) -> None:
    """A mounted part, and a part that something else is made of."""
    found = read_inventory(host(tmp_path), ROOT_ON_SATA).devices
    assert (found[at(SATA)].disks, found[at(SATA)].disks_in_use) == (("sda",), {"sda": "mounted at /"})
    assert found[at(NVME)].disks_in_use == {"nvme0n1": "part of dm-0"}
    assert found[at(CARD)].disks == ()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (CARD, []),
        (SOUND, []),
        (PORT, ["pci.bridge"]),
        (BRIDGE, ["pci.bridge"]),
        (VGA, ["pci.boot-vga", "pci.no-reset"]),
        (SATA, ["pci.group-shared", "pci.disk-in-use"]),
        (NVME, ["pci.disk-in-use"]),
        (OLD, ["pci.conventional"]),
    ],
)
def test_why_a_device_cannot_be_given_away(tmp_path: Path, address: str, expected: list[str]) -> None:
    """All reasons at once."""
    assert codes(tmp_path, address) == expected


def test_without_an_iommu_nothing_can(tmp_path: Path) -> None:
    """And that is said of each, beside its other reasons."""
    assert codes(tmp_path, CARD, iommu=False) == ["pci.no-iommu"]
    assert codes(tmp_path / "again", VGA, iommu=False) == ["pci.no-iommu", "pci.boot-vga", "pci.no-reset"]


def test_the_reasons_name_who_is_in_the_way(tmp_path: Path) -> None:
    """The others of the group with their drivers, and what to do."""
    found = read_inventory(host(tmp_path))
    (shared,) = found.why_not(found.devices[at(SATA)])
    assert shared.what == "0000:00:1f.2 is in IOMMU group 5 with 0000:00:1f.3 (i801_smbus), which the host uses"
    (old,) = found.why_not(found.devices[at(OLD)])
    assert "conventional PCI behind bridge 0000:04:00.0" in old.what
    assert f"with {OLD_TOO} (snd_ens1370)" in old.what


def test_the_only_disks_of_a_host_stay_with_it(tmp_path: Path) -> None:
    """Also when nothing of them is in use: nobody could say later where they went."""
    kernel = host(tmp_path)
    kernel.vanish(NVME)
    (tmp_path / "block/nvme0n1").unlink()
    found = read_inventory(kernel)
    assert [one.code for one in found.why_not(found.devices[at(SATA)])] == ["pci.group-shared", "pci.only-disks"]


def test_a_group_whose_others_are_detached_is_free(tmp_path: Path) -> None:
    """VFIO has them, or nobody; bridges stay where they are."""
    kernel = host(tmp_path)
    bind(kernel, at(OLD_TOO))
    found = read_inventory(kernel)
    assert found.why_not(found.devices[at(OLD)]) == ()
    assert [one.address for one in found.companions(found.devices[at(OLD)])] == [at(OLD_TOO)]


@pytest.mark.parametrize(
    ("up", "master", "expected"),
    [(True, None, "`ip link set ens9 down`, if nobody needs it"), (False, "br0", "`ip link set ens9 nomaster`")],
)
def test_an_interface_that_the_host_uses(tmp_path: Path, *, up: bool, master: str | None, expected: str) -> None:
    """It is up, or part of a bridge."""
    kernel = host(tmp_path)
    kernel.add_net(NVME, "ens9", up=up, master=master)
    found = read_inventory(kernel)
    assert [one.fix for one in found.why_not(found.devices[at(NVME)]) if one.code == "pci.net-in-use"] == [expected]


def test_a_card_with_functions_is_not_given_away_and_may_be_up(tmp_path: Path) -> None:
    """They end with it; and it has to be up for them."""
    kernel = host(tmp_path)
    kernel.add_net(CARD, "ens7", up=True)
    set_functions(kernel, at(CARD), 1)
    found = read_inventory(kernel)
    assert [one.code for one in found.why_not(found.devices[at(CARD)])] == ["pci.has-functions"]
    assert found.why_not(found.devices[at("0000:01:10.0")]) == ()


def test_a_device_that_vanishes_is_left_out(tmp_path: Path) -> None:
    """Between the list and the look at it."""
    kernel = host(tmp_path)
    kernel.vanish(SOUND)
    (tmp_path / "bus/pci/devices" / SOUND).symlink_to("nowhere")
    assert at(SOUND) not in read_inventory(kernel).devices


def test_a_machine_without_pci() -> None:
    """Nothing, rather than an error."""
    assert read_inventory(Sysfs(Path("/nonexistent"))).devices == {}


def test_this_machine_can_be_read() -> None:
    """Whatever it has."""
    for device in read_inventory(Sysfs()).devices.values():
        assert device.kind
