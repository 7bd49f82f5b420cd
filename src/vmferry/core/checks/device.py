"""The guest's devices: drivers that the destination has, a state that QEMU can move; and none of its host."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case
from vmferry.core.device_claims import attached_blocker
from vmferry.core.errors import Blocker
from vmferry.core.wanted_devices import wanted_devices

#: What a destination says of devices that it has not.
_TOLD = ("device.no-function", "device.no-network", "device.none-free")
#: driver -> why its state cannot be moved today.
NOT_MIGRATABLE = {
    "vfio-pci": "a physical function or VF is bound to this host",
    "vfio-pci-nohotplug": "a physical function or VF is bound to this host",
    "usb-host": "the USB device is plugged into this host",
    "virtio-9p-pci": "a shared host directory stays behind while it is mounted",
    "ivshmem-plain": "its shared memory belongs to this host",
    "ivshmem-doorbell": "its shared memory belongs to this host",
}


def check_devices(case: Case) -> Iterator[Blocker]:
    """Every device can be built at the destination and has a state that can be moved."""
    if case.runtime.attached:
        yield attached_blocker(case.guest.spec.name, case.source.name, case.runtime.attached)
    yield from _check_wanted(case)
    for device in case.guest.devices:
        if device.driver not in case.destination.qemu.devices:
            version = ".".join(str(part) for part in case.destination.qemu.version)
            yield Blocker(
                "device.driver-missing",
                f"QEMU {version} on {case.destination.name} has no driver {device.driver} for device {device.id} of"
                f" guest {case.guest.spec.name}",
                f"install the package of QEMU on {case.destination.name} that has {device.driver}, or restart the"
                " guest without the device",
            )
        if device.driver in NOT_MIGRATABLE:
            yield Blocker(
                "device.not-migratable",
                f"device {device.id} ({device.driver}) of guest {case.guest.spec.name} cannot be moved:"
                f" {NOT_MIGRATABLE[device.driver]}",
                "detach the device from the guest before the migration, or give it a virtio device instead",
            )


def _check_wanted(case: Case) -> Iterator[Blocker]:
    """What the guest is to have of its host is there at the destination too, and it can let go what it has."""
    guest, functions = case.guest.spec.name, ", ".join(case.runtime.functions)
    for told in case.probe.without_devices:  # in the destination's words, of which some may be missing
        yield Blocker(
            told.code if told.code in _TOLD else _TOLD[0],
            told.what or f"guest {guest} cannot have on {case.destination.name} what it is to have of its host",
            told.fix or f"see `vmferry pf list {case.destination.name}`",
        )
    go_along = {one.wanted for one in case.migratable}
    if len(case.runtime.functions) > len(go_along) and case.runtime.run_state == "paused":
        yield Blocker(
            "device.cannot-let-go",
            f"guest {guest} stands still (paused) and has {functions} of {case.source.name}: its own system must let"
            " them go first",
            f"`vmferry guest resume {guest}`, and move it then",
        )
    for one in wanted_devices(case.guest):
        if one.id in go_along:
            continue
        if one.network is None and not one.may_detach:
            yield Blocker(
                "device.may-not-detach",
                f"{one} of guest {guest} stays on {case.source.name}, and what is in it",
                "allow in the guest's file that it is taken away, and another one given (may_detach = true), and start"
                " the guest anew",
            )
        elif not one.has_standby and not one.may_detach:
            yield Blocker(
                "device.no-standby",
                f"{one} of guest {guest} has no standby: the guest would be without that network while it moves",
                'give the card a standby (network = "bridge") in the guest\'s file, or allow it (may_detach = true),'
                " and start the guest anew",
            )
