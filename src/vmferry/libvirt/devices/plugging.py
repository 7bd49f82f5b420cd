"""Gives a running guest a device of its host, and takes it back: the guest has to let go, and may not.

libvirt only asks the guest (ACPI or PCIe hot-plug). The device is free when it is no longer in the running domain's
XML: libvirt takes it out when QEMU says DEVICE_DELETED. That is looked at rather than libvirt's event, which is lost
when the daemon restarts in between.
"""

from __future__ import annotations

import asyncio
import time

from vmferry.core.errors import Blocked, NotFound, Refused, TimedOut
from vmferry.core.pci import PciAddress
from vmferry.libvirt.devices.checks import check_plug
from vmferry.libvirt.devices.elements import Pairing, device_xml
from vmferry.libvirt.devices.host import HostDevices

_LOOK_EVERY_S = 0.2


async def plug(
    host: HostDevices, guest: str, address: PciAddress, pairing: Pairing | None = None, *, define: bool = False
) -> None:
    """Give a running domain a device of its host.

    Args:
        host: the host of both.
        guest: the domain.
        address: of the device.
        pairing: where it is a network card with a MAC, or one half of a failover pair.
        define: have it in the domain's definition too, for its next start.

    Raises:
        NotFound: the host has no such device, or no such domain.
        Blocked: it cannot be given; nothing was touched.
        Refused: the domain has it already, or is not defined.
        Broken: libvirt or QEMU failed, in its words.
    """
    device = await host.device(address)
    held = await host.held(guest)
    if address in held:
        raise Refused(f"domain {guest} has {address} already", fix=f"see `vmferry device show {host.name} {address}`")
    await _check_defined(host, guest, define=define)
    devices = await host.devices()
    if blockers := tuple(check_plug(host.name, guest, device, devices)):
        raise Blocked(f"{address} of {host.name} cannot be given to domain {guest}", blockers=blockers)
    await host.attach_to(guest, device_xml(address, pairing), defined=define)
    if address not in await host.held(guest):
        raise Refused(
            f"libvirt on {host.name} says that domain {guest} has {address} now, and its XML does not have it",
            fix=f"look at `virsh dumpxml {guest}` and at the log of libvirtd on {host.name}",
        )


async def unplug(
    host: HostDevices, guest: str, address: PciAddress, *, define: bool = False, within_s: float = 30.0
) -> float:
    """Take a device from a running domain; return in how many seconds the guest let go.

    Args:
        host: the host of both.
        guest: the domain.
        address: of the device.
        define: take it out of the domain's definition too.
        within_s: how long the guest may take.

    Raises:
        NotFound: the domain does not have it, or is not there.
        TimedOut: the guest does not let go; it has the device still, and may let go later.
        Broken: libvirt does not ask it, or the guest refused, in libvirt's words.
    """
    element = (await host.held(guest)).get(address)
    if element is None:
        raise NotFound(f"domain {guest} does not have {address}", fix=f"see `vmferry device list {host.name}`")
    await _check_defined(host, guest, define=define)
    began = time.monotonic()
    await host.detach_from(guest, element, defined=define)
    while address in await host.held(guest):
        if time.monotonic() - began > within_s:
            raise TimedOut(
                f"domain {guest} does not let go of {address} of {host.name}: it has it still, {within_s:g} s after",
                fix="the guest's system must run and have PCI hot-plug; what it lets go later is free then, see"
                f" `vmferry device show {host.name} {address}`",
                retry=True,
            )
        await asyncio.sleep(_LOOK_EVERY_S)
    return time.monotonic() - began


async def _check_defined(host: HostDevices, guest: str, *, define: bool) -> None:
    if define and not await host.is_defined(guest):
        raise Refused(f"domain {guest} is transient: it has no definition to change", fix="leave --define out")
