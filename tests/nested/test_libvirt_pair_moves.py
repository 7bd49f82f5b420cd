"""A guest of two real libvirtds with a failover pair moves between two cards: the destination's function is its own."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree as ET  # reads our own domain

import pytest
import pytest_asyncio
from tests.nested.libvirtd import kvm_domain, start_guest, start_libvirt

from vmferry.agent.config import DEFAULT_PORT
from vmferry.core.errors import Broken
from vmferry.core.pci import PciAddress
from vmferry.lab.commands import Ran, run_command
from vmferry.lab.enrolment import operator_environment
from vmferry.lab.guest_plans import GUEST_ADDRESS, NicPlan, linux_guest
from vmferry.lab.libvirt import libvirt_missing
from vmferry.lab.libvirt.domain import CONSOLE_SOCKET
from vmferry.lab.nested import NestedHost, NestedLab
from vmferry.lab.nested.sriov import BRIDGE, SriovHost
from vmferry.lab.scenarios import wait_until
from vmferry.libvirt.devices import Pairing
from vmferry.libvirt.devices.elements import device_xml

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.nested,
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("nested"),
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(libvirt_missing() is not None, reason=str(libvirt_missing())),
]
GUEST, MAC, STANDBY = "web-7", "52:54:00:00:07:07", "ua-standby"
#: The function that the guest has on each host.
FUNCTIONS = {"host-a": PciAddress.parse("01:10.0"), "host-b": PciAddress.parse("01:10.2")}
PLAN = replace(
    linux_guest(GUEST, memory_mib=128, rate=1, bridge=True), working_set_mib=8, beat_us=5000, nics=(NicPlan("virtio"),)
)
_SEEN = "echo seen $(for net in /sys/class/net/eth*; do d=$(readlink $net/device/driver); echo ${d##*/}; done)\n"


@dataclass
class Place:
    """Two hosts with libvirt, and an operator who is on this machine."""

    hosts: dict[str, SriovHost]
    operator: Path

    async def cli(self, *arguments: str, timeout_s: float = 300.0) -> Ran:
        """Run the operator's command line."""
        env = {**os.environ, **operator_environment(self.operator)}
        return await run_command([sys.executable, "-m", "vmferry", *arguments], env, timeout_s)

    async def must(self, *arguments: str) -> str:
        """Run it and return what it printed."""
        ran = await self.cli(*arguments)
        assert ran.exit_code == 0, ran
        return ran.stdout


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def place(sriov_lab: NestedLab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """A guest runs on the first, with a function and a standby."""
    hosts = {name: host for name, host in sriov_lab.hosts.items() if isinstance(host, SriovHost)}
    made = Place(hosts, tmp_path_factory.mktemp("operator"))
    try:
        for number, (name, host) in enumerate(hosts.items(), 1):
            if not host.is_up:
                await host.start()
            await host.make_bridge(f"10.78.0.{number}/24")
            await start_libvirt(host, DEFAULT_PORT, 2)
            uri = f"qemu+tcp://127.0.0.1:{host.plan.operator_port}/system"
            peer = f"qemu+tcp://{host.plan.ip}:{DEFAULT_PORT}/system"
            await made.must("host", "add", name, "--libvirt", uri, "--peer-uri", peer)
        await start_guest(hosts["host-a"], with_pair(await kvm_domain(PLAN)))
        yield made
    finally:
        for host in hosts.values():
            if host.is_up:  # it is left to nobody: the next test powers it on again
                await host.power_off()


def with_pair(domain: ET.Element) -> ET.Element:
    """Give a domain's card the other half: a function of the first host."""
    devices, standby = domain.find("devices"), domain.find("devices/interface")
    assert devices is not None
    assert standby is not None
    source = standby.find("source")
    assert source is not None
    source.set("bridge", BRIDGE)
    ET.SubElement(standby, "mac", address=MAC)
    ET.SubElement(standby, "alias", name=STANDBY)
    ET.SubElement(standby, "teaming", type="persistent")
    devices.append(ET.fromstring(device_xml(FUNCTIONS["host-a"], Pairing(MAC, STANDBY))))  # noqa: S314
    return domain


async def drivers(host: NestedHost) -> list[str]:
    """Return the drivers of the guest's network cards, as its own system has them."""
    code = (
        f"import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect('{CONSOLE_SOCKET}')"
        "; s.sendall(sys.argv[1].encode())"
        "; print(next(l for l in s.makefile('r', errors='replace') if l.startswith('seen ')))"
    )
    return (await host.python(code, _SEEN)).split()[1:]


async def wait_pair(place: Place, name: str) -> None:
    """Wait until the guest has its function in use on a host, and answers the other one."""
    other = next(host for host in place.hosts if host != name)

    async def has_both() -> bool:
        with contextlib.suppress(Broken):  # a shell that begins does not hear
            return {"igbvf", "virtio_net"} <= set(await drivers(place.hosts[name]))
        return False

    await wait_until(has_both, f"the guest's system on {name} has both cards", 240)

    async def answers() -> bool:
        ran = await place.hosts[other].run("busybox", "ping", "-c", "3", "-W", "2", GUEST_ADDRESS)
        return ran.exit_code == 0

    await wait_until(answers, f"the guest answers {other}", 120)


async def owner(place: Place, name: str) -> str | None:
    """Return which guest has the host's function."""
    shown = json.loads(await place.must("device", "show", name, str(FUNCTIONS[name]), "--json"))
    found: str | None = shown["guest"]
    return found


async def test_there_and_back(place: Place) -> None:
    """Each host's function by its own address; the one that is left is free again."""
    await wait_pair(place, "host-a")
    for source, destination in (("host-a", "host-b"), ("host-b", "host-a")):
        mapped = f"device:{FUNCTIONS[source]}={FUNCTIONS[destination]}"
        checked = await place.cli("check", GUEST, destination, "--plain", "--map", mapped)
        assert checked.exit_code == 0, checked
        moved = await place.must("migrate", GUEST, destination, "--plain", "--map", mapped)
        assert f"{GUEST} runs on {destination}" in moved
        await wait_pair(place, destination)
        assert (await owner(place, source), await owner(place, destination)) == (None, GUEST)
