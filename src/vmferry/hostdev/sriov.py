"""How many virtual functions a physical one has.

The kernel takes 0 at any time, and rips functions out of guests that have them: who has one is asked first. From one
number to another it goes only by way of 0, and a write that it takes may do nothing: what counts is how many there are
afterwards.

Source: Linux Documentation/PCI/pci-iov-howto.rst, drivers/pci/iov.c.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator, Mapping

from vmferry.core.errors import BadInput, Broken, NotFound, Refused, VmferryError
from vmferry.core.functions import FunctionSettings
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import Inventory, PciDevice, SriovFacts
from vmferry.hostdev.inventory import DEVICES, Known, read_inventory
from vmferry.hostdev.netlink import Cards
from vmferry.hostdev.settings import read_settings, set_function
from vmferry.hostdev.sysfs import Sysfs

_WHY: Mapping[int, str] = {
    errno.ENOENT: "its driver makes no virtual functions, or none has it",
    errno.ENOMEM: "the firmware left no room for them, in the address space (pci=realloc on the kernel's command line)"
    " or among the bus numbers (pci=assign-busses)",
}
_DMESG = "see `dmesg`"
#: A driver that begins anew has its link after some 3 s (igb).
_LINK_WITHIN_S = 15.0
_LOOK_EVERY_S = 0.1


def set_functions(
    sysfs: Sysfs, cards: Cards, address: PciAddress, count: int, holders: Mapping[str, str] | None = None
) -> SriovFacts:
    """Have a physical function make so many virtual ones; nothing is touched when there are as many.

    New ones have no driver, and the host's take none by themselves. Those that stay begin anew too, as the kernel does
    it; their card is told again what it was told of them.

    On failure there are as many as before, told the same; where the kernel makes not even those again, that is told.

    Args:
        sysfs: the kernel's files.
        cards: its network side.
        address: of the physical function.
        count: 0: none.
        holders: which program has what of VFIO (`uses.holders`).

    Raises:
        NotFound: there is no such device.
        BadInput: it makes none, or not so many.
        Refused: one of those there are is in use, and each of them would end.
        Broken: the kernel does not make them, in its words; or their card cannot be told what it was.
    """
    found = read_inventory(sysfs, Known(holders=holders or {}))
    there = _physical(found, address, count)
    if there.count == count:
        return there
    if (user := found.devices[address].user) is not None:
        raise Refused(f"PCI device {address} belongs to {user}", fix="take it from there first")
    if used := [f"{one.address} {why}" for one in _functions(found, there) if (why := _use(one)) is not None]:
        raise Refused(
            f"{address} has {there.count} virtual functions, all of which would end, and {', '.join(used)}",
            fix="take it from there first",
        )
    told, had_link = _told(cards, found, there), _has_link(sysfs, address)
    try:
        _set(sysfs, address, there.count, count)
    except OSError as error:
        _make_again(sysfs, cards, address, there, told, had_link=had_link)
        raise _failed(sysfs, address, there.count, count, _WHY.get(error.errno or 0, error.strerror)) from error
    if _count(sysfs, address) != count:
        _make_again(sysfs, cards, address, there, told, had_link=had_link)
        raise _failed(sysfs, address, there.count, count, "the kernel took the number, and made others")
    _tell(sysfs, cards, address, told[:count], had_link=had_link)
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


def _functions(found: Inventory, card: SriovFacts) -> Iterator[PciDevice]:
    return (found.devices[one] for one in card.functions if one in found.devices)


def _use(function: PciDevice) -> str | None:
    """Return who uses a function; None: nobody."""
    if function.user is not None:
        return f"belongs to {function.user}"
    if function.is_kept:
        return None
    if not function.nets:  # its interface may be in a container's network
        return f"belongs to driver {function.driver} of the host, and shows no interface here"
    used = [one.name for one in function.nets if one.is_up or one.master is not None]
    return f"is the host's {', '.join(used)}, which is up or belongs to a bridge" if used else None


def _told(cards: Cards, found: Inventory, card: SriovFacts) -> list[FunctionSettings | None]:
    """Return what the card was told of each function; None: it does not say."""
    settings: list[FunctionSettings | None] = []
    for function in card.functions:
        try:
            settings.append(read_settings(cards, found, function))
        except VmferryError:
            settings.append(None)
    return settings


def _tell(
    sysfs: Sysfs, cards: Cards, address: PciAddress, told: list[FunctionSettings | None], *, had_link: bool
) -> None:
    """Tell the card again what it was told of its functions, as far as it has forgotten it."""
    if had_link and any(settings is not None and settings.max_rate_mbit for settings in told):
        _wait_link(sysfs, address)
    found = read_inventory(sysfs)
    for function, settings in zip(_physical(found, address, 0).functions, told, strict=False):
        if settings is not None and settings.given():
            wanted = settings.without(read_settings(cards, found, function))
            if wanted.given():
                set_function(cards, found, function, wanted)


def _set(sysfs: Sysfs, address: PciAddress, there: int, count: int) -> None:
    here = f"{DEVICES}/{address}"
    sysfs.write(f"{here}/sriov_drivers_autoprobe", "0")
    if there and count:
        sysfs.write(f"{here}/sriov_numvfs", "0")
    sysfs.write(f"{here}/sriov_numvfs", str(count))


def _count(sysfs: Sysfs, address: PciAddress) -> int:
    return sysfs.number(f"{DEVICES}/{address}/sriov_numvfs") or 0


def _has_link(sysfs: Sysfs, address: PciAddress) -> bool:
    nets = f"{DEVICES}/{address}/net"
    return any(sysfs.number(f"{nets}/{name}/carrier") == 1 for name in sysfs.names(nets))


def _wait_link(sysfs: Sysfs, address: PciAddress) -> None:
    """Wait until a card has its link again: drivers begin anew with another number, and without one know no rates."""
    ends = time.monotonic() + _LINK_WITHIN_S
    while not _has_link(sysfs, address) and time.monotonic() < ends:
        time.sleep(_LOOK_EVERY_S)


def _make_again(
    sysfs: Sysfs,
    cards: Cards,
    address: PciAddress,
    there: SriovFacts,
    told: list[FunctionSettings | None],
    *,
    had_link: bool,
) -> None:
    """Make as many as there were, as far as the kernel does; how many there are is told by the error."""
    here = f"{DEVICES}/{address}"
    with contextlib.suppress(OSError, VmferryError):
        sysfs.write(f"{here}/sriov_drivers_autoprobe", str(int(there.autoprobe)))
        now = _count(sysfs, address)
        if now not in {0, there.count}:
            sysfs.write(f"{here}/sriov_numvfs", "0")
        if now != there.count and there.count:
            sysfs.write(f"{here}/sriov_numvfs", str(there.count))
        _tell(sysfs, cards, address, told, had_link=had_link)


def _failed(sysfs: Sysfs, address: PciAddress, there: int, count: int, why: str | None) -> Broken:
    now = _count(sysfs, address)
    return Broken(
        f"{address} does not make {count} virtual functions: {why or 'the kernel does not say why'}; it has"
        f" {now or 'none'} now, and had {there or 'none'}",
        fix=_DMESG,
    )
