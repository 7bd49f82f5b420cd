"""What is read of devices, and every reason why one cannot be given to a guest."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.hostdev.kit import BRIDGE, CARD, NVME, OLD, OLD_TOO, PORT, SATA, SOUND, VGA, at, cards, host

from vmferry.core.pci_devices import HostNet, SriovFacts
from vmferry.hostdev import Known, Sysfs, bind, read_inventory, set_functions
from vmferry.testing.fake_sysfs import FakeDevice, FakeKernel

ROOT_ON_SATA = Known({"8:1": "mounted at /"})


def codes(root: Path, address: str, *, iommu: bool = True) -> list[str]:
    """Return the codes of why a device cannot be given away."""
    found = read_inventory(host(root, iommu=iommu), ROOT_ON_SATA)
    return [blocker.code for blocker in found.why_not(found.devices[at(address)])]


def test_a_card_is_read_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    """Numbers, driver, group, what is above it, its interface, and the functions it makes."""
    kernel = host(tmp_path)
    set_functions(kernel, cards(kernel), at(CARD), 2)
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
    set_functions(kernel, cards(kernel), at(CARD), 1)
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


def test_a_disk_of_a_mounted_btrfs(tmp_path: Path) -> None:
    """Its mounts have another number, and it has no holders."""
    kernel = host(tmp_path)
    (tmp_path / "fs/btrfs/6f1c1a1e/devices/sda1").mkdir(parents=True)
    assert read_inventory(kernel).devices[at(SATA)].disks_in_use == {"sda": "part of a mounted btrfs"}


def test_a_disk_with_two_ways_to_it_is_behind_both(tmp_path: Path) -> None:
    """NVMe keeps it beside its controllers; the ways themselves are no disks."""
    kernel = host(tmp_path)
    second = "0000:03:00.1"
    kernel.add(FakeDevice(second, 0x1B36, 0x0010, 0x010802, group=8, driver="nvme"))
    kernel.add_shared_disk([NVME, second], "nvme9n1", "259:9")
    found = read_inventory(kernel, Known({"259:9": "mounted at /"})).devices
    assert found[at(second)].disks == ("nvme9n1",)
    assert found[at(NVME)].disks == ("nvme0n1", "nvme9n1")
    assert found[at(NVME)].disks_in_use == {"nvme0n1": "part of dm-0", "nvme9n1": "mounted at /"}


def test_a_device_that_was_opened_by_itself(tmp_path: Path) -> None:
    """Without its group (iommufd): by the kernel's name of it."""
    kernel = host(tmp_path)
    (tmp_path / "bus/pci/devices" / NVME / "vfio-dev/vfio0").mkdir(parents=True)
    found = read_inventory(kernel, Known(holders={"vfio0": "qemu (pid 1)"})).devices
    assert [str(one.address) for one in found.values() if one.user] == [NVME]


def test_a_group_that_vfio_made_up_keeps_nothing_apart(tmp_path: Path) -> None:
    """It is no group; who has it, has the device."""
    kernel = host(tmp_path, iommu=False)
    group = tmp_path / "kernel/iommu_groups/0"
    group.mkdir(parents=True)
    (group / "name").write_text("vfio-noiommu\n")
    (tmp_path / "bus/pci/devices" / CARD / "iommu_group").symlink_to(group)
    found = read_inventory(kernel, Known(holders={"0": "dpdk (pid 1)"}))
    assert (found.has_iommu, found.devices[at(CARD)].iommu_group) == (False, None)
    assert [one.code for one in found.why_not(found.devices[at(CARD)])] == ["pci.in-use", "pci.no-iommu"]


def test_a_bridge_whose_driver_does_dma_belongs_to_its_group(tmp_path: Path) -> None:
    """VFIO takes no group in which such a driver is; those of VFIO's own kind are in nobody's way."""
    kernel = host(tmp_path)
    kernel.add(FakeDevice("0000:00:1f.0", 0x8086, 0x2918, 0x060100, group=4, driver="lpc_ich"))
    found = read_inventory(kernel)
    (blocker,) = found.why_not(found.devices[at(SOUND)])
    assert "with 0000:00:1f.0 (lpc_ich)" in blocker.what
    kernel.add(FakeDevice("0000:03:00.1", 0x15B3, 0x101E, 0x020000, group=6, driver="mlx5_vfio_pci"))
    assert "pci.group-shared" not in codes_of(kernel, NVME)


def codes_of(kernel: FakeKernel, address: str) -> list[str]:
    """Return the codes of why a device cannot be given away."""
    found = read_inventory(kernel)
    return [blocker.code for blocker in found.why_not(found.devices[at(address)])]


def test_an_older_kernel_only_says_that_a_device_can_be_reset(tmp_path: Path) -> None:
    """Which is enough."""
    kernel = host(tmp_path)
    (tmp_path / "bus/pci/devices" / SOUND / "reset_method").unlink()
    assert codes_of(kernel, SOUND) == ["pci.no-reset"]
    (tmp_path / "bus/pci/devices" / SOUND / "reset").touch()
    assert codes_of(kernel, SOUND) == []
