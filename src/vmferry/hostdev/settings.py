"""Sets what a card is told of one of its virtual functions: all that was asked for, or nothing."""

from __future__ import annotations

import contextlib
import errno

from vmferry.core.errors import BadInput, Broken, NotFound, Refused
from vmferry.core.functions import FunctionSettings
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import Inventory
from vmferry.hostdev.netlink import Cards


def function_of(found: Inventory, address: PciAddress) -> tuple[str, int]:
    """Return by which interface a virtual function's card is known, and the function's number.

    Raises:
        NotFound: there is no such device.
        BadInput: it is no virtual function.
        Refused: its card has no interface: the host's driver does not have it.
    """
    device = found.devices.get(address)
    if device is None:
        raise NotFound(f"There is no PCI device {address} on this host", fix="see `vmferry pci list`")
    card = None if device.physical is None else found.devices.get(device.physical)
    if card is None or card.sriov is None or address not in card.sriov.functions:
        raise BadInput(f"PCI device {address} is no virtual function", fix="see `vmferry pf show`")
    if not card.nets:
        raise Refused(
            f"Card {card.address} of virtual function {address} has no network interface",
            fix=f"give it back to its driver; {card.driver or 'none'} has it now",
        )
    return card.nets[0].name, card.sriov.functions.index(address)


def read_settings(cards: Cards, found: Inventory, address: PciAddress) -> FunctionSettings:
    """Return what a function's card was told of it; raises as `function_of`, and Broken: the card does not say."""
    card, number = function_of(found, address)
    try:
        told = cards.read(card, number)
    except OSError as error:
        raise Broken(f"Interface {card} says nothing of virtual function {address}: {error}") from error
    if told is None:
        raise Broken(f"Interface {card} says nothing of virtual function {address}", fix="see `ip link show`")
    return told


def set_function(cards: Cards, found: Inventory, address: PciAddress, wanted: FunctionSettings) -> FunctionSettings:
    """Tell a card what was asked for of a function, and return all that it has then.

    A MAC is seen by the function's driver when it begins: set it before a guest has the function. On failure what was
    set before is set again.

    Raises:
        NotFound: there is no such device.
        BadInput: it is no virtual function, or nothing was asked for.
        Refused: a program has it and it is to have another MAC; or the card cannot do one setting, which is told.
        Broken: the card does not take one, in the kernel's words.
    """
    if not wanted.given():
        raise BadInput(f"Nothing was asked for of virtual function {address}", fix="give --mac, --vlan, --trust, ...")
    card, number = function_of(found, address)
    user = found.devices[address].user
    if wanted.mac is not None and user is not None:
        raise Refused(
            f"Virtual function {address} belongs to {user}, whose driver would not see another MAC address",
            fix="take it from there first",
        )
    before = read_settings(cards, found, address)
    done: list[str] = []
    for name, value in wanted.given().items():
        try:
            cards.write(card, number, name, value)
        except OSError as error:
            _undo(cards, card, number, before, done)
            raise _failed(address, card, name, value, error) from error
        done.append(name)
    return read_settings(cards, found, address)


def _undo(cards: Cards, card: str, number: int, before: FunctionSettings, done: list[str]) -> None:
    for name in reversed(done):
        value = before.given().get(name)
        if value is not None:
            with contextlib.suppress(OSError):
                cards.write(card, number, name, value)


def _failed(address: PciAddress, card: str, name: str, value: str | int, error: OSError) -> Refused | Broken:
    what = f"{name.replace('_', ' ')} {value} of virtual function {address}"
    if error.errno == errno.EOPNOTSUPP:
        return Refused(f"Interface {card} cannot set {what}: its driver knows no such setting", fix="leave it out")
    fix = "see `dmesg`"
    if name == "max_rate_mbit" and error.errno == errno.EINVAL:
        fix = f"bring {card} up, with a link, and ask for no more than its speed; {fix}"
    return Broken(f"Interface {card} did not set {what}: {error.strerror or error}", fix=fix)
