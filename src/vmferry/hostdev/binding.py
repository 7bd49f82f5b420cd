"""Which driver has a device: from the host's to VFIO and back.

`driver_override` names the only driver that may have a device, and `drivers_probe` lets the kernel look; `new_id` would
take other devices too. The kernel's answer says little: what counts is which driver has it afterwards.

Source: Linux Documentation/ABI/testing/sysfs-bus-pci, drivers/pci/pci-driver.c.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from vmferry.core.errors import Broken, NotFound, Refused
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import VFIO, PciDevice
from vmferry.hostdev.inventory import DEVICES, Known, read_inventory
from vmferry.hostdev.sysfs import Sysfs

_PROBE = "bus/pci/drivers_probe"


def bind(sysfs: Sysfs, address: PciAddress, driver: str = VFIO, holders: Mapping[str, str] | None = None) -> None:
    """Give a device to a driver; whichever has it lets go first. Idempotent.

    On failure the device is as before: the driver that had it has it again, and so is its override.

    Args:
        sysfs: the kernel's files.
        address: of the device.
        driver: by its name.
        holders: which program has what of VFIO (`uses.holders`).

    Raises:
        NotFound: there is no such device.
        Refused: a program has it: its driver would wait for that program.
        Broken: the driver does not take it, in the kernel's words, or is not loaded.
    """
    device = _find(sysfs, address, holders)
    _check_free(device)
    if device.driver == driver and device.override == driver:
        return
    try:
        _move(sysfs, address, driver, device.driver)
        _check(sysfs, address, driver)
    except (Broken, OSError) as error:
        _put_back(sysfs, device)
        raise _failed(sysfs, address, driver, error) from error


def give_back(sysfs: Sysfs, address: PciAddress, holders: Mapping[str, str] | None = None) -> str | None:
    """Let the host's own driver have a device, and return which has it then. Idempotent.

    None: no driver took it: the host has none for it, or its drivers take no virtual functions by themselves
    (`sriov_drivers_autoprobe`), or its driver refused, which dmesg tells.

    Args:
        sysfs: the kernel's files.
        address: of the device.
        holders: which program has what of VFIO.

    Raises:
        NotFound: there is no such device.
        Refused: a program has it.
        Broken: the kernel does not do it; the device is as before.
    """
    device = _find(sysfs, address, holders)
    if device.override is None and device.driver not in {None, VFIO}:
        return device.driver
    _check_free(device)
    try:
        if device.is_kept:
            _move(sysfs, address, None, device.driver)
        else:  # it has its own driver, by name
            sysfs.write(f"{DEVICES}/{address}/driver_override", "\n")
    except OSError as error:
        _put_back(sysfs, device)
        raise _failed(sysfs, address, "the host's driver", error) from error
    return sysfs.link(f"{DEVICES}/{address}/driver")


def _check_free(device: PciDevice) -> None:
    if device.user is not None:
        raise Refused(f"PCI device {device.address} belongs to {device.user}", fix="take it from there first")


def _find(sysfs: Sysfs, address: PciAddress, holders: Mapping[str, str] | None) -> PciDevice:
    device = read_inventory(sysfs, Known(holders=holders or {})).devices.get(address)
    if device is None:
        raise NotFound(f"There is no PCI device {address} on this host", fix="see `vmferry pci list`")
    return device


def _move(sysfs: Sysfs, address: PciAddress, driver: str | None, before: str | None) -> None:
    """Set the override, have the driver let go, and let the kernel look; None: its own choice."""
    here = f"{DEVICES}/{address}"
    sysfs.write(f"{here}/driver_override", f"{driver or ''}\n")
    if before is not None and before != driver:
        sysfs.write(f"{here}/driver/unbind", str(address))
    sysfs.write(_PROBE, str(address))


def _check(sysfs: Sysfs, address: PciAddress, driver: str) -> None:
    has = sysfs.link(f"{DEVICES}/{address}/driver")
    if has != driver:
        raise Broken(f"its driver is {has or 'none'}")


def _put_back(sysfs: Sysfs, device: PciDevice) -> None:
    """Do as much as the kernel lets; who has the device in the end is told by the error."""
    here = f"{DEVICES}/{device.address}"
    has = sysfs.link(f"{here}/driver")
    steps = [(f"{here}/driver_override", f"{device.override or ''}\n")]
    if has != device.driver:
        if device.driver is not None:  # by name: the kernel may not look for one by itself (virtual functions)
            steps = [(f"{here}/driver_override", f"{device.driver}\n"), (_PROBE, str(device.address)), *steps]
        if has is not None:
            steps = [(f"{here}/driver/unbind", str(device.address)), *steps]
    for path, text in steps:
        with contextlib.suppress(OSError):
            sysfs.write(path, text)


def _failed(sysfs: Sysfs, address: PciAddress, driver: str, error: Exception) -> Broken:
    has = sysfs.link(f"{DEVICES}/{address}/driver")
    why = error.what if isinstance(error, Broken) else str(error)
    fix = "see `dmesg`"
    if driver == VFIO and not sysfs.names(f"bus/pci/drivers/{VFIO}"):
        fix = "`modprobe vfio-pci`"
    elif driver == VFIO and sysfs.link(f"{DEVICES}/{address}/iommu_group") is None:
        fix = "it is in no IOMMU group, without which VFIO takes no device"
    return Broken(f"PCI device {address} does not go to {driver}: {why}; {has or 'no driver'} has it now", fix=fix)
