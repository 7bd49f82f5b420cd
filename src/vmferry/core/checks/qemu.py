"""The two QEMUs: machine type, capabilities that the hand-over stands on, and pairs of versions known not to work."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case, name_list
from vmferry.core.errors import Blocker
from vmferry.core.guest import Acceleration
from vmferry.core.host import HostFacts

#: capability -> what the hand-over would not have without it.
NEEDED_CAPABILITIES = {
    "events": "QEMU would not say when a round or the migration ends",
    "return-path": "the destination's own word would be missing",
    "pause-before-switchover": "there would be no moment to hold before the last pages",
    "late-block-activate": "the destination would take the disks before it owns the guest",
}

#: The oldest QEMU of which it was measured that no write of a TCG guest is lost (7.2: lost; between them: not tried).
SAFE_TCG_VERSION = (10, 0, 0)
#: 8.0.0 gave PCIe ports a register (PCI_ERR_UNCOR_MASK) under old machine types too; later versions took it back there.
BROKEN_PCIE_VERSION = (8, 0, 0)


def check_machine(case: Case) -> Iterator[Blocker]:
    """The destination knows the guest's versioned machine type."""
    machine = case.guest.machine
    there = case.destination
    if machine in there.qemu.machines:
        return
    family = machine.rpartition("-")[0]
    common = {name for name in case.source.qemu.machines & there.qemu.machines if name.rpartition("-")[0] == family}
    newest = max(common, key=_machine_version, default=None)
    yield Blocker(
        "machine.missing",
        f"QEMU {_version(there)} on {there.name} does not know machine type {machine} of guest"
        f" {case.guest.spec.name}; both hosts have {name_list(sorted(common, key=_machine_version, reverse=True))}",
        f'restart the guest with machine = "{newest}" in its file, or update QEMU on {there.name}'
        if newest
        else f"update QEMU on {there.name} to a version with {machine}, or choose another host",
    )


def check_capabilities(case: Case) -> Iterator[Blocker]:
    """Both QEMUs have every migration capability on which the hand-over stands (asked over QMP, not by version)."""
    for host in (case.source, case.destination):
        for capability, consequence in NEEDED_CAPABILITIES.items():
            if capability in host.qemu.capabilities:
                continue
            yield Blocker(
                "qemu.capability-missing",
                f"QEMU {_version(host)} on {host.name} has no migration capability {capability}: {consequence}",
                f"update QEMU on {host.name} (7.2 and 10.0 are tested)"
                + ("" if host is case.destination else " and restart the guest under it"),
            )


def check_tcg_source(case: Case) -> Iterator[Blocker]:
    """QEMU at the source does not lose writes of a running TCG guest while it copies its memory.

    7.2 does: moved by plain QMP, 11 of 12 guests arrived with stale pages after six rounds (`bench/tcg_writes.py`).
    KVM has a dirty log of its own and is not concerned; a paused guest writes nothing.
    """
    guest = case.guest
    if guest.acceleration is not Acceleration.TCG or case.runtime.run_state != "running":
        return
    if case.source.qemu.version >= SAFE_TCG_VERSION:
        return
    yield Blocker(
        "qemu.tcg-loses-writes",
        f"QEMU {_version(case.source)} on {case.source.name} loses writes of guest {guest.spec.name} while it copies"
        " its memory, because the guest runs under TCG; 10.0 or newer is known not to",
        f"pause it for the move (`vmferry guest pause {guest.spec.name}`, resume it there), or update QEMU on"
        f" {case.source.name} and restart the guest",
    )


def check_known_incompatibilities(case: Case) -> Iterator[Blocker]:
    """The two versions are not a pair that is known to fail although QMP says nothing about it.

    Source: QEMU, hw_compat_7_2 `x-pcie-err-unc-mask`; option ROM sizes of the ipxe packages.
    """
    if case.source.qemu.version[:2] == case.destination.qemu.version[:2]:
        return
    yield from _roms(case)
    ports = [device.id for device in case.guest.devices if device.driver == "pcie-root-port"]
    if not ports or _machine_version(case.guest.machine) >= BROKEN_PCIE_VERSION[:2]:
        return
    for host in (case.source, case.destination):
        if host.qemu.version == BROKEN_PCIE_VERSION:
            yield Blocker(
                "qemu.known-incompatibility",
                f"QEMU {_version(host)} on {host.name} builds PCIe ports ({name_list(ports)}) of guest"
                f" {case.guest.spec.name} ({case.guest.machine}) unlike other versions (PCI_ERR_UNCOR_MASK);"
                " loading would fail",
                f"update QEMU on {host.name} to 8.1 or newer",
            )


def _roms(case: Case) -> Iterator[Blocker]:
    """Find network cards with an option ROM, whose size differs between two versions' packages."""
    for device in case.guest.devices:
        if not device.driver.startswith(("virtio-net-pci", "e1000")):
            continue
        if any(name == "romfile" for name, _ in device.properties):
            continue
        yield Blocker(
            "qemu.known-incompatibility",
            f"device {device.id} ({device.driver}) of guest {case.guest.spec.name} carries an option ROM whose size"
            f" differs between QEMU {_version(case.source)} and {_version(case.destination)}; loading would fail",
            "restart the guest: vmferry builds network cards without a ROM since then",
        )


def _machine_version(machine: str) -> tuple[int, ...]:
    """Order machine types by the version at their end; those without one come first."""
    return tuple(int(part) for part in machine.rpartition("-")[2].split(".") if part.isascii() and part.isdigit())


def _version(host: HostFacts) -> str:
    return ".".join(str(part) for part in host.qemu.version)
