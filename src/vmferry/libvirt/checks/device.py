"""Devices of the host that a domain has for itself, and pairs of network cards of which one stays behind.

A failover pair (<teaming>) moves: libvirt takes the host's device out, and the virtio card carries on.

Source: libvirt docs/formatdomain.rst, Teaming a virtio/hostdev NIC pair; src/qemu/qemu_migration.c,
qemuMigrationSrcIsAllowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vmferry.core.errors import BadInput, Blocker
from vmferry.core.pci import PciAddress
from vmferry.libvirt.checks.case import Case, XmlBlocker, first
from vmferry.libvirt.checks.editing import Lookup, diff_of
from vmferry.libvirt.tree import Element

#: elements that keep a domain where it is -> (code, what it is)
_STAYING = {
    "hostdev": ("device.passthrough", "a device of the host for itself"),
    "filesystem": ("device.filesystem", "a directory of the host"),
}
#: types of <interface>, as above
_STAYING_NICS = {
    "hostdev": ("device.passthrough", "a network card of the host for itself"),
    "vdpa": ("device.vdpa", "a vDPA device of the host"),
}


def check_devices(case: Case) -> Iterator[Blocker]:
    """Nothing is the host's own but one half of a failover pair."""
    for device in _devices(case):
        code, what = _staying(device)
        if not code or _is_transient(device):
            continue
        yield XmlBlocker(
            code,
            f"domain {case.name} has {what} ({device.where}{_address(device)}), which cannot come along",
            f"virsh detach-device {case.name} FILE --live with that element, and attach one again at the destination; a"
            " network card can be one half of a failover pair instead (<teaming>)",
            diff_of(case.domain, _removal(device)),
        )


def check_teaming(case: Case) -> Iterator[Blocker]:
    """Each device of the host in a failover pair has its virtio card with the same MAC, and a device there."""
    for device in _devices(case):
        if _is_transient(device):
            yield from _check_pair(case, device)


def unseen_devices(case: Case) -> Iterator[str]:
    """Tell what only the destination's own programs know."""
    host = case.destination.host
    for interface in case.every("devices/interface"):
        if interface.attributes.get("type") == "vhostuser":
            source = first(interface, "source")
            path = "" if source is None else source.attributes.get("path", "")
            yield f"whether a vhost-user back-end serves {path} on {host}, and whether it logs what it writes"
    if case.destination.node_devices is None and any(_is_transient(device) for device in _devices(case)):
        yield f"which devices {host} has for a failover pair: its libvirt does not say"


def _devices(case: Case) -> Iterator[Element]:
    for parent in case.every("devices"):
        yield from parent.children


def _staying(device: Element) -> tuple[str, str]:
    if device.tag == "interface":
        return _STAYING_NICS.get(device.attributes.get("type", ""), ("", ""))
    return _STAYING.get(device.tag, ("", ""))


def _is_transient(device: Element) -> bool:
    teaming = first(device, "teaming")
    return teaming is not None and teaming.attributes.get("type") == "transient"


def _check_pair(case: Case, device: Element) -> Iterator[Blocker]:
    teaming = first(device, "teaming")
    alias = "" if teaming is None else teaming.attributes.get("persistent", "")
    partner = next((nic for nic in case.every("devices/interface") if _alias(nic) == alias), None)
    if partner is None or not _is_virtio(partner):
        seen = "no network card of that alias" if partner is None else "a card that is not virtio"
        yield Blocker(
            "teaming.no-partner",
            f"{device.where} of domain {case.name} is paired with {alias or 'nothing'}: {seen}",
            f"give the domain a virtio card with <alias name='{alias}'/> and <teaming type='persistent'/>",
        )
    elif _mac(device) and _mac(partner) != _mac(device):
        yield _other_mac(case, device, partner)
    yield from _check_there(case, device)


def _other_mac(case: Case, device: Element, partner: Element) -> Blocker:
    def edit(copy_of: Lookup) -> None:
        mac = first(device, "mac")
        if mac is not None:
            copy_of(mac).set("address", _mac(partner))

    return XmlBlocker(
        "teaming.other-mac",
        f"{device.where} of domain {case.name} has MAC {_mac(device)}, its virtio card {_mac(partner) or 'none'}: the"
        " guest does not take them for a pair",
        "give both the virtio card's address",
        diff_of(case.domain, edit),
    )


def _check_there(case: Case, device: Element) -> Iterator[Blocker]:
    """A device that is named by its PCI address must be one of the destination's too; a pool's is chosen there."""
    name, known, host = _node_name(device), case.destination.node_devices, case.destination.host
    if name is not None and known is not None and name not in known:
        yield Blocker(
            "teaming.no-device",
            f"{device.where} of domain {case.name} is {name}, which {host} does not have",
            f"name one of {host}'s devices (`vmferry device list {host}`):"
            f" --map device:{_pci_address(device)}=ADDRESS; or take it on both from a network with"
            " <forward mode='hostdev'>",
        )


def _address(device: Element) -> str:
    name = _node_name(device)
    return "" if name is None else f", {name}"


def _node_name(device: Element) -> str | None:
    """Return the name that virsh nodedev-list has for a PCI device's address."""
    address = _pci_address(device)
    return None if address is None else address.nodedev


def _pci_address(device: Element) -> PciAddress | None:
    address = first(device, "source/address")
    if address is None or "slot" not in address.attributes:
        return None
    try:
        return PciAddress.of_attributes(address.attributes)
    except BadInput:  # no address that libvirt writes
        return None


def _removal(device: Element) -> Callable[[Lookup], None]:
    def edit(copy_of: Lookup) -> None:
        if device.parent is not None:
            copy_of(device.parent).remove(copy_of(device))

    return edit


def _alias(nic: Element) -> str:
    alias = first(nic, "alias")
    return "" if alias is None else alias.attributes.get("name", "")


def _mac(device: Element) -> str:
    mac = first(device, "mac")
    return "" if mac is None else mac.attributes.get("address", "").lower()


def _is_virtio(nic: Element) -> bool:
    model = first(nic, "model")
    return model is not None and model.attributes.get("type", "").startswith("virtio")
