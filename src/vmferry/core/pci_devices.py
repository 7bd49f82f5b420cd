"""A host's PCI devices as values, and what keeps one of them from being given to a guest. Pure.

Source: Linux Documentation/ABI/testing/sysfs-bus-pci, Documentation/driver-api/vfio.rst; PCI Code and ID Assignment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vmferry.core.errors import Blocker
from vmferry.core.pci import PciAddress

#: The driver by which a device is kept for guests.
VFIO = "vfio-pci"
#: Of bridges of PCI Express; it leaves DMA to others.
_PORT_DRIVER = "pcieport"
_STORAGE, _NETWORK, _DISPLAY, _BRIDGE = 0x01, 0x02, 0x03, 0x06
#: By base class, and by base class and subclass.
_CLASS_WORDS: Mapping[int, str] = {
    0x00: "unclassified",
    0x01: "storage controller",
    0x02: "network controller",
    0x03: "display controller",
    0x04: "multimedia controller",
    0x05: "memory controller",
    0x06: "bridge",
    0x07: "communication controller",
    0x08: "system peripheral",
    0x09: "input controller",
    0x0B: "processor",
    0x0C: "serial bus controller",
    0x0D: "wireless controller",
    0x10: "encryption controller",
    0x11: "signal processing controller",
    0x12: "accelerator",
    0x0100: "SCSI controller",
    0x0101: "IDE controller",
    0x0106: "SATA controller",
    0x0107: "SAS controller",
    0x0108: "NVMe controller",
    0x0200: "Ethernet controller",
    0x0207: "InfiniBand card",
    0x0300: "VGA controller",
    0x0302: "3D controller",
    0x0401: "audio device",
    0x0403: "audio device",
    0x0600: "host bridge",
    0x0601: "ISA bridge",
    0x0604: "PCI bridge",
    0x0C03: "USB controller",
    0x0C05: "SMBus",
}


@dataclass(frozen=True, slots=True)
class SriovFacts:
    """What a physical function offers."""

    total: int  #: virtual functions at the most
    count: int  #: as many there are now
    autoprobe: bool  #: the host's driver takes new ones by itself
    functions: tuple[PciAddress, ...] = ()  #: in the order of their numbers


@dataclass(frozen=True, slots=True)
class HostNet:
    """A network interface of the host on a device."""

    name: str
    is_up: bool
    master: str | None = None  #: the bridge, bond or team it belongs to


@dataclass(frozen=True, slots=True)
class PciDevice:
    """One function of a PCI device, as the host's kernel has it."""

    address: PciAddress
    vendor: int
    device: int
    class_code: int  #: 24 bits: base class, subclass, programming interface
    driver: str | None = None
    override: str | None = None  #: the only driver that may have it, where that was set
    iommu_group: int | None = None  #: None: nothing keeps its DMA apart
    numa_node: int | None = None  #: None: the host does not say
    is_express: bool = True
    boot_vga: bool = False  #: the firmware's own display
    resets: tuple[str, ...] = ()  #: ways to reset it alone; none: what one guest leaves in it the next one finds
    nets: tuple[HostNet, ...] = ()
    disks: tuple[str, ...] = ()  #: the host's disks behind it
    disks_in_use: Mapping[str, str] | None = None  #: of those, what each is used for
    physical: PciAddress | None = None  #: it is a virtual function of this one
    sriov: SriovFacts | None = None  #: it is a physical function
    above: tuple[PciAddress, ...] = ()  #: the bridges between it and the root, nearest first
    user: str | None = None  #: the program that has it, or its group, through VFIO
    name: str = ""  #: its maker and model, where the host has a list of them

    @property
    def kind(self) -> str:
        """Return what sort of device it is, in words."""
        exact = _CLASS_WORDS.get(self.class_code >> 8)
        return exact or _CLASS_WORDS.get(self.class_code >> 16, f"class {self.class_code:06x}")

    @property
    def is_bridge(self) -> bool:
        """Tell whether it only leads to others: it stays with the host, and is no guest's."""
        return self.class_code >> 16 == _BRIDGE

    @property
    def only_leads(self) -> bool:
        """Tell whether it may stay with the host while others of its group are a guest's."""
        return self.is_bridge and self.driver in {None, _PORT_DRIVER}

    @property
    def is_kept(self) -> bool:
        """Tell whether no driver of the host has it: none, VFIO, or a VFIO driver for such devices alone."""
        return self.driver is None or self.driver.replace("_", "-").endswith(VFIO)

    @property
    def is_with_vfio(self) -> bool:
        """Tell whether a VFIO driver has it."""
        return self.driver is not None and self.is_kept

    @property
    def is_network(self) -> bool:
        """Tell whether it is a network card."""
        return self.class_code >> 16 == _NETWORK

    @property
    def ids(self) -> str:
        """Return vendor and device as lspci -n writes them."""
        return f"{self.vendor:04x}:{self.device:04x}"


@dataclass(frozen=True, slots=True)
class Inventory:
    """All PCI devices of a host at one moment."""

    devices: Mapping[PciAddress, PciDevice]

    @classmethod
    def of(cls, devices: Iterable[PciDevice]) -> Inventory:
        """Return an inventory of these, in the order of their addresses."""
        return cls({one.address: one for one in sorted(devices, key=lambda one: one.address)})

    @property
    def has_iommu(self) -> bool:
        """Tell whether the kernel uses an IOMMU at all."""
        return any(one.iommu_group is not None for one in self.devices.values())

    def groups(self) -> dict[int, tuple[PciDevice, ...]]:
        """Return the members of each IOMMU group."""
        found: dict[int, list[PciDevice]] = {}
        for one in self.devices.values():
            if one.iommu_group is not None:
                found.setdefault(one.iommu_group, []).append(one)
        return {number: tuple(found[number]) for number in sorted(found)}

    def companions(self, device: PciDevice) -> tuple[PciDevice, ...]:
        """Return what shares its group and must go with it.

        Bridges may stay with the host, unless a driver has one that does DMA by itself (Linux, `driver_managed_dma`).
        """
        if device.iommu_group is None:
            return ()
        others = self.groups()[device.iommu_group]
        return tuple(one for one in others if one.address != device.address and not one.only_leads)

    def why_not(self, device: PciDevice, together: frozenset[PciAddress] = frozenset()) -> tuple[Blocker, ...]:
        """Return every reason why a device cannot be given to a guest as it is now, each with its fix.

        Args:
            device: one of these.
            together: what the same guest gets with it: others of its group may be among them.
        """
        return tuple(_why_not(self, device, together))


def _why_not(host: Inventory, device: PciDevice, together: frozenset[PciAddress]) -> Iterator[Blocker]:
    where = device.address
    if device.is_bridge:
        yield Blocker("pci.bridge", f"{where} is a {device.kind}, which leads to others", "give the devices behind it")
        return
    if device.user is not None:
        yield Blocker("pci.in-use", f"{where} belongs to {device.user}", "take it from there first")
    yield from _isolation(host, device, together)
    if device.boot_vga:
        yield Blocker(
            "pci.boot-vga",
            f"{where} is the display that this host's firmware started with",
            "let the firmware start with another card, or give the guest that one",
        )
    yield from _use(host, device)
    if not device.resets and device.physical is None:
        yield Blocker(
            "pci.no-reset",
            f"{where} cannot be reset by itself: a guest would find what the one before left in it",
            "give a device that has function-level reset",
        )


def _isolation(host: Inventory, device: PciDevice, together: frozenset[PciAddress]) -> Iterator[Blocker]:
    where = device.address
    if device.iommu_group is None:
        if host.has_iommu:
            yield Blocker("pci.no-group", f"{where} is in no IOMMU group", "give a device that is in one")
        else:
            fix = "switch it on in the firmware (VT-d, AMD-Vi) and in the kernel (intel_iommu=on)"
            yield Blocker("pci.no-iommu", f"{where}: no IOMMU is in use on this host", fix)
        return
    others = [one for one in host.companions(device) if one.address not in together]
    held = ", ".join(f"{one.address} ({one.driver})" for one in others if not one.is_kept)
    if not held:
        return
    shared = f"{where} is in IOMMU group {device.iommu_group} with {held}, which the host uses"
    if not device.is_express and device.above:
        behind = f": conventional PCI behind bridge {device.above[0]}, under whose name the DMA of all of them goes"
        yield Blocker("pci.conventional", shared + behind, "give the guest all of them, or use a PCI Express device")
        return
    yield Blocker("pci.group-shared", shared, "give the guest all of them at once, or put the card in another slot")


def _use(host: Inventory, device: PciDevice) -> Iterator[Blocker]:
    where = device.address
    for net in device.nets:
        if net.master is not None:
            what = f"{where} is the host's {net.name}, which belongs to {net.master}"
            yield Blocker("pci.net-in-use", what, f"`ip link set {net.name} nomaster`")
        elif net.is_up and (device.sriov is None or not device.sriov.count):
            what = f"{where} is the host's {net.name}, which is up"
            yield Blocker("pci.net-in-use", what, f"`ip link set {net.name} down`, if nobody needs it")
    if device.sriov is not None and device.sriov.count:
        count = device.sriov.count
        what = f"{where} has {count} virtual function{'s' if count > 1 else ''}, which end with it"
        yield Blocker("pci.has-functions", what, f"`vmferry vf release HOST {where}`")
    for disk, use in (device.disks_in_use or {}).items():
        yield Blocker("pci.disk-in-use", f"{where} has this host's disk {disk}, {use}", "give another controller")
    if device.disks and not device.disks_in_use and _is_only_controller(host, device):
        what = f"{where} has the only disks of this host ({', '.join(device.disks)})"
        yield Blocker("pci.only-disks", what, "give another controller")


def _is_only_controller(host: Inventory, device: PciDevice) -> bool:
    return not any(one.disks for one in host.devices.values() if one.address != device.address)
