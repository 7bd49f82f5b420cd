"""One line of the tables, and the lines that hold wherever the element stands."""

from __future__ import annotations

from dataclasses import dataclass

from vmferry.libvirt.findings import ACCEPTABLE, Effect


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of an element or attribute, and why."""

    effect: Effect
    what: str
    fix: str = ""
    accept: str = ""


def silent(what: str) -> Rule:
    """Return the rule for what loses nothing: book-keeping of libvirt's, or what every guest of ours has."""
    return Rule(Effect.SILENT, what)


def left_out(what: str) -> Rule:
    """Return the rule for what the guest does not notice."""
    return Rule(Effect.LEFT_OUT, what)


def asked(accept: str) -> Rule:
    """Return the rule for what the guest would notice, and which its owner may accept by that name."""
    return Rule(Effect.ASKED, ACCEPTABLE[accept], accept=accept)


def refused(what: str, fix: str) -> Rule:
    """Return the rule for what cannot be taken over."""
    return Rule(Effect.REFUSED, what, fix=fix)


#: (tag, attributes, rule): of any element without a rule of its own
ANYWHERE: tuple[tuple[str, dict[str, str], Rule], ...] = (
    ("alias", {}, silent("libvirt's name of the running device")),
    ("address", {"type": "pci"}, asked("address")),
    ("acpi", {}, asked("address")),
    ("address", {"type": "drive"}, silent("disks stand in the order of the XML")),
    ("address", {"type": "virtio-serial"}, silent("a channel is found by its name")),
)
