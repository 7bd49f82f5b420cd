"""A real libvirtd on a host with SR-IOV: a virtual function goes into a running guest and out of it, over VFIO."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.libvirt_loop import running_event_loop
from tests.nested.libvirtd import CARD, kvm_domain, start_guest, start_libvirt

from vmferry.core.errors import Broken, TimedOut
from vmferry.core.pci import PciAddress
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.libvirt import libvirt_missing
from vmferry.lab.nested import HostPlan
from vmferry.lab.nested.image import host_image
from vmferry.lab.nested.sriov import MEMORY_MIB, SriovHost
from vmferry.lab.processes import MARK
from vmferry.lab.registry import claim, destroy
from vmferry.lab.toolchain import cache_dir, find_qemus
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.devices import HostDevices, Pairing, plug, unplug
from vmferry.libvirt.devices.facts import VFIO

__all__ = ["running_event_loop"]

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.nested,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("nested"),
    pytest.mark.skipif(libvirt_missing() is not None, reason=str(libvirt_missing())),
]
ADDRESS, DAEMON = "10.79.0.1", 16509
VF = PciAddress.parse("01:10.0")
MAC = "52:54:00:00:00:09"
PLAN = GuestPlan("linux", memory_mib=160, working_set_mib=8, rate=1)


@pytest_asyncio.fixture
async def uri() -> AsyncIterator[str]:
    """The address of a libvirtd on a host with two virtual functions, on which a guest runs."""
    lab = claim()
    try:
        directory = lab.directory / "host-a"
        directory.mkdir(mode=0o700)
        port = free_port()
        forward = f"hostfwd=tcp:127.0.0.1:{port}-{ADDRESS}:{DAEMON}"
        wire = ["-netdev", f"user,id=wire,net=10.79.0.0/24,host=10.79.0.254,{forward}"]
        plan = HostPlan("host-a", "52:54:00:7e:00:01", f"{ADDRESS}/24", MEMORY_MIB)
        host = SriovHost(plan, host_image(cache_dir()), find_qemus()[0], directory, {**os.environ, MARK: lab.id}, wire)
        await host.start()
        try:
            await start_libvirt(host, DAEMON)
            await start_guest(host, await kvm_domain(PLAN))
            yield f"qemu+tcp://127.0.0.1:{port}/system"
        finally:
            await host.power_off()
    finally:
        destroy(lab)


def free_port() -> int:
    """Return a port of this machine that nobody has now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def test_a_virtual_function_goes_in_and_out(uri: str) -> None:
    """As a device and as a card with its MAC; a guest that stands still does not let go, and that is told."""
    connection = await LibvirtConnection.connect(uri, time_limit_s=120)
    host = HostDevices("host-a", connection)
    found = await host.devices()
    assert (found[VF].physical, found[VF].guest, found[VF].driver) == (CARD, None, None)
    assert found[CARD].functions[0] == VF
    assert found[VF].group == (VF,)

    for pairing in (None, Pairing(MAC)):
        await plug(host, PLAN.name, VF, pairing)
        given = await host.device(VF)
        assert (given.guest, given.driver) == (PLAN.name, VFIO)
        assert (MAC in (await host.held(PLAN.name))[VF]) == (pairing is not None)
        await asyncio.sleep(5)  # the guest's system takes it
        await unplug(host, PLAN.name, VF, within_s=90)
        back = await host.device(VF)
        assert (back.guest, back.driver) == (None, None)  # the host has no driver for it here

    await host.detach(VF)
    assert (await host.device(VF)).driver == VFIO
    with pytest.raises(Broken):  # a device of the host that is not this one's
        await host.detach(PciAddress.parse("0f:00.0"))
    await host.reattach(VF)
    assert (await host.device(VF)).driver is None

    await plug(host, PLAN.name, VF)
    await connection.suspend(PLAN.name)
    with pytest.raises(TimedOut, match="web-7 does not let go of 0000:01:10.0 of host-a"):
        await unplug(host, PLAN.name, VF, within_s=8)
    assert VF in await host.held(PLAN.name)
    await connection.close()
