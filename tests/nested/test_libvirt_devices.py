"""A real libvirtd on a host with SR-IOV: a virtual function goes into a running guest and out of it, over VFIO."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from xml.etree import ElementTree as ET  # reads our own domain

import pytest
import pytest_asyncio
from tests.libvirt_loop import running_event_loop

from vmferry.core.errors import Broken, TimedOut
from vmferry.core.pci import PciAddress
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.guests import build
from vmferry.lab.libvirt import domain_xml, libvirt_missing
from vmferry.lab.libvirt.settings import ACCOUNTS, LIBVIRTD_CONF, QEMU_CONF
from vmferry.lab.nested import HostPlan
from vmferry.lab.nested.image import host_image
from vmferry.lab.nested.sriov import MEMORY_MIB, SriovHost
from vmferry.lab.processes import MARK
from vmferry.lab.registry import claim, destroy
from vmferry.lab.scenarios import wait_until
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
CARD, VF = PciAddress.parse("01:00.0"), PciAddress.parse("01:10.0")
MAC = "52:54:00:00:00:09"
EMULATOR = "/usr/bin/qemu-system-x86_64"
PLAN = GuestPlan("linux", memory_mib=160, working_set_mib=8, rate=1)
#: Until the guest's workload runs: 60 s on an idle machine.
GUEST_UP_S = 400.0


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
            await start_libvirt(host)
            await start_guest(host)
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


async def start_libvirt(host: SriovHost) -> None:
    """Make the virtual functions, and start the daemon."""
    await host.shell(f"echo 2 > {CARD.sysfs}/sriov_numvfs")
    for name, line in ACCOUNTS.items():
        await host.shell(f"grep -q '^{line.partition(':')[0]}:' /etc/{name} || printf '{line}' >> /etc/{name}")
    await host.shell("mkdir -p /etc/libvirt/qemu/networks /run/libvirt /var/lib/libvirt /var/log/libvirt")
    conf = LIBVIRTD_CONF.format(host_uuid="6f1c1a1e-0000-4000-8000-0000000000aa")
    for name, text in (("libvirtd", conf), ("qemu", QEMU_CONF)):
        await host.must("sh", "-c", f"cat > /etc/libvirt/{name}.conf", text=text)
    await host.shell("PATH=$PATH:/usr/sbin; setsid libvirtd --listen </dev/null >/run/libvirtd.log 2>&1 &")

    async def it_answers() -> bool:
        return (await host.run("virsh", "-c", "qemu:///system", "version", timeout_s=120)).exit_code == 0

    await wait_until(it_answers, "libvirtd answers", 240)


async def start_guest(host: SriovHost) -> None:
    """Run a guest with room for devices, and wait until its own system runs: it must let go of them."""
    image = await asyncio.to_thread(build, PLAN.kind, cache_dir())
    domain = ET.fromstring(domain_xml(PLAN, image, emulator=EMULATOR, cpu="qemu64", beat_port=5507))  # noqa: S314
    domain.set("type", "kvm")
    cpu, devices = domain.find("cpu"), domain.find("devices")
    assert cpu is not None
    assert devices is not None
    cpu.clear()
    cpu.set("mode", "host-passthrough")
    for index in range(4):
        model = "pcie-root-port" if index else "pcie-root"
        ET.SubElement(devices, "controller", type="pci", model=model, index=str(index))
    await host.must("sh", "-c", "cat > /run/web-7.xml", text=ET.tostring(domain, encoding="unicode"))
    await host.must("virsh", "-c", "qemu:///system", "create", "/run/web-7.xml", timeout_s=240)

    async def it_runs() -> bool:
        await asyncio.sleep(2)
        return "built-in shell" in await host.must("cat", "/var/log/libvirt/console.log")

    await wait_until(it_runs, "the guest's system runs", GUEST_UP_S)


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
