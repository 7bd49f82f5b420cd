"""The guest's devices: drivers that the destination has, a state that QEMU can move; and none of its host."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case
from vmferry.core.device_claims import attached_blocker
from vmferry.core.errors import Blocker

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
