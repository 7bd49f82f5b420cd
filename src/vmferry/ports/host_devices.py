"""Devices of the host that guests are given: taking them from the host, and plugging them into a process."""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Protocol

from vmferry.core.device_claims import DeviceClaim
from vmferry.core.functions import FunctionSettings
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import Inventory


class HostDevices(Protocol):
    """This host's devices. Changes go one after the other."""

    async def look(self) -> Inventory:
        """Return all PCI devices as they are now."""

    async def lend(self, claim: DeviceClaim, uid: int | None, together: frozenset[PciAddress]) -> None:
        """Take a device from its driver, so that a guest's process can have it. Idempotent for what a guest wants.

        On failure the device is as before.

        Args:
            claim: of the device, journalled.
            uid: the process's user; None: the agent's own.
            together: all devices that the guest gets with it.

        Raises:
            NotFound: there is no such device (any more).
            Blocked: why it cannot be given to a guest any more.
            Refused: it is not as it was when it was claimed.
            Broken: the kernel does not do it, in its words.
        """

    async def read(self, address: PciAddress) -> FunctionSettings:
        """Return what a virtual function's card was told of it.

        Raises:
            NotFound, BadInput, Refused: there is no such function, or its card has no interface.
            Broken: the card does not say.
        """

    async def tell(self, claim: DeviceClaim, wanted: FunctionSettings) -> None:
        """Tell a virtual function's card what is not so yet; a process that still lets go of it is waited for.

        Its address is taken from it without waiting for anybody.

        On failure what was set before is set again.

        Raises:
            NotFound: there is no such device (any more).
            Refused: a program has it, or the card cannot do it.
            Broken: the card does not take it, in the kernel's words.
        """

    async def tell_again(self, claim: DeviceClaim, wanted: FunctionSettings) -> FunctionSettings:
        """Tell a virtual function's card what it was told before a guest got the function, which knows it by that.

        Nobody is waited for. On failure what was set before is set again.

        Returns:
            What others had told the card meanwhile.

        Raises:
            NotFound: there is no such device (any more).
            BadInput: it is no virtual function (any more).
            Refused: its card has no interface, or cannot do it.
            Broken: the card does not take it, in the kernel's words.
        """

    async def give_back(self, claim: DeviceClaim) -> None:
        """Let the host's own driver have a device again; a process that still lets go of it is waited for. Idempotent.

        A virtual function's card is told again what it was told before.

        Raises:
            NotFound: there is no such device any more.
            Refused: a program has it, or another of its group.
            Broken: the kernel does not do it, in its words.
        """


class Carrier(enum.StrEnum):
    """What carries the traffic of a guest's card that has a virtual function and a standby."""

    FUNCTION = "function"
    STANDBY = "standby"


class Standbys(Protocol):
    """This host's bridges, as they hear guests that have virtual functions besides. Never raises."""

    def heard(self, bridge: str, mac: str) -> Carrier | None:
        """Return where a bridge has heard a guest last; None: nowhere lately."""

    def forget(self, bridge: str, mac: str) -> None:
        """Have a bridge forget that it heard a guest from its standby, so that it asks everywhere."""


class DevicePlugs(Protocol):
    """The host's devices that one guest's process has.

    Raises, wherever nothing else is said: Broken or TimedOut, when the process does not do it.
    """

    async def plug(self, claim: DeviceClaim) -> None:
        """Give the guest a device, at once; the guest's system takes it when it likes, and nobody tells.

        On failure the process does not have it.

        Raises:
            Broken: the process does not take it, in its own words.
        """

    async def unplug(self, device: str) -> None:
        """Ask the guest to let a device go. Idempotent; UNPLUGGED or UNPLUG_REFUSED tells what it did.

        A guest that stands still, or whose system does not listen, does nothing; it may do so at any time later.
        """

    async def plugged(self) -> Collection[str]:
        """Return the ids of all devices that the process has, the host's and others."""
