"""A libvirtd of its own in a nested host, and guests for it."""

from __future__ import annotations

import asyncio
from xml.etree import ElementTree as ET  # reads our own domain

from vmferry.core.pci import PciAddress
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.guests import build
from vmferry.lab.libvirt import domain_xml
from vmferry.lab.libvirt.domain import CONSOLE_LOG
from vmferry.lab.libvirt.settings import ACCOUNTS, LIBVIRTD_CONF, QEMU_CONF
from vmferry.lab.nested import NestedHost
from vmferry.lab.scenarios import wait_until
from vmferry.lab.toolchain import cache_dir

CARD = PciAddress.parse("01:00.0")
EMULATOR = "/usr/bin/qemu-system-x86_64"
_ROOM = 4  #: ports for devices that come later, and the root
#: Until the guest's workload runs: 60 s on an idle machine.
_GUEST_UP_S = 400.0


async def start_libvirt(host: NestedHost, port: int, functions: int = 2) -> None:
    """Make virtual functions, and start the daemon; it listens on a port for everybody.

    Raises:
        TimedOut: it does not answer.
    """
    await host.shell(f"echo {functions} > {CARD.sysfs}/sriov_numvfs")
    for name, line in ACCOUNTS.items():
        await host.shell(f"grep -q '^{line.partition(':')[0]}:' /etc/{name} || printf '{line}' >> /etc/{name}")
    await host.shell("mkdir -p /etc/libvirt/qemu/networks /run/libvirt /var/lib/libvirt /var/log/libvirt")
    uuid = f"6f1c1a1e-0000-4000-8000-0000000000{host.plan.mac[-2:]}"
    conf = LIBVIRTD_CONF.format(host_uuid=uuid) + f'tcp_port = "{port}"\n'
    for name, text in (("libvirtd", conf), ("qemu", QEMU_CONF)):
        await host.must("sh", "-c", f"cat > /etc/libvirt/{name}.conf", text=text)
    await host.shell("PATH=$PATH:/usr/sbin; setsid libvirtd --listen </dev/null >/run/libvirtd.log 2>&1 &")

    async def it_answers() -> bool:
        return (await host.run("virsh", "-c", "qemu:///system", "version", timeout_s=120)).exit_code == 0

    await wait_until(it_answers, f"libvirtd of {host.plan.name} answers", 240)


async def kvm_domain(plan: GuestPlan) -> ET.Element:
    """Return a guest's domain with the host's CPU and room for devices."""
    image = await asyncio.to_thread(build, plan.kind, cache_dir())
    domain = ET.fromstring(domain_xml(plan, image, emulator=EMULATOR, cpu="qemu64", beat_port=5507))  # noqa: S314
    domain.set("type", "kvm")
    cpu, devices = domain.find("cpu"), domain.find("devices")
    assert cpu is not None
    assert devices is not None
    cpu.clear()
    cpu.set("mode", "host-passthrough")
    for index in range(_ROOM):
        model = "pcie-root-port" if index else "pcie-root"
        ET.SubElement(devices, "controller", type="pci", model=model, index=str(index))
    return domain


async def start_guest(host: NestedHost, domain: ET.Element) -> None:
    """Run a domain, and wait until its own system runs: it must let go of devices."""
    await host.must("sh", "-c", "cat > /run/domain.xml", text=ET.tostring(domain, encoding="unicode"))
    await host.must("virsh", "-c", "qemu:///system", "create", "/run/domain.xml", timeout_s=240)

    async def it_runs() -> bool:
        await asyncio.sleep(2)
        return "built-in shell" in await host.must("cat", CONSOLE_LOG)

    await wait_until(it_runs, "the guest's system runs", _GUEST_UP_S)
