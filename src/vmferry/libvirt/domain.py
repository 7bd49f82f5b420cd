"""A libvirt domain's XML as a guest, and a guest as a libvirt domain's XML: joins the modules of each concern.

Both ways are pure functions of the text. The guest is started anew by what comes out: nothing here moves a running one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.errors import BadInput
from vmferry.core.guest import CONTROL_PORT, THROTTLE_PORT, Acceleration, BiosBoot, GuestSpec
from vmferry.libvirt.boot import read_boot, read_machine, read_order, write_boot
from vmferry.libvirt.consoles import read_channels, read_serials, write_consoles
from vmferry.libvirt.disks import read_disks, write_disks
from vmferry.libvirt.findings import ACCEPTABLE, Finding, Findings
from vmferry.libvirt.identity import read_acceleration, read_name, read_uuid, write_identity
from vmferry.libvirt.making import add
from vmferry.libvirt.memory import read_memory, write_memory
from vmferry.libvirt.nics import read_nics, write_nics
from vmferry.libvirt.platform import read_platform, write_platform
from vmferry.libvirt.processors import read_cpu, read_vcpus, write_processors
from vmferry.libvirt.rules import settle
from vmferry.libvirt.tpm import read_tpm, write_tpm
from vmferry.libvirt.tree import Element, XmlRefused, parse

#: XML 1.0 has no control characters, and a reader turns a carriage return into a new line.
_NO_XML = re.compile("[^\t\n\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Imported:
    """A domain as a guest."""

    spec: GuestSpec
    told: tuple[Finding, ...]  #: what of the domain the guest does not have, in the order of the XML


@dataclass(frozen=True, slots=True)
class Exported:
    """A guest as a domain."""

    xml: str
    told: tuple[str, ...]  #: what of the guest the domain does not have, a sentence each


def read_domain(
    text: str | bytes, *, source: str = "(text)", name: str | None = None, accept: frozenset[str] = frozenset()
) -> Imported:
    """Return the guest that a domain's XML describes, and everything that it will not have.

    Args:
        text: the domain's XML.
        source: what the text is called in messages: its file, or the domain.
        name: the guest's name; None: the domain's.
        accept: what the guest may lose, by names of `findings.ACCEPTABLE`.

    Raises:
        BadInput: it is no XML of a domain, or a name in `accept` is none.
        DomainRefused: a guest file cannot say what the domain is; every reason with its place in the XML.
    """
    if unknown := sorted(accept - ACCEPTABLE.keys()):
        raise BadInput(
            f"cannot accept {', '.join(unknown)}: nothing of that name is ever lost",
            fix=f"known are {', '.join(sorted(ACCEPTABLE))}",
        )
    root = _parse(text, source)
    found = Findings(accept)
    spec = _read(root, found, name)
    settle(root, found)
    found.check(source)
    return Imported(spec, found.ordered())


def write_domain(spec: GuestSpec) -> Exported:
    """Return the domain's XML of a guest, and what of the guest libvirt has no word for.

    `read_domain` gives the same guest again, except for what is told.

    Raises:
        BadInput: a path or the command line holds a character that XML cannot hold; or it has devices of its host.
    """
    if spec.host_devices:
        raise BadInput(
            f"Guest {spec.name} is to have {spec.host_devices[0].device} of its host: not written as XML yet",
            fix="export it without, and add <hostdev> by hand",
        )
    root = ET.Element("domain")
    write_identity(spec, root)
    write_memory(spec, root)
    write_processors(spec, root)
    write_boot(spec, root)
    write_platform(root)
    devices = add(root, "devices")
    write_disks(spec, devices)
    write_nics(spec, devices)
    write_consoles(spec, devices)
    write_tpm(spec, devices)
    add(devices, "controller", type="usb", model="none")
    add(devices, "memballoon", model="none")
    add(devices, "panic", model="isa")
    _check_characters(root, spec)
    ET.indent(root)
    return Exported(ET.tostring(root, encoding="unicode") + "\n", tuple(_told(spec)))


def _check_characters(root: ET.Element, spec: GuestSpec) -> None:
    for element in root.iter():
        for text in (element.text or "", *element.attrib.values()):
            if found := _NO_XML.search(text):
                character = f"U+{ord(found.group()):04X}"
                raise BadInput(
                    f"guest {spec.name}: {text!r} holds the character {character}, which no XML can hold",
                    fix="take it out of the guest file",
                )


def _told(spec: GuestSpec) -> list[str]:
    told = []
    if spec.acceleration is Acceleration.AUTO:
        told.append(
            "acceleration = \"auto\": libvirt does not look whether KVM works; the domain asks for it (type='kvm')"
        )
    if spec.echo is not None:
        told.append(f'echo = "{spec.echo}": a measurement of vmferry\'s, nothing of the guest')
    if spec.beat:
        told.append("beat: the port is there, and what the guest writes to it goes nowhere")
    if spec.tpm is not None:
        told.append("tpm: its state stays with the agent; the domain starts with an empty TPM")
    if any(nic.forward_udp for nic in spec.nics):
        told.append("forward_udp: only a libvirt (9.0 or newer) that was built with passt takes this domain")
    return told


def _parse(text: str | bytes, source: str) -> Element:
    try:
        root = parse(text)
    except XmlRefused as error:
        place = source if error.line is None else f"{source}:{error.line}"
        raise BadInput(
            f"{place}: this is not read as a libvirt domain: {error.reason}",
            fix="name what `virsh dumpxml DOMAIN` writes",
        ) from error
    if root.tag != "domain":
        raise BadInput(
            f"{source}:{root.line}: <{root.tag}>, expected <domain>", fix="name what `virsh dumpxml DOMAIN` writes"
        )
    return root


def _read(root: Element, found: Findings, name: str | None) -> GuestSpec:
    guest_name, uuid = read_name(root, found, name), read_uuid(root, found)
    acceleration = read_acceleration(root, found)
    memory_bytes, vcpus = read_memory(root, found), read_vcpus(root, found)
    cpu = read_cpu(root, found, vcpus)
    os, machine = read_machine(root, found)
    boot = read_boot(os, found)
    read_platform(root, found)
    devices = root.one("devices") or Element("devices", {}, root.line, root)
    disks, nics = read_disks(devices, found), read_nics(devices, found)
    read_order(os, devices, boot, found)
    if isinstance(boot, BiosBoot) and not disks and not found.is_refused:
        found.refuse(os, "no disk", "the BIOS boots from the first disk", "give the guest a disk, or UEFI")
    _read_absent(devices)
    channels = read_channels(devices)
    return GuestSpec(
        name=guest_name,
        memory_bytes=memory_bytes,
        boot=boot,
        vcpus=vcpus,
        cpu=cpu,
        machine=machine,
        acceleration=acceleration,
        disks=disks,
        nics=nics,
        beat=read_serials(devices, found),
        control=CONTROL_PORT in channels,
        tpm=read_tpm(devices, found),
        throttle=THROTTLE_PORT in channels,
        uuid=uuid,
    )


def _read_absent(devices: Element) -> None:
    """Take note of a card that is written as none."""
    for video in devices.every("video"):
        model = video.one("model")
        if model is not None and model.attributes.get("type") == "none":
            video.read_whole()
        else:
            video.give_back()
