"""What the machine is beside its devices: ACPI, SMM, clock, sleep.

Source: libvirt docs/formatdomain.rst (9.0), Hypervisor features, Time keeping, Power Management; QEMU
docs/system/invocation (-rtc base=utc, which all guests have).
"""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree as ET  # makes XML, reads none

from vmferry.libvirt.findings import Findings, short
from vmferry.libvirt.making import add
from vmferry.libvirt.tree import Element

CARRIED: Final = (
    ("features/acpi", "every guest has it"),
    ("features/smm", "every guest has it (the machine type's own)"),
    ("clock/@offset", "UTC, as every guest has it"),
)

#: (timer, attribute, value) that is what guests have; anything else of a timer is asked for
_USUAL_TIMERS = {
    *((name, "present", "yes") for name in ("hpet", "pit", "rtc", "kvmclock")),
    ("hypervclock", "present", "no"),
    ("pit", "tickpolicy", "delay"),
    ("rtc", "tickpolicy", "delay"),
}


def read_platform(domain: Element, found: Findings) -> None:
    """Compare with what every guest has; nothing of it can be chosen."""
    _read_features(domain, found)
    clock = domain.one("clock")
    if clock is not None:
        _read_clock(clock, found)


def write_platform(root: ET.Element) -> None:
    """Write what every guest has."""
    add(add(root, "features"), "acpi")
    add(root, "clock", offset="utc")


def _read_features(domain: Element, found: Findings) -> None:
    features = domain.one("features")
    if features is None or features.one("acpi") is None:
        found.ask(features or domain, "no <acpi/>: the guest has none", "features")
    smm = features.one("smm") if features is not None else None
    if smm is not None and smm.get("state") == "off":
        found.ask(smm, "state='off'", "features")


def _read_clock(clock: Element, found: Findings) -> None:
    offset, adjustment = clock.get("offset") or "utc", clock.get("adjustment") or "0"
    basis = clock.get("basis") or "utc"
    for name in ("timezone", "start"):
        clock.get(name)  # said only beside another offset
    utc = offset == "utc" or (offset == "variable" and basis == "utc")
    if not utc or adjustment not in {"0", "reset"}:
        found.ask(clock, f"offset={short(offset)} adjustment={short(adjustment)}", "clock")
    for timer in clock.every("timer"):
        _read_timer(timer, found)


def _read_timer(timer: Element, found: Findings) -> None:
    name = timer.get("name") or ""
    said = [key for key in timer.attributes if key != "name"]
    unusual = [f"{key}={short(timer.get(key))}" for key in said if (name, key, timer.get(key)) not in _USUAL_TIMERS]
    if unusual or timer.children:
        timer.read_whole()
        found.ask(timer, " ".join([short(name), *unusual]), "timer")
