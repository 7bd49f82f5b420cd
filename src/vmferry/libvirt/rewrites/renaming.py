"""`--map WHAT:HERE=THERE`: what a person says is called otherwise at the destination. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from vmferry.core.errors import BadInput, Blocker
from vmferry.core.pci import PciAddress
from vmferry.libvirt.rewrites.devices import replace_devices
from vmferry.libvirt.rewrites.disks import replace_disks
from vmferry.libvirt.rewrites.graphics import replace_listen
from vmferry.libvirt.rewrites.networks import replace_bridges, replace_cards, replace_networks

Names = Mapping[str, str]
#: What XML 1.0 cannot say, or (line ends, tabs) says as something else in an attribute.
_NO_NAME = re.compile("[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _replace_devices(xml: str, names: Names) -> str:
    return replace_devices(xml, {PciAddress.parse(old): PciAddress.parse(new) for old, new in names.items()})


#: WHAT -> (the rewrite, what it is)
KINDS: Mapping[str, tuple[Callable[[str, Names], str], str]] = {
    "bridge": (replace_bridges, "a Linux bridge"),
    "network": (replace_networks, "a network of libvirt's"),
    "card": (replace_cards, "the card of a macvtap"),
    "device": (_replace_devices, "a PCI device (0000:03:10.0 or pci_0000_03_10_0)"),
    "disk": (replace_disks, "the path of an image"),
    "listen": (replace_listen, "an address on which a screen is served"),
}


@dataclass(frozen=True, slots=True)
class Renaming:
    """Everything that is called otherwise there."""

    names: Mapping[str, Names]  #: by WHAT

    @property
    def is_empty(self) -> bool:
        """Whether the domain is the same there."""
        return not self.names

    def apply(self, xml: str) -> str:
        """Return the domain as it is there.

        Raises:
            XmlRefused: it is no XML that is read here.
        """
        for kind, names in self.names.items():
            xml = KINDS[kind][0](xml, names)
        return xml

    def idle(self, name: str, xml: str) -> tuple[Blocker, ...]:
        """Return a blocker for each name that the domain does not have: a slip, which would show only there."""
        pairs = [(kind, old, new) for kind, names in self.names.items() for old, new in names.items() if old != new]
        return tuple(
            Blocker(
                "map.nothing",
                f"--map {kind}:{old}={new}: domain {name} has no {old} that is {KINDS[kind][1]}",
                "correct it, or leave it out; `virsh dumpxml` shows what the domain has",
            )
            for kind, old, new in pairs
            if KINDS[kind][0](xml, {old: new}) == xml
        )


def parse_renaming(given: Iterable[str]) -> Renaming:
    """Return what is called otherwise at the destination.

    Args:
        given: `WHAT:HERE=THERE` each.

    Raises:
        BadInput: one is none, is there twice, or depends on the order of another.
    """
    found: dict[str, dict[str, str]] = {}
    for each in given:
        kind, colon, pair = each.partition(":")
        old, equals, new = pair.partition("=")
        if _NO_NAME.search(each):
            raise BadInput(
                f"--map {each!r} has characters that no name in XML has", fix="leave control characters out of it"
            )
        if kind not in KINDS or not (colon and equals and old and new):
            takes = ", ".join(f"{word}: {what}" for word, (_, what) in KINDS.items())
            raise BadInput(f"--map {each!r} is none", fix=f"write WHAT:HERE=THERE ({takes})")
        if old in found.setdefault(kind, {}):
            raise BadInput(f"--map {kind}:{old} is there twice", fix="leave one of them out")
        found[kind][old] = new
    for kind, names in found.items():
        KINDS[kind][0]("<domain/>", names)  # says what cannot be replaced
    return Renaming(found)
