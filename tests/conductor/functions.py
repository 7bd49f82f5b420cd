"""Two hosts whose cards are on one network, and a guest that is to have a virtual function of it."""

from __future__ import annotations

from dataclasses import replace

from tests.conductor.fakes import SPEC, qemu_of
from tests.conductor.pair import GUEST, Host, Pair, wait_until

from vmferry.core.functions import NO_MAC
from vmferry.core.guest import GuestSpec, IoPath, NetworkKind, Nic
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import HostNet, Inventory, PciDevice, SriovFacts
from vmferry.testing.fake_plugs import FakeHostDevices
from vmferry.testing.fake_qemu import FakeLink

CARD = PciAddress.parse("01:00.0")
FUNCTIONS = tuple(PciAddress.parse(f"01:10.{number}") for number in range(4))
NVME = PciAddress.parse("03:00.0")
FABRIC = Nic(IoPath.SRIOV_VF, NetworkKind.BRIDGE, bridge="br0", physical_network="fabric", vlan=7)
WITH_FUNCTION: GuestSpec = replace(SPEC, nics=(FABRIC,))


def inventory(count: int, driver: str | None = None) -> Inventory:
    """Return a card with so many functions, each in a group of its own, perhaps with a driver of VFIO."""
    functions = FUNCTIONS[:count]
    card = PciDevice(
        CARD, 0x8086, 0x10C9, 0x020000, "igb", nets=(HostNet("ens1", is_up=True),), iommu_group=10,
        sriov=SriovFacts(7, count, autoprobe=False, functions=functions),
    )  # fmt: skip
    made = [
        PciDevice(one, 0x8086, 0x10CA, 0x020000, driver, iommu_group=20 + number, physical=CARD, resets=("flr",))
        for number, one in enumerate(functions)
    ]
    disk = PciDevice(NVME, 0x1B36, 0x0010, 0x010802, "nvme", iommu_group=30, resets=("flr",), disks=("nvme0n1",))
    own = PciDevice(PciAddress.parse("00:1f.2"), 0x8086, 0x2922, 0x010601, "ahci", iommu_group=31, disks=("sda",))
    return Inventory.of([card, *made, disk, own])


def give_cards(pair: Pair, link: FakeLink, count: int = 4) -> None:
    """Give each host a card with functions on one network; before they start."""
    hosts = list(pair.hosts.values())
    for host in hosts:
        host.devices = FakeHostDevices(link, inventory(count), host.name)
        host.networks = {"fabric": (CARD,)}
        host.build()
    for host in hosts:
        host.devices.fabric = [other.devices for other in hosts]


def plugged(host: Host, link: FakeLink) -> list[PciAddress]:
    """Return which functions the guest's process on a host has."""
    qemu = qemu_of(host, link)
    return [] if qemu is None or not qemu.alive else sorted(claim.address for claim in qemu.plugged.values())


async def wait_has_it(host: Host, link: FakeLink) -> None:
    """Wait until the guest has its function on a host, and its card delivers to it alone."""
    await wait_until(lambda: len(plugged(host, link)) == 1, f"the guest has its function on {host.name}")
    guest = host.journal.guest(GUEST)
    assert guest is not None
    (address,) = plugged(host, link)
    assert host.devices.told[address].given() == {"mac": guest.guest.macs[0], "vlan": 7}


async def wait_free(host: Host) -> None:
    """Wait until a host has all its functions again, and its cards deliver nothing to them."""
    await wait_until(
        lambda: not host.journal.device_claims() and not host.devices.lent, f"{host.name} has all its functions again"
    )
    assert all(told.mac == NO_MAC and not told.vlan for told in host.devices.told.values())
