"""Why a device cannot be taken from its host or given to a guest: every reason at once. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vmferry.core.errors import Blocker
from vmferry.core.pci import PciAddress
from vmferry.libvirt.devices.facts import VFIO, PciDevice

Devices = Mapping[PciAddress, PciDevice]


def check_detach(host: str, device: PciDevice) -> Iterator[Blocker]:
    """Yield why a device cannot be taken from its host's driver.

    Args:
        host: what it is called in blockers.
        device: one of its.
    """
    where = f"{device.address} of {host}"
    if device.guest is not None:
        yield Blocker(
            "device.in-use",
            f"{where} belongs to domain {device.guest}, which runs",
            f"vmferry device unplug {host} {device.guest} {device.address}",
        )
    if device.is_bridge:
        yield Blocker("device.bridge", f"{where} is a bridge ({device.product}): devices are behind it", "take those")
    if device.iommu_group is None:
        yield Blocker(
            "device.no-iommu",
            f"{where} is in no IOMMU group, so nothing would keep it to one guest's memory",
            f"switch VT-d or AMD-Vi on in the firmware of {host}, and start an Intel host's kernel with intel_iommu=on",
        )
    if device.functions:
        yield Blocker(
            "device.has-functions",
            f"{where} has {len(device.functions)} virtual functions, which go with it",
            f"take one of them ({', '.join(map(str, device.functions))}), or"
            f" `echo 0 > {device.address.sysfs}/sriov_numvfs`",
        )


def check_plug(host: str, guest: str, device: PciDevice, devices: Devices) -> Iterator[Blocker]:
    """Yield why a running guest cannot have a device.

    Args:
        host: of both.
        guest: the domain.
        device: one of the host's.
        devices: all of them, for what is in the same IOMMU group.
    """
    yield from check_detach(host, device)
    others = [devices[address] for address in device.group if address != device.address and address in devices]
    for other in others:
        if other.guest not in {None, guest}:
            yield Blocker(
                "device.group-shared",
                f"{other.address} is in the IOMMU group {device.iommu_group} of {device.address}, and belongs to domain"
                f" {other.guest}: devices of one group never go to different guests",
                "give both to one guest, or take a device of another group",
            )
        elif other.guest is None and not other.is_bridge and other.driver not in {None, VFIO}:
            yield Blocker(
                "device.group-used",
                f"{other.address} is in the IOMMU group {device.iommu_group} of {device.address}, and {host} uses it"
                f" ({other.driver})",
                f"vmferry device detach {host} {other.address}, or take a device of another group",
            )
