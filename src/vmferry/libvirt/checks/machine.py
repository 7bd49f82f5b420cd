"""Acceleration, machine type and emulator."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmferry.core.errors import Blocker
from vmferry.libvirt.checks.case import Case, XmlBlocker
from vmferry.libvirt.checks.editing import diff_by
from vmferry.libvirt.rewrites import set_emulator


def check_acceleration(case: Case) -> Iterator[Blocker]:
    """The destination runs domains of this kind: KVM's goes on with KVM."""
    kind, there = case.domain.attributes.get("type", ""), case.destination
    if kind not in there.accelerations:
        yield Blocker(
            "accelerator.differs",
            f"domain {case.name} runs with {kind}, libvirt on {there.host} has"
            f" {', '.join(sorted(there.accelerations)) or 'no emulator for x86_64'}",
            f"choose another host, or make {kind} work on {there.host} (its CPU's virtualisation, /dev/kvm)",
        )


def check_machine(case: Case) -> Iterator[Blocker]:
    """QEMU at the destination knows the domain's machine type."""
    machine, there = case.attribute("os/type", "machine"), case.destination
    if machine not in there.machines:
        same = [known for known in there.machines if known.startswith(machine.rpartition("-")[0] + "-")]
        known = f"; of that family it has at most {max(same, key=_version)}" if machine and same else ""
        yield Blocker(
            "machine.missing",
            f"domain {case.name} is a {machine or 'machine of no type'}, unknown to QEMU on {there.host}{known}",
            f"put a newer QEMU on {there.host}: a running domain cannot become another machine",
        )


def _version(machine: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", machine.rpartition("-")[2])]


def check_emulator(case: Case) -> Iterator[Blocker]:
    """The program that the domain's XML names runs at the destination."""
    emulator, there = next(case.every("devices/emulator"), None), case.destination
    if there.emulator_error is None or emulator is None or case.attribute("os/type", "machine") not in there.machines:
        return  # of a machine that is unknown there no emulator has anything to say
    path, offered = emulator.text, there.emulator

    yield XmlBlocker(
        "emulator.missing",
        f"domain {case.name} runs {path}, which libvirt on {there.host} cannot: {there.emulator_error}",
        f"give the destination its own emulator (virsh migrate --xml), or install QEMU at that path on {there.host}",
        diff_by(case.domain, lambda xml: set_emulator(xml, offered)) if offered and offered != path else "",
    )
