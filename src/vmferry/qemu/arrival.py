"""A frozen guest that somebody else wrote, a peer or an older journal: only what `freeze` writes goes to QEMU.

A machine type or a property that is passed on unread can name any file of this host (`pc-q35-7.2,initrd=FILE`,
`romfile`), and QEMU opens the former before it is confined.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping

from vmferry.core.errors import BadInput
from vmferry.core.guest import THROTTLE_PORT, TPM_DRIVER, Acceleration, FrozenDevice, FrozenGuest, KernelBoot
from vmferry.core.ids import is_name
from vmferry.qemu.freeze import DRIVERS, check_machine, check_spec

_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(,[A-Za-z0-9._-]+=(on|off))*(,enforce)?")
_ID = re.compile(r"[a-z]+[0-9]+")
_BUS = re.compile(r"pcie\.0|pci\.0|isa\.0|vser0\.0|ide\.[0-9]|rp[0-9]")
_ADDRESS = re.compile(r"(0x[0-9a-f]{1,2}(\.0x[0-7])?)?")

Value = str | int | bool
Rule = Callable[[Value], bool]


def _is_number(value: Value) -> bool:
    return type(value) is int and 0 <= value <= 0xFFFF


def _is_switch(value: Value) -> bool:
    return type(value) is bool


def _is_text(pattern: str) -> Rule:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


_PORT_NAME = _is_text(rf"org\.vmferry\.control|{re.escape(THROTTLE_PORT)}")
_DISK: Mapping[str, Rule] = {"bootindex": _is_number, "write-cache": _is_text("on|off")}
_NIC: Mapping[str, Rule] = {"mac": _is_text("[0-9a-f]{2}(:[0-9a-f]{2}){5}"), "romfile": _is_text("")}
#: of each driver: the properties that `freeze` writes, and what hangs on it
_PROPERTIES: Mapping[str, Mapping[str, Rule]] = {
    "e1000": _NIC,
    "ide-hd": {**_DISK, "unit": _is_number},
    "ide-cd": {**_DISK, "unit": _is_number},
    "isa-debugcon": {"iobase": _is_number},
    "isa-serial": {"index": _is_number},
    "pcie-root-port": {"chassis": _is_number, "port": _is_number, "multifunction": _is_switch},
    "pvpanic": {},
    TPM_DRIVER: {},
    "virtio-blk-pci": _DISK,
    "virtio-net-pci": {**_NIC, "failover": _is_switch},
    "virtio-serial-pci": {"max_ports": _is_number},
    "virtserialport": {"nr": _is_number, "name": _PORT_NAME},
}
_BACKENDS: Mapping[str, str] = {
    "e1000": "net[0-9]+",
    "ide-hd": "image[0-9]+",
    "ide-cd": "image[0-9]+",
    "isa-debugcon": "beat",
    "isa-serial": "console",
    TPM_DRIVER: "tpm",
    "virtio-blk-pci": "image[0-9]+",
    "virtio-net-pci": "net[0-9]+",
    "virtserialport": "control|throttle",
}


def check_frozen(guest: FrozenGuest, machines: frozenset[str]) -> None:
    """Check that a guest's frozen hardware is such as `freeze` writes.

    Args:
        guest: from wherever it comes.
        machines: those that this host's QEMU has.

    Raises:
        BadInput: it is not; says what was seen.
    """
    check_machine(guest.machine, machines)
    check_spec(guest.spec)
    check_cpu(guest.cpu)
    boot = guest.spec.boot
    problems = [
        (not is_name(guest.spec.name), f"name {guest.spec.name!r}"),
        (not _is_uuid(guest.uuid), f"UUID {guest.uuid!r}"),
        (guest.acceleration is Acceleration.AUTO, "an acceleration that was not decided"),
        (isinstance(boot, KernelBoot) and "\0" in boot.cmdline, "a kernel command line with a NUL"),
        *((True, why) for device in guest.devices for why in _why_not(device)),
    ]
    for wrong, what in problems:
        if wrong:
            raise BadInput(
                f"guest {guest.spec.name!r}: its frozen hardware has {what[:300]}, which no agent writes",
                fix="run the same vmferry version on both hosts; if it does, look who changed the guest",
            )


def check_cpu(cpu: str) -> None:
    """Check that a frozen CPU is a model with features, and nothing else.

    Raises:
        BadInput: it is not.
    """
    if _CPU.fullmatch(cpu) is None:
        raise BadInput(f"frozen CPU {cpu[:300]!r}: expected MODEL,FEATURE=on|off,...,enforce")


def _why_not(device: FrozenDevice) -> list[str]:
    """Return what is wrong with one device."""
    if device.driver not in DRIVERS:
        return [f"a device of driver {device.driver!r}"]
    rules = _PROPERTIES[device.driver]
    found = [
        f"device {device.id!r} ({device.driver}) with {name} = {value!r}"
        for name, value in device.properties
        if name not in rules or not rules[name](value)
    ]
    places = ((_ID, device.id), (_BUS, device.bus), (_ADDRESS, device.addr))
    found += [f"a device at {text!r}" for pattern, text in places if pattern.fullmatch(text) is None]
    wanted = _BACKENDS.get(device.driver)
    if not (device.backend is None if wanted is None else re.fullmatch(wanted, device.backend or "")):
        found.append(f"device {device.id!r} ({device.driver}) on {device.backend!r}")
    return found


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
