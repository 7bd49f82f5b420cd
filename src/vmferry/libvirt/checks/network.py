"""What the domain's network cards are plugged into must be there at the destination."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.errors import Blocker
from vmferry.libvirt.checks.case import Case, first
from vmferry.libvirt.tree import Element

#: where a card of that type names a device of the host
_DEVICES = {"bridge": "bridge", "direct": "dev"}


def check_networks(case: Case) -> Iterator[Blocker]:
    """Each network is defined and active, each bridge and card is there."""
    for interface in case.every("devices/interface"):
        source = first(interface, "source")
        kind = interface.attributes.get("type", "")
        if source is None:
            continue
        if kind == "network":
            yield from _check_network(case, source.attributes.get("network", ""))
        elif kind in _DEVICES:
            yield from _check_device(case, interface, source.attributes.get(_DEVICES[kind], ""))


def unseen_networks(case: Case) -> Iterator[str]:
    """Tell what the destination's daemon cannot be asked, when the domain depends on it."""
    kinds = {interface.attributes.get("type") for interface in case.every("devices/interface")}
    host = case.destination.host
    if "network" in kinds and case.destination.networks is None:
        yield f"which networks {host} has: its libvirt does not say"
    if kinds & _DEVICES.keys() and case.destination.interfaces is None:
        yield f"which bridges and network cards {host} has: its libvirt does not say"


def _check_network(case: Case, name: str) -> Iterator[Blocker]:
    known, host = case.destination.networks, case.destination.host
    if known is None or known.get(name):
        return
    if name in known:
        yield Blocker(
            "network.inactive",
            f"domain {case.name} is in network {name}, which is defined on {host} and not active",
            f"virsh net-start {name} on {host} (and net-autostart)",
        )
    else:
        yield Blocker(
            "network.missing",
            f"domain {case.name} is in network {name}, which {host} does not have"
            f" (it has {', '.join(sorted(known)) or 'none'})",
            f"define it there: virsh net-dumpxml {name} here, virsh net-define and net-start on {host}; or give the"
            f" destination another one: --map network:{name}=NAME",
        )


def _check_device(case: Case, interface: Element, name: str) -> Iterator[Blocker]:
    there = case.destination
    kind = "bridge" if interface.attributes.get("type") == "bridge" else "card"
    if there.interfaces is None or name in there.interfaces:
        return
    if kind == "card" and (there.node_devices is None or there.has_card(name)):
        return  # one that is part of a bridge is no interface of libvirt's
    yield Blocker(
        f"network.no-{kind}",
        f"domain {case.name} is on {name}, which {there.host} does not have",
        f"make it on {there.host}, or give the destination another one: --map {kind}:{name}=NAME",
    )
