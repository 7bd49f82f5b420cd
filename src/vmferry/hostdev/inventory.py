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
#: What VFIO calls a group that it made up where there is no IOMMU: nothing keeps such a device's DMA apart.
NO_IOMMU_GROUP = "vfio-noiommu"
#: What a device's override says when there is none.
NO_OVERRIDE = "(null)"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of devices from elsewhere than /sys."""

    disk_uses: Mapping[str, str] = field(default_factory=dict)  #: what disks and their parts are for, by number ("8:1")
    #: which program has an IOMMU group by its number ("17"), or a device by the kernel's name of it ("vfio0")
    holders: Mapping[str, str] = field(default_factory=dict)
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
        resets=_resets(sysfs, here),
        nets=tuple(_net(sysfs, f"{here}/net/{name}", name) for name in sysfs.names(f"{here}/net")),
        disks=disks,
        disks_in_use=in_use or None,
        physical=address_of(sysfs.link(f"{here}/physfn")),
        sriov=_sriov(sysfs, here),
        above=_above(sysfs, here),
        user=_user(sysfs, here, group, known.holders),
        name=known.name_of(vendor, device),
    )


def _group(sysfs: Sysfs, here: str) -> int | None:
    """Return its IOMMU group; None: none, or one that VFIO made up without an IOMMU."""
    name = sysfs.link(f"{here}/iommu_group")
    if name is None or not name.isdecimal() or sysfs.read(f"{here}/iommu_group/name") == NO_IOMMU_GROUP:
        return None
    return int(name)


def _user(sysfs: Sysfs, here: str, group: int | None, holders: Mapping[str, str]) -> str | None:
    names = [sysfs.link(f"{here}/iommu_group") or ""] if group is None else [str(group)]
    names += sysfs.names(f"{here}/vfio-dev")
    return next((holders[name] for name in names if name in holders), None)


def _resets(sysfs: Sysfs, here: str) -> tuple[str, ...]:
    """Return the ways to reset it alone; kernels before 5.15 only tell whether there is one."""
    methods = tuple((sysfs.read(f"{here}/reset_method") or "").split())
    return methods or (("reset",) if sysfs.exists(f"{here}/reset") else ())


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
        if sysfs.number(f"block/{disk}/hidden") == 1:  # one of an NVMe disk's paths; the disk itself is not hidden
            continue
        for controller in _controllers(sysfs, disk):
            found[controller] = (*found.get(controller, ()), disk)
    return found


def _controllers(sysfs: Sysfs, disk: str) -> set[PciAddress]:
    """Return the devices that a disk is behind: of an NVMe disk with several ways to it, each of them."""
    parts = sysfs.parts(f"block/{disk}")
    if "nvme-subsystem" not in parts:
        return {one for one in (_nearest(parts),) if one is not None}
    subsystem = "/".join(parts[:-1])
    ways = (_nearest(sysfs.parts(f"{subsystem}/{name}")) for name in sysfs.names(subsystem))
    return {one for one in ways if one is not None}


def _nearest(parts: tuple[str, ...]) -> PciAddress | None:
    """Return the last device of a path."""
    return next((one for part in reversed(parts) if (one := address_of(part)) is not None), None)


def _use(sysfs: Sysfs, disk: str, uses: Mapping[str, str]) -> str | None:
    """Return what a disk or a part of it is used for; None: nothing."""
    for path in (f"block/{disk}", *(f"block/{disk}/{part}" for part in sysfs.names(f"block/{disk}"))):
        number = sysfs.read(f"{path}/dev")
        if number is not None and (use := uses.get(number)) is not None:
            return use
        if number is not None and (holders := sysfs.names(f"{path}/holders")):
            return f"part of {', '.join(holders)}"
        if _is_btrfs(sysfs, path.rpartition("/")[2]):
            return "part of a mounted btrfs"
    return None


def _is_btrfs(sysfs: Sysfs, name: str) -> bool:
    """Tell whether a disk, or a part of one, belongs to a btrfs that is mounted: it has no holder, and no number."""
    return any(name in sysfs.names(f"fs/btrfs/{uuid}/devices") for uuid in sysfs.names("fs/btrfs"))
