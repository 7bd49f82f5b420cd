"""Devices that guests are given: from the host's driver to VFIO, its file to the guest's user, and back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import Blocked, Broken, NotFound, Refused
from vmferry.core.functions import NO_MAC, FunctionSettings
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import Inventory, PciDevice
from vmferry.hostdev.binding import bind, give_back
from vmferry.hostdev.inventory import Known, read_inventory
from vmferry.hostdev.names import name_of
from vmferry.hostdev.netlink import Cards
from vmferry.hostdev.settings import read_settings, set_function
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
        cards: its network side.
        root: where proc, dev and run are.
    """

    def __init__(self, sysfs: Sysfs, cards: Cards, root: Path = Path("/")) -> None:
        self._sysfs = sysfs
        self._cards = cards
        self._root = root
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()

    async def alone(self, begin: Callable[[], Callable[[], object]]) -> None:
        """Change a device of this host in a thread, after all changes that were begun before.

        Who is cancelled meanwhile does not end the change, and the next one waits for it all the same.

        Args:
            begin: called when it is this change's turn; returns what the thread does.
        """
        task = asyncio.create_task(self._alone(begin))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    async def _alone(self, begin: Callable[[], Callable[[], object]]) -> None:
        async with self._changing:
            await asyncio.to_thread(begin())

    async def close(self) -> None:
        """Wait for the changes that were begun."""
        await asyncio.gather(*self._changes, return_exceptions=True)

    async def look(self) -> Inventory:
        """Return all PCI devices as they are now."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> Inventory:
        proc = self._root / "proc"
        return read_inventory(self._sysfs, Known(disk_uses(proc), holders(proc), name_of))

    async def lend(self, claim: DeviceClaim, uid: int | None, together: frozenset[PciAddress]) -> None:
        """Take a device from its driver, so that a guest's process can have it."""
        await self.alone(lambda: lambda: self._lend(claim, uid, together))

    def _lend(self, claim: DeviceClaim, uid: int | None, together: frozenset[PciAddress]) -> None:
        self._judge_again(claim, together)
        if not claim.was_kept:  # else a driver of VFIO has it already, perhaps one for such devices alone
            bind(self._sysfs, claim.address, holders=self._holders())
        try:
            self._hand_over(claim.iommu_group, uid)
        except OSError as error:
            self._give_back(claim)
            raise Broken(
                f"PCI device {claim.address}: its group's file cannot be given to user {uid}: {error}",
                fix="run the agent as root, with CAP_CHOWN and CAP_FOWNER",
            ) from error

    def _judge_again(self, claim: DeviceClaim, together: frozenset[PciAddress]) -> None:
        """Hold that the device is as it was when it was claimed: others may have changed it since."""
        found = self._look()
        device = _find(found, claim)
        if blockers := found.why_not(device, together):
            raise Blocked(f"{claim.address} cannot be given to a guest", blockers=blockers)
        is_lent = claim.wanted is not None and device.is_with_vfio  # it stays so while the guest is between two hosts
        if device.iommu_group != claim.iommu_group or device.is_with_vfio != (claim.was_kept or is_lent):
            raise Refused(
                f"PCI device {claim.address} was changed meanwhile: it is in group {device.iommu_group}, with driver"
                f" {device.driver or 'none'}",
                fix="try again",
                retry=True,
            )

    def _hand_over(self, group: int, uid: int | None) -> None:
        """Give a group's file to a user; what udev has to do with a new file comes first, and undoes nothing."""
        if uid is None:
            return
        if (self._root / _UDEV).exists():
            subprocess.run(["udevadm", "settle", f"--timeout={_SETTLE_S}"], check=False, stdin=subprocess.DEVNULL)
        file = self._file(group)
        file.chmod(0o600)
        os.chown(file, uid, -1)

    def _file(self, group: int) -> Path:
        return self._root / "dev/vfio" / str(group)

    async def give_back(self, claim: DeviceClaim) -> None:
        """Let the host's own driver have a device again."""
        await self.alone(lambda: lambda: self._give_back(claim))

    def _wait_let_go(self, claim: DeviceClaim) -> Inventory:
        """Wait until nobody has a device; return what there is then."""
        ends = time.monotonic() + _CLOSED_WITHIN_S
        while True:
            found = self._look()
            device = _find(found, claim)
            if device.user is None:
                return found
            if time.monotonic() > ends:
                raise Refused(
                    f"PCI device {claim.address} is not given back: {device.user} has its IOMMU group"
                    f" {device.iommu_group}",
                    fix="end that program, or take the device from it",
                    retry=True,
                )
            time.sleep(_LOOK_EVERY_S)

    async def read(self, address: PciAddress) -> FunctionSettings:
        """Return what a virtual function's card was told of it."""
        return await asyncio.to_thread(lambda: read_settings(self._cards, self._look(), address))

    async def tell(self, claim: DeviceClaim, wanted: FunctionSettings) -> None:
        """Tell a virtual function's card what is not so yet."""
        await self.alone(lambda: lambda: self._tell(claim, wanted))

    def _tell(self, claim: DeviceClaim, wanted: FunctionSettings) -> None:
        # no driver minds losing its address: whoever has the function still is about to let it go
        if self._news(claim, wanted)[0].given() and wanted.mac != NO_MAC:
            self._wait_let_go(claim)
        self._tell_now(claim, wanted)

    async def tell_again(self, claim: DeviceClaim, wanted: FunctionSettings) -> FunctionSettings:
        """Tell a virtual function's card what it was told before a guest got the function."""
        new, _ = await asyncio.to_thread(self._news, claim, wanted)
        if not new.given():  # as a rule: nobody is waited for
            return new
        changed: list[FunctionSettings] = []
        await self.alone(lambda: lambda: changed.append(self._tell_now(claim, wanted)))
        return changed[0]

    def _tell_now(self, claim: DeviceClaim, wanted: FunctionSettings) -> FunctionSettings:
        """Tell a card what is not so yet, whoever has the function; return what was so instead."""
        new, told = self._news(claim, wanted)
        if new.given():
            set_function(self._cards, read_inventory(self._sysfs), claim.address, new)
        there = told.given()
        return FunctionSettings(**{name: there[name] for name in new.given() if name in there})  # type: ignore[arg-type]

    def _news(self, claim: DeviceClaim, wanted: FunctionSettings) -> tuple[FunctionSettings, FunctionSettings]:
        """Return what a card is to be told that is not so yet, and what it was told."""
        found = read_inventory(self._sysfs)
        _find(found, claim)
        told = read_settings(self._cards, found, claim.address)
        if (told.vlan, wanted.vlan) == (None, 0):  # a card that knows none has none
            wanted = replace(wanted, vlan=None)
        return wanted.without(told), told

    def _give_back(self, claim: DeviceClaim) -> None:
        device = _find(self._wait_let_go(claim), claim)
        if claim.before.given():
            self._tell(claim, claim.before)
        if not claim.was_kept:
            give_back(self._sysfs, claim.address, holders=self._holders())
        if device.iommu_group is not None and os.geteuid() == 0 and self._file(device.iommu_group).exists():
            try:
                self._hand_over(device.iommu_group, 0)  # others of the group are with VFIO still
            except OSError as error:
                raise Broken(f"File of IOMMU group {device.iommu_group} cannot be given to root: {error}") from error

    def _holders(self) -> dict[str, str]:
        return holders(self._root / "proc")


def _find(found: Inventory, claim: DeviceClaim) -> PciDevice:
    device = found.devices.get(claim.address)
    if device is None:
        raise NotFound(f"There is no PCI device {claim.address} on this host", fix="see `vmferry pci list`")
    return device
