"""Reads which PCI devices there are, and what the host does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of devices from elsewhere than /sys."""

    disk_uses: Mapping[str, str] = field(default_factory=dict)  #: what disks and their parts are for, by number ("8:1")
    group_holders: Mapping[int, str] = field(default_factory=dict)  #: which program has an IOMMU group
    name_of: Callable[[int, int], str] = lambda vendor, device: ""  # noqa: ARG005 #: maker and model


def read_inventory(sysfs: Sysfs, known: Known = Known()) -> Inventory:
    """Return all PCI devices; one that vanishes meanwhile is left out."""
    disks = _disks(sysfs)
    found = (
        _device(sysfs, address, disks.get(address, ()), known)
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


def _device(sysfs: Sysfs, address: PciAddress, disks: tuple[str, ...], known: Known) -> PciDevice | None:
    here = f"{DEVICES}/{address}"
    numbers = [sysfs.number(f"{here}/{name}") for name in ("vendor", "device", "class")]
    if any(number is None for number in numbers):
        return None
    vendor, device, class_code = (number or 0 for number in numbers)
    group, node = _group(sysfs, here), sysfs.number(f"{here}/numa_node")
    override = sysfs.read(f"{here}/driver_override")
    in_use = {disk: use for disk in disks if (use := _use(sysfs, disk, known.disk_uses)) is not None}
    return PciDevice(
        address=address,
        vendor=vendor,
        device=device,
        class_code=class_code,
        driver=sysfs.link(f"{here}/driver"),
        override=None if override == NO_OVERRIDE else override,
        iommu_group=group,
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
        user=None if group is None else known.group_holders.get(group),
        name=known.name_of(vendor, device),
    )


def _group(sysfs: Sysfs, here: str) -> int | None:
    name = sysfs.link(f"{here}/iommu_group")
    return int(name) if name is not None and name.isdecimal() else None


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


def _use(sysfs: Sysfs, disk: str, uses: Mapping[str, str]) -> str | None:
    """Return what a disk or a part of it is used for; None: nothing."""
    for path in (f"block/{disk}", *(f"block/{disk}/{part}" for part in sysfs.names(f"block/{disk}"))):
        number = sysfs.read(f"{path}/dev")
        if number is not None and (use := uses.get(number)) is not None:
            return use
        if number is not None and (holders := sysfs.names(f"{path}/holders")):
            return f"part of {', '.join(holders)}"
    return None
