"""A guest plan as a libvirt domain: the same machine, CPU, memory, kernel and devices as our own guest; pure."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.guests import GuestImage
from vmferry.lab.network import BRIDGE

#: The port on which the guest beats (isa-debugcon), as our own guests have it.
BEAT_PORT = "0xe9"
CONTROL = "org.vmferry.control"


#: Private to each daemon (daemon.py mounts them), so one text is good for both hosts.
CONTROL_SOCKET = "/run/libvirt/control.sock"
CONSOLE_SOCKET = "/run/libvirt/console.sock"
CONSOLE_LOG = "/var/log/libvirt/console.log"


def domain_xml(plan: GuestPlan, image: GuestImage, *, emulator: str, cpu: str, beat_port: int) -> str:
    """Return the domain; the same text is good for both hosts.

    Args:
        plan: the guest.
        image: its files; the debian guest's is its personal one.
        emulator: path of the QEMU to run.
        cpu: QEMU's CPU model, without features.
        beat_port: UDP port on 127.0.0.1 that gets the beats.
    """
    domain = ET.Element("domain", type="qemu")
    _text(domain, "name", plan.name)
    _text(domain, "memory", str(plan.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(plan.vcpus))
    _os(domain, plan, image)
    ET.SubElement(ET.SubElement(domain, "features"), "acpi")  # libvirt 9.0 says -no-acpi else, and QEMU 9.0 dropped it
    _text(ET.SubElement(domain, "cpu", mode="custom", match="exact", check="none"), "model", cpu, fallback="forbid")
    _text(domain, "on_crash", "preserve")
    devices = ET.SubElement(domain, "devices")
    _text(devices, "emulator", emulator)
    _devices(devices, plan, image)
    _beat(devices, beat_port)
    return ET.tostring(domain, encoding="unicode")


def _os(domain: ET.Element, plan: GuestPlan, image: GuestImage) -> None:
    os = ET.SubElement(domain, "os")
    _text(os, "type", "hvm", arch="x86_64", machine=plan.machine)
    if image.kernel is not None:
        _text(os, "kernel", str(image.kernel))
        if image.initrd is not None:
            _text(os, "initrd", str(image.initrd))
        _text(os, "cmdline", image.append(**plan.settings()))
        return
    _text(os, "loader", str(image.firmware), readonly="yes", type="pflash")
    _text(os, "nvram", str(image.nvram))


def _devices(devices: ET.Element, plan: GuestPlan, image: GuestImage) -> None:
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "memballoon", model="none")
    disks = [(path, "qcow2") for path in image.disks] + [(disk.image, disk.format) for disk in plan.disks]
    for index, (path, kind) in enumerate(disks):
        _disk(devices, index, path, kind)
    for _ in plan.nics:
        nic = ET.SubElement(devices, "interface", type="bridge")
        ET.SubElement(nic, "source", bridge=BRIDGE)
        ET.SubElement(nic, "model", type="virtio")
        ET.SubElement(nic, "rom", enabled="no")
    _console(devices)
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "source", mode="bind", path=CONTROL_SOCKET)
    ET.SubElement(channel, "target", type="virtio", name=CONTROL)


def _disk(devices: ET.Element, index: int, path: Path, kind: str) -> None:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type=kind, cache="none", discard="unmap")
    ET.SubElement(disk, "source", file=str(path))
    ET.SubElement(disk, "target", dev=f"vd{chr(ord('a') + index)}", bus="virtio")


def _console(devices: ET.Element) -> None:
    serial = ET.SubElement(devices, "serial", type="unix")
    ET.SubElement(serial, "source", mode="bind", path=CONSOLE_SOCKET)
    ET.SubElement(serial, "log", file=CONSOLE_LOG, append="on")
    ET.SubElement(ET.SubElement(serial, "target", type="isa-serial", port="0"), "model", name="isa-serial")


def _beat(devices: ET.Element, port: int) -> None:
    beat = ET.SubElement(devices, "serial", type="udp")
    ET.SubElement(beat, "source", mode="connect", host="127.0.0.1", service=str(port))
    ET.SubElement(ET.SubElement(beat, "target", type="isa-debug", port="1"), "model", name="isa-debugcon")
    ET.SubElement(beat, "address", type="isa", iobase=BEAT_PORT)


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
