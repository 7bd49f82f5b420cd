"""Reads which PCI devices there are, and what the host does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vmferry.core.errors import BadInput
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import HostNet, Inventory, PciDevice, SriovFacts
from vmferry.hostdev.sysfs import Sysfs

DEVICES = "bus/pci/devices"
_IFF_UP = 1
#: The configuration space of conventional PCI; Express has 4 KiB.
_CONVENTIONAL_CONFIG = 256
#: What a device's override says when there is none.
NO_OVERRIDE = "(null)"

#: What a disk is used for by its number ("8:1"), and the name of a device by its vendor and its own number.
DiskUses = Mapping[str, str]
NameOf = Callable[[int, int], str]


def read_inventory(sysfs: Sysfs, uses: DiskUses | None = None, name_of: NameOf | None = None) -> Inventory:
    """Return all PCI devices; one that vanishes meanwhile is left out.

    Args:
        sysfs: the kernel's files.
        uses: what disks and their parts are used for, by their numbers.
        name_of: maker and model.
    """
    disks = _disks(sysfs)
    found = (
        _device(sysfs, address, disks.get(address, ()), uses or {}, name_of)
        for address in map(address_of, sysfs.names(DEVICES))
        if address is not None
    )
    return Inventory.of(one for one in found if one is not None)


def address_of(name: str | None) -> PciAddress | None:
    """Return the address that a directory or a link is named after; None: it is named after none."""
    try:
        return None if name is None else PciAddress.parse(name)
    except BadInput:
        return None


def _device(
    sysfs: Sysfs, address: PciAddress, disks: tuple[str, ...], uses: DiskUses, name_of: NameOf | None
) -> PciDevice | None:
    here = f"{DEVICES}/{address}"
    numbers = [sysfs.number(f"{here}/{name}") for name in ("vendor", "device", "class")]
    if any(number is None for number in numbers):
        return None
    vendor, device, class_code = (number or 0 for number in numbers)
    group, node = sysfs.link(f"{here}/iommu_group"), sysfs.number(f"{here}/numa_node")
    override = sysfs.read(f"{here}/driver_override")
    in_use = {disk: use for disk in disks if (use := _use(sysfs, disk, uses)) is not None}
    return PciDevice(
        address=address,
        vendor=vendor,
        device=device,
        class_code=class_code,
        driver=sysfs.link(f"{here}/driver"),
        override=None if override == NO_OVERRIDE else override,
        iommu_group=None if group is None else int(group),
        numa_node=None if node is None or node < 0 else node,
        is_express=sysfs.size(f"{here}/config") > _CONVENTIONAL_CONFIG,
        boot_vga=sysfs.number(f"{here}/boot_vga") == 1,
        resets=tuple((sysfs.read(f"{here}/reset_method") or "").split()),
        nets=tuple(_net(sysfs, f"{here}/net/{name}", name) for name in sysfs.names(f"{here}/net")),
        disks=disks,
        disks_in_use=in_use or None,
        physical=address_of(sysfs.link(f"{here}/physfn")),
        sriov=_sriov(sysfs, here),
        above=_above(sysfs, here),
        name=name_of(vendor, device) if name_of is not None else "",
    )


def _net(sysfs: Sysfs, path: str, name: str) -> HostNet:
    return HostNet(name, bool((sysfs.number(f"{path}/flags") or 0) & _IFF_UP), sysfs.link(f"{path}/master"))


def _sriov(sysfs: Sysfs, here: str) -> SriovFacts | None:
    total = sysfs.number(f"{here}/sriov_totalvfs")
    if not total:
        return None
    count = sysfs.number(f"{here}/sriov_numvfs") or 0
    links = (address_of(sysfs.link(f"{here}/virtfn{number}")) for number in range(count))
    autoprobe = sysfs.number(f"{here}/sriov_drivers_autoprobe") != 0
    return SriovFacts(total, count, autoprobe, tuple(one for one in links if one is not None))


def _above(sysfs: Sysfs, here: str) -> tuple[PciAddress, ...]:
    chain = [address_of(part) for part in sysfs.parts(here)[:-1]]
    return tuple(one for one in reversed(chain) if one is not None)


def _disks(sysfs: Sysfs) -> dict[PciAddress, tuple[str, ...]]:
    """Return the disks behind each device: their directories lie below its own."""
    found: dict[PciAddress, tuple[str, ...]] = {}
    for disk in sysfs.names("block"):
        chain = [address_of(part) for part in sysfs.parts(f"block/{disk}")]
        nearest = next((one for one in reversed(chain) if one is not None), None)
        if nearest is not None:
            found[nearest] = (*found.get(nearest, ()), disk)
    return found


def _use(sysfs: Sysfs, disk: str, uses: DiskUses) -> str | None:
    """Return what a disk or a part of it is used for; None: nothing."""
    for path in (f"block/{disk}", *(f"block/{disk}/{part}" for part in sysfs.names(f"block/{disk}"))):
        number = sysfs.read(f"{path}/dev")
        if number is not None and (use := uses.get(number)) is not None:
            return use
        if number is not None and (holders := sysfs.names(f"{path}/holders")):
            return f"part of {', '.join(holders)}"
    return None
