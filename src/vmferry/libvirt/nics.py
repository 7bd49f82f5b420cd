"""Network cards and what they are plugged into.

Source: libvirt docs/formatdomain.rst (9.0), Network interfaces; a card without a model is an rtl8139 on x86.
"""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.errors import BadInput
from vmferry.core.guest import GuestSpec, IoPath, NetworkKind, Nic
from vmferry.libvirt.findings import Findings, short
from vmferry.libvirt.making import add
from vmferry.libvirt.tree import Element

CARRIED: Final = (
    ("devices/interface/model", "`path`: `virtio`, and `emulated` for `e1000`"),
    ("devices/interface/driver/@name", "`path`: `vhost` where it says so"),
    (
        "devices/interface/source/@bridge",
        '`network = "bridge"`, `bridge`; also of a running `<interface type=network>`',
    ),
    ("devices/interface (type=user)", '`network = "user"`'),
    ("devices/interface/mac", "`mac`"),
    ("devices/interface/portForward (udp, 127.0.0.1)", "`forward_udp`"),
)

LOOPBACK = "127.0.0.1"
_MODELS = {"virtio": IoPath.VIRTIO, "e1000": IoPath.EMULATED}
_BRIDGE = re.compile(r"[A-Za-z0-9._-]{1,15}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_REFUSED = {
    "hostdev": "a device of the host that the guest has for itself",
    "direct": "a macvtap of the host's card",
    "vhostuser": "a switch in another process over vhost-user",
    "vdpa": "a vDPA device of the host",
    "ethernet": "a tap that a script sets up",
    **dict.fromkeys(("client", "server", "mcast", "udp"), "a tunnel between guests"),
}
_PLUG = "plug it into a Linux bridge that both hosts have (<interface type='bridge'>), or detach it"


def read_nics(devices: Element, found: Findings) -> tuple[Nic, ...]:
    """Return the network cards in the order of the XML."""
    read = [_read_nic(element, found) for element in devices.every("interface")]
    return tuple(nic for nic in read if nic is not None)


def write_nics(spec: GuestSpec, devices: ET.Element) -> None:
    """Write each card, without the option ROM that no guest has.

    Forwarded ports need libvirt's passt back-end (libvirt 9.0): its other one for `user` forwards nothing.

    Raises:
        BadInput: one is a virtual function.
    """
    if (index := next((index for index, nic in enumerate(spec.nics) if nic.is_function), None)) is not None:
        raise BadInput(
            f"Network card {index} of guest {spec.name} is a virtual function of {spec.nics[index].physical_network}:"
            " not written as XML in this version",
            fix="export it with a virtio card, and add <interface type='hostdev'> with <teaming> by hand",
        )
    models = {path: model for model, path in _MODELS.items()} | {IoPath.VHOST: "virtio"}
    for nic in spec.nics:
        element = add(devices, "interface", type=nic.network.value)
        if nic.mac is not None:
            add(element, "mac", address=nic.mac)
        if nic.network is NetworkKind.BRIDGE:
            add(element, "source", bridge=nic.bridge)
        add(element, "model", type=models[nic.io_path])
        if nic.io_path is IoPath.VHOST:
            add(element, "driver", name="vhost")
        if nic.forward_udp:
            add(element, "backend", type="passt")
        for host, guest in nic.forward_udp:
            forward = add(element, "portForward", proto="udp", address=LOOPBACK)
            add(forward, "range", start=str(host), to=str(guest))
        add(element, "rom", enabled="no")


def _read_nic(element: Element, found: Findings) -> Nic | None:
    """Return one card; None for one that is not taken over, which is told."""
    kind, source = element.get("type") or "", element.one("source")
    if kind not in {"bridge", "network", "user"}:
        why = _REFUSED.get(kind, "what it is plugged into is not known here")
        found.refuse(element, f"type={short(kind)}", f"{why}: not yet in this version", _PLUG)
        element.read_whole()
        return None
    io_path, mac = _read_model(element, found), _read_mac(element, found)
    if kind == "user":
        return Nic(io_path, NetworkKind.USER, None, mac, _read_forwards(element, found))
    bridge = source.get("bridge") if source is not None else None
    if source is not None and kind == "network":
        _tell_network(source, bridge, found)
    elif bridge is None or not _BRIDGE.fullmatch(bridge):
        found.refuse(source or element, f"bridge={short(bridge)}", "no name of a bridge", "name the host's bridge")
    driver = element.one("driver")
    by_kernel = io_path is IoPath.VIRTIO and driver is not None and driver.get("name") == "vhost"
    return Nic(IoPath.VHOST if by_kernel else io_path, NetworkKind.BRIDGE, bridge, mac)


def _tell_network(source: Element, bridge: str | None, found: Findings) -> None:
    network = source.get("network")
    if bridge is None:
        found.refuse(
            source,
            f"network={short(network)}",
            "which bridge that is only libvirt knows",
            "import the running domain, whose XML names it, or write <interface type='bridge'>",
        )
        return
    what = "its bridge is taken; what libvirt does for it (DHCP, NAT) goes on only where the network is active"
    found.tell(source, f"network={short(network)}, bridge {bridge}", what)


def _read_model(element: Element, found: Findings) -> IoPath:
    model = element.one("model")
    kind = model.get("type") if model is not None else None
    if kind not in _MODELS:
        seen = f"model {short(kind)}" + ("" if kind else ": libvirt makes it an rtl8139")
        fix = "<model type='virtio'/>, or e1000, when the guest has the driver"
        found.refuse(model or element, seen, "guests have virtio and e1000 cards", fix)
    return _MODELS.get(kind or "", IoPath.VIRTIO)


def _read_mac(element: Element, found: Findings) -> str | None:
    mac = element.one("mac")
    if mac is None:
        return None
    address = (mac.get("address") or "").lower()
    if not _MAC.fullmatch(address) or int(address[:2], 16) & 1:
        found.refuse(mac, short(address), "no unicast MAC address", "six pairs of hex digits, or take <mac> out")
    return address


def _read_forwards(element: Element, found: Findings) -> tuple[tuple[int, int], ...]:
    """Return the forwarded UDP ports; anything but single ports of the loopback is refused."""
    pairs = []
    for forward in element.every("portForward"):
        usual = (forward.get("proto"), forward.get("address"), forward.get("dev")) == ("udp", LOOPBACK, None)
        for ports in forward.every("range"):
            start, end, to = (ports.get(name) for name in ("start", "end", "to"))
            if usual and end in {None, start} and _is_port(start) and _is_port(to or start):
                pairs.append((int(start or 0), int(to or start or 0)))
            else:
                usual = False
        if not usual:
            seen = f"proto={short(forward.get('proto'))} address={short(forward.get('address'))}"
            found.refuse(forward, seen, f"only single UDP ports of {LOOPBACK} are forwarded", "take it out")
            forward.read_whole()
    return tuple(pairs)


def _is_port(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit() and 1 <= int(text) <= 65535
