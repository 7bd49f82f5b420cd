"""Which driver has a device: from the host's to VFIO and back.

`driver_override` names the only driver that may have a device, and `drivers_probe` lets the kernel look; `new_id` would
take other devices too. The kernel's answer says little: what counts is which driver has it afterwards.

Source: Linux Documentation/ABI/testing/sysfs-bus-pci, drivers/pci/pci-driver.c.
"""

from __future__ import annotations

import contextlib

from vmferry.core.errors import Broken, NotFound
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import VFIO
from vmferry.hostdev.inventory import DEVICES, NO_OVERRIDE
from vmferry.hostdev.sysfs import Sysfs

_PROBE = "bus/pci/drivers_probe"


def bind(sysfs: Sysfs, address: PciAddress, driver: str = VFIO) -> None:
    """Give a device to a driver; whichever has it lets go first. Idempotent.

    On failure the device is as before: the driver that had it has it again, and so is its override.

    Raises:
        NotFound: there is no such device.
        Broken: the driver does not take it, in the kernel's words, or is not loaded.
    """
    here = _find(sysfs, address)
    before, override = sysfs.link(f"{here}/driver"), sysfs.read(f"{here}/driver_override")
    if before == driver and override == driver:
        return
    try:
        _move(sysfs, address, driver, before)
        _check(sysfs, address, driver)
    except (Broken, OSError) as error:
        told = None if override in {None, NO_OVERRIDE} else override
        _put_back(sysfs, address, told, before)
        raise _failed(sysfs, address, driver, error) from error


def give_back(sysfs: Sysfs, address: PciAddress) -> str | None:
    """Let the host's own driver have a device, and return which that is; None: the host has none for it. Idempotent.

    Raises:
        NotFound: there is no such device.
        Broken: whoever has it does not let go.
    """
    here = _find(sysfs, address)
    before = sysfs.link(f"{here}/driver")
    overridden = sysfs.read(f"{here}/driver_override") not in {None, NO_OVERRIDE}
    if not overridden and before not in {None, VFIO}:
        return before
    try:
        _move(sysfs, address, None, before)
    except OSError as error:
        raise _failed(sysfs, address, "the host's driver", error) from error
    return sysfs.link(f"{here}/driver")


def _find(sysfs: Sysfs, address: PciAddress) -> str:
    here = f"{DEVICES}/{address}"
    if sysfs.read(f"{here}/vendor") is None:
        raise NotFound(f"There is no PCI device {address} on this host", fix="see `vmferry pci list`")
    return here


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


def _put_back(sysfs: Sysfs, address: PciAddress, override: str | None, before: str | None) -> None:
    """Do as much as the kernel lets; who has the device in the end is told by the error."""
    here = f"{DEVICES}/{address}"
    has = sysfs.link(f"{here}/driver")
    steps = [(f"{here}/driver_override", f"{override or ''}\n")]
    if has != before:
        if before is not None:  # by name: the kernel may not look for one by itself (virtual functions)
            steps = [(f"{here}/driver_override", f"{before}\n"), (_PROBE, str(address)), *steps]
        if has is not None:
            steps = [(f"{here}/driver/unbind", str(address)), *steps]
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
