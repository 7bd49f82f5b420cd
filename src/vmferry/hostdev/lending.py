"""Devices that guests are given: from the host's driver to VFIO, its file to the guest's user, and back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from pathlib import Path

from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import Broken, Refused
from vmferry.core.pci_devices import Inventory
from vmferry.hostdev.binding import bind, give_back
from vmferry.hostdev.inventory import Known, read_inventory
from vmferry.hostdev.names import name_of
from vmferry.hostdev.sysfs import Sysfs
from vmferry.hostdev.uses import disk_uses, holders

#: A process that has let go of a device, or that has ended, closes its file soon after.
_CLOSED_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.05
_UDEV, _SETTLE_S = "run/udev/control", 10


class DeviceLender:
    """Implements ports.host_devices.HostDevices.

    Args:
        sysfs: the kernel's files.
        root: where proc, dev and run are.
    """

    def __init__(self, sysfs: Sysfs, root: Path = Path("/")) -> None:
        self._sysfs = sysfs
        self._root = root
        self.changing = asyncio.Lock()  #: held while a device of this host is changed

    async def look(self) -> Inventory:
        """Return all PCI devices as they are now."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> Inventory:
        proc = self._root / "proc"
        return read_inventory(self._sysfs, Known(disk_uses(proc), holders(proc), name_of))

    async def lend(self, claim: DeviceClaim, uid: int | None) -> None:
        """Take a device from its driver, so that a guest's process can have it."""
        async with self.changing:
            await asyncio.to_thread(self._lend, claim, uid)

    def _lend(self, claim: DeviceClaim, uid: int | None) -> None:
        bind(self._sysfs, claim.address, holders=self._holders())
        try:
            self._hand_over(claim, uid)
        except OSError as error:
            self._give_back(claim)
            raise Broken(
                f"PCI device {claim.address}: its group's file cannot be given to user {uid}: {error}",
                fix="run the agent as root, or with CAP_CHOWN",
            ) from error

    def _hand_over(self, claim: DeviceClaim, uid: int | None) -> None:
        """Give the group's file to a user; what udev has to do with a new file comes first, and undoes nothing."""
        if uid is None:
            return
        if (self._root / _UDEV).exists():
            subprocess.run(["udevadm", "settle", f"--timeout={_SETTLE_S}"], check=False, stdin=subprocess.DEVNULL)
        file = self._root / "dev/vfio" / str(claim.iommu_group)
        os.chown(file, uid, -1)
        file.chmod(0o600)

    async def give_back(self, claim: DeviceClaim) -> None:
        """Let the host's own driver have a device again."""
        async with self.changing:
            await asyncio.to_thread(self._give_back, claim)

    def _give_back(self, claim: DeviceClaim) -> None:
        ends = time.monotonic() + _CLOSED_WITHIN_S
        while (user := self._holders().get(str(claim.iommu_group))) is not None:
            if time.monotonic() > ends:
                raise Refused(
                    f"PCI device {claim.address} is not given back: {user} has its IOMMU group {claim.iommu_group}",
                    fix="end that program, or take the device from it",
                    retry=True,
                )
            time.sleep(_LOOK_EVERY_S)
        if not claim.was_kept:
            give_back(self._sysfs, claim.address)
        elif os.geteuid() == 0:
            with contextlib.suppress(FileNotFoundError):  # the device is no more
                self._hand_over(claim, 0)

    def _holders(self) -> dict[str, str]:
        return holders(self._root / "proc")
