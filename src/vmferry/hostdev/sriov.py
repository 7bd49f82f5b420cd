"""How many virtual functions a physical one has.

The kernel takes 0 at any time, and rips functions out of guests that have them: who has one is asked first. From one
number to another it goes only by way of 0.

Source: Linux Documentation/PCI/pci-iov-howto.rst, drivers/pci/iov.c.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping

from vmferry.core.errors import BadInput, Broken, NotFound, Refused
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import Inventory, SriovFacts
from vmferry.hostdev.inventory import DEVICES, Known, read_inventory
from vmferry.hostdev.sysfs import Sysfs

_WHY: Mapping[int, str] = {
    errno.ENOENT: "its driver makes no virtual functions, or none has it",
    errno.ENOMEM: "the firmware left no room in the address space for them (pci=realloc on the kernel's command line)",
    errno.ENOSPC: "the firmware left no bus number for them (pci=assign-busses on the kernel's command line)",
}


def set_functions(
    sysfs: Sysfs, address: PciAddress, count: int, holders: Mapping[int, str] | None = None
) -> SriovFacts:
    """Have a physical function make so many virtual ones, which no driver of the host takes by itself. Idempotent.

    On failure there are as many as before; where the kernel makes not even those again, that is told.

    Args:
        sysfs: the kernel's files.
        address: of the physical function.
        count: 0: none.
        holders: which program has an IOMMU group.

    Raises:
        NotFound: there is no such device.
        BadInput: it makes none, or not so many.
        Refused: one of those there are is in use, and each of them would end.
        Broken: the kernel does not make them, in its words.
    """
    found = read_inventory(sysfs, Known(group_holders=holders or {}))
    there = _physical(found, address, count)
    if there.count == count:
        return there
    if used := [one for function in there.functions if (one := found.devices.get(function)) and one.user]:
        raise Refused(
            f"{address} has {there.count} virtual functions, all of which would end, and"
            f" {', '.join(f'{one.address} belongs to {one.user}' for one in used)}",
            fix="take it from there first",
        )
    try:
        _set(sysfs, address, there.count, count)
    except OSError as error:
        raise _failed(sysfs, address, there.count, count, error) from error
    return _physical(read_inventory(sysfs), address, count)


def _physical(found: Inventory, address: PciAddress, count: int) -> SriovFacts:
    device = found.devices.get(address)
    if device is None:
        raise NotFound(f"There is no PCI device {address} on this host", fix="see `vmferry pci list`")
    if device.sriov is None:
        of = f": it is a virtual function of {device.physical}" if device.physical is not None else ""
        raise BadInput(f"PCI device {address} makes no virtual functions{of}", fix="see `vmferry pf list`")
    if not 0 <= count <= device.sriov.total:
        raise BadInput(
            f"{address} makes 0 to {device.sriov.total} virtual functions, not {count}", fix="ask for as many"
        )
    return device.sriov


def _set(sysfs: Sysfs, address: PciAddress, there: int, count: int) -> None:
    here = f"{DEVICES}/{address}"
    sysfs.write(f"{here}/sriov_drivers_autoprobe", "0")
    if there and count:
        sysfs.write(f"{here}/sriov_numvfs", "0")
    sysfs.write(f"{here}/sriov_numvfs", str(count))


def _failed(sysfs: Sysfs, address: PciAddress, there: int, count: int, error: OSError) -> Broken:
    path = f"{DEVICES}/{address}/sriov_numvfs"
    now = sysfs.number(path)
    if now == 0 and there:
        with contextlib.suppress(OSError):
            sysfs.write(path, str(there))
        now = sysfs.number(path)
    why = _WHY.get(error.errno or 0, error.strerror or str(error))
    return Broken(
        f"{address} does not make {count} virtual functions: {why}; it has {now or 'none'} now,"
        f" and had {there or 'none'}",
        fix="see `dmesg`",
    )
