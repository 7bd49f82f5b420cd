"""What a host of libvirt's offers, out of what its daemon says.

Source: libvirt docs/formatcaps.rst, docs/formatdomaincaps.rst, src/conf/node_device_conf.c (names of node devices).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vmferry.libvirt.facts import Domain
from vmferry.libvirt.tree import Element, parse

ARCHITECTURE = "x86_64"
_ODD = re.compile("[^A-Za-z0-9]")
_NET = re.compile(r"net_(.+?)(?:_[0-9a-f]{2}){6}")


@dataclass(frozen=True, slots=True)
class Offer:
    """One host. What is None could not be asked for there."""

    host: str
    machines: frozenset[str]  #: machine types, aliases too
    accelerations: frozenset[str]  #: kvm, qemu
    emulator: str | None  #: the one that libvirt takes by itself
    host_cpu: str | None  #: the host's own CPU in one line, to be compared
    cpu_models: frozenset[str]  #: models that it can run for this domain
    emulator_error: str | None  #: why it cannot run the domain's emulator, in libvirt's words; None: it can
    cpu_error: str | None  #: why the domain's CPU does not fit, in libvirt's words; None: it does, or nobody knows
    networks: Mapping[str, bool] | None  #: by name, whether it is active
    pools: Mapping[str, bool] | None  #: by name, whether it is active
    interfaces: frozenset[str] | None  #: as virsh iface-list names them, bridges too
    node_devices: frozenset[str] | None  #: as virsh nodedev-list names them
    domains: tuple[Domain, ...]

    def has_card(self, name: str) -> bool:
        """Tell whether a network card is among its node devices, which bridges, bonds and VLANs never are.

        Their names have _ for everything that is no letter or digit.
        """
        cards = {found[1] for device in self.node_devices or () if (found := _NET.fullmatch(device))}
        return _ODD.sub("_", name) in cards


@dataclass(frozen=True, slots=True)
class Said:
    """What a daemon said, to be read."""

    host: str
    capabilities: str  #: XML
    domain_capabilities: str | None  #: XML, for the domain's machine, acceleration and emulator; None: refused
    emulator_error: str | None = None
    cpu_error: str | None = None
    networks: Mapping[str, bool] | None = None
    pools: Mapping[str, bool] | None = None
    interfaces: frozenset[str] | None = None
    node_devices: frozenset[str] | None = None
    domains: tuple[Domain, ...] = ()


def read_offer(said: Said) -> Offer:
    """Return what a host offers.

    Raises:
        XmlRefused: a daemon said what is no XML.
    """
    host = parse(said.capabilities)
    arches = [arch for arch in _every(host, "guest", "arch") if arch.attributes.get("name") == ARCHITECTURE]
    return Offer(
        host=said.host,
        machines=frozenset(word for arch in arches for word in _machines(arch)),
        accelerations=frozenset(d.attributes.get("type", "") for arch in arches for d in _every(arch, "domain")),
        emulator=next((element.text for arch in arches for element in _every(arch, "emulator")), None),
        host_cpu=host_cpu(host),
        cpu_models=_models(said.domain_capabilities),
        emulator_error=said.emulator_error,
        cpu_error=said.cpu_error,
        networks=said.networks,
        pools=said.pools,
        interfaces=said.interfaces,
        node_devices=said.node_devices,
        domains=said.domains,
    )


def _machines(arch: Element) -> Iterator[str]:
    for place in (arch, *_every(arch, "domain")):
        for machine in _every(place, "machine"):
            yield machine.text
            yield machine.attributes.get("canonical", machine.text)


def host_cpu(host: Element) -> str | None:
    """Return the host's own CPU out of its capabilities, in one line that is the same for the same CPU."""
    cpu = next(_every(host, "host", "cpu"), None)
    if cpu is None:
        return None
    texts = [next((element.text for element in _every(cpu, tag)), "") for tag in ("arch", "model", "vendor")]
    return " ".join([*texts, *sorted(feature.attributes.get("name", "") for feature in _every(cpu, "feature"))])


def _models(xml: str | None) -> frozenset[str]:
    if xml is None:
        return frozenset()
    modes = [mode for mode in _every(parse(xml), "cpu", "mode") if mode.attributes.get("name") == "custom"]
    models = [model for mode in modes for model in _every(mode, "model")]
    return frozenset(model.text for model in models if model.attributes.get("usable") != "no")


def _every(element: Element, *tags: str) -> Iterator[Element]:
    for child in element.children:
        if child.tag == tags[0]:
            if len(tags) == 1:
                yield child
            else:
                yield from _every(child, *tags[1:])
