"""The serial console, the beat's port and the channels.

Every guest has one serial port, COM1; its host's end is the agent's (a log, and `vmferry guest console`).

Source: libvirt docs/formatdomain.rst (9.0), Consoles, serial, parallel & channel devices.
"""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.core.guest import CONTROL_PORT, THROTTLE_PORT, GuestSpec
from vmferry.libvirt.findings import Findings
from vmferry.libvirt.making import add
from vmferry.libvirt.tree import Element

CARRIED: Final = (
    ("devices/serial (COM1), devices/console", "the serial port that every guest has"),
    ("devices/serial (isa-debugcon at 0xe9)", "`beat`"),
    (f"devices/channel ({CONTROL_PORT})", "`control`"),
    (f"devices/channel ({THROTTLE_PORT})", "`throttle`"),
)

BEAT_PORT = "0xe9"
_COM1 = {"iobase": {None, "0x3f8", "0x03f8"}, "irq": {None, "0x4", "0x04", "4"}}


def read_serials(devices: Element, found: Findings) -> bool:
    """Compare with the one serial port that every guest has, and return whether the guest beats."""
    beats, com1 = False, False
    for serial in devices.every("serial"):
        if not beats and _is_beat(serial):
            beats = True
            serial.read_whole()
        elif not com1 and _is_com1(serial):
            com1 = True
        else:
            serial.give_back()
    for console in devices.every("console"):
        if _is_console_of_serial(console):
            com1 = True
            console.read_whole()
        else:
            console.give_back()
    if not com1:
        found.tell(devices, "no serial port", "the guest gets one, COM1, as every guest has it")
    return beats


def read_channels(devices: Element) -> frozenset[str]:
    """Return the names of the channels that a guest file knows; the others stay unread."""
    known = set()
    for channel in devices.every("channel"):
        target = channel.one("target")
        name = target.get("name") if target is not None and target.get("type") == "virtio" else None
        if name in {CONTROL_PORT, THROTTLE_PORT} and name not in known:
            channel.get("type")
            known.add(name)
        else:
            channel.give_back()
    return frozenset(known)


def write_consoles(spec: GuestSpec, devices: ET.Element) -> None:
    """Write COM1 on a pseudo-terminal, the beat's port into the void, and channels on sockets that libvirt names."""
    serial = add(devices, "serial", type="pty")
    add(add(serial, "target", type="isa-serial", port="0"), "model", name="isa-serial")
    add(add(devices, "console", type="pty"), "target", type="serial", port="0")
    if spec.beat:
        beat = add(devices, "serial", type="null")
        add(add(beat, "target", type="isa-debug", port="1"), "model", name="isa-debugcon")
        add(beat, "address", type="isa", iobase=BEAT_PORT)
    for name in [CONTROL_PORT] * spec.control + [THROTTLE_PORT] * spec.throttle:
        add(add(devices, "channel", type="unix"), "target", type="virtio", name=name)


def _is_com1(serial: Element) -> bool:
    """Tell whether it is the first ISA serial port, which libvirt assumes where nothing is said."""
    serial.get("type")
    target, address = serial.one("target"), serial.one("address")
    if address is not None and (
        address.get("type") != "isa" or any(address.get(key) not in usual for key, usual in _COM1.items())
    ):
        return False
    if target is None:
        return True
    kind, port, model = target.get("type") or "isa-serial", target.get("port") or "0", target.one("model")
    return kind == "isa-serial" and port == "0" and (model is None or model.get("name") == "isa-serial")


def _is_beat(serial: Element) -> bool:
    target, address = serial.one("target"), serial.one("address")
    model = target.one("model") if target is not None else None
    name = model.get("name") if model is not None else None
    return name == "isa-debugcon" and (address is None or address.get("iobase") in {None, BEAT_PORT, "0x00e9"})


def _is_console_of_serial(console: Element) -> bool:
    """Tell whether it is the serial port's other name, which libvirt writes beside it."""
    target = console.one("target")
    return target is None or (
        target.attributes.get("type", "serial") == "serial" and target.attributes.get("port", "0") == "0"
    )
