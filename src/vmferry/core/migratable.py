"""Devices of a host whose state goes with the guest (VFIO migration): which, and whether those of two hosts fit. Pure.

Linux has drivers of VFIO for single sorts of devices (mlx5_vfio_pci, virtio_vfio_pci, ...), which write a device's
state out and read it in; plain vfio-pci does not. QEMU says in `blocked-reasons` which of a guest's devices it cannot
move.

Source: Linux include/uapi/linux/vfio.h, VFIO_DEVICE_FEATURE_MIGRATION; QEMU docs/devel/migration/vfio.rst,
hw/vfio/migration.c (vfio_migration_realize).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vmferry.core.device_claims import DeviceClaim
from vmferry.core.pci_devices import VFIO, PciDevice
from vmferry.core.units import GIB, Bytes

#: A device, and each GiB of a guest whose pages must be cleared first.
_PLUG_S, _PIN_GIB_S = 10.0, 3.0
_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


@dataclass(frozen=True, slots=True)
class MigratableDevice:
    """A device that could have the state of an equal one of another host."""

    wanted: str  #: which of its own it is to the guest
    ids: str  #: vendor:device
    driver: str  #: of VFIO


def kind_of(claim: DeviceClaim, device: PciDevice | None) -> MigratableDevice | None:
    """Return what a device is to another host; None: its driver knows of no state.

    Args:
        claim: of the device, for a guest.
        device: as it is now; None: it is gone.
    """
    return None if claim.wanted is None or device is None else kind_as(claim.wanted, device)


def kind_as(wanted: str, device: PciDevice) -> MigratableDevice | None:
    """Return the same of a device that nobody has."""
    if device.driver is None or not device.is_with_vfio or device.driver == VFIO:
        return None
    return MigratableDevice(wanted, device.ids, device.driver)


def is_blocked(claim: DeviceClaim, reasons: Sequence[str]) -> bool:
    """Return whether QEMU says that it cannot move a device: by its address, or of all such devices."""
    about = [reason.lower() for reason in reasons if "vfio" in reason.lower()]
    return any(str(claim.address) in reason or not _ADDRESS.search(reason) for reason in about)


def plugging_s(sent: Collection[MigratableDevice], memory_bytes: Bytes) -> float:
    """Return how much longer a destination may take to prepare for a guest with such devices: its memory is pinned."""
    return len(sent) * _PLUG_S + memory_bytes / GIB * _PIN_GIB_S if sent else 0.0


def agreed(
    here: Collection[MigratableDevice], there: Collection[MigratableDevice], *, postcopy: bool
) -> tuple[MigratableDevice, ...]:
    """Return which devices go with their guest: both hosts have the same, and no page is left behind them.

    Args:
        here: what the guest has at its source, and QEMU does not block.
        there: what it would be given at its destination.
        postcopy: whether it is allowed, which QEMU does not have beside such a device.
    """
    return () if postcopy else tuple(one for one in here if one in there)
