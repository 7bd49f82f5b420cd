from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmferry.core.guest import GuestSpec, IoPath, KernelBoot, NetworkKind, UefiBoot
from vmferry.core.units import MIB
from vmferry.guestfile import parse_guest_file
from vmferry.lab.guest_plans import GUEST_ADDRESS, DiskPlan, GuestPlan, NicPlan, debian_guest, linux_guest, micro_guest
from vmferry.lab.guests import GuestImage

LINUX = GuestImage("linux", Path("/c/vmlinux"), Path("/c/initrd"), "console=ttyS0 quiet", (), None, None, "0")
DEBIAN = GuestImage("debian", None, None, "", (Path("/l/a.qcow2"),), Path("/c/code.fd"), Path("/l/a.fd"), "0")
MICRO = GuestImage("micro", Path("/c/micro.elf"), None, "", (), None, None, "0")


def parsed(plan: GuestPlan, image: GuestImage) -> GuestSpec:
    """Return what the guest file's own reader makes of a plan."""
    return parse_guest_file(plan.toml(image), "plan.toml")


def test_the_linux_plan_is_a_valid_guest_file() -> None:
    """The guest file says memory, workload, address, beat and control as planned."""
    spec = parsed(linux_guest("web-7", memory_mib=512, rate=20, bridge=True), LINUX)
    assert isinstance(spec.boot, KernelBoot)
    assert spec.memory_bytes == 512 * MIB
    assert spec.boot.cmdline.startswith("console=ttyS0 quiet mb=64 rate=20 ")
    assert f"ip={GUEST_ADDRESS}/24" in spec.boot.cmdline
    assert (spec.beat, spec.control) == (True, True)
    assert spec.nics[0].bridge == "br0"


def test_a_linux_plan_can_be_throttled() -> None:
    """With the throttle the guest has the port and its workload runs under the helper; otherwise neither."""
    plan = linux_guest("web-7", memory_mib=256, rate=20, bridge=False)
    for throttle in (True, False):
        spec = parsed(replace(plan, throttle=throttle), LINUX)
        assert isinstance(spec.boot, KernelBoot)
        assert spec.throttle is throttle
        assert ("throttle=on" in spec.boot.cmdline) is throttle


def test_the_micro_plan_is_a_valid_guest_file() -> None:
    """The micro guest has no initrd and no control channel, and beats."""
    spec = parsed(micro_guest(), MICRO)
    assert isinstance(spec.boot, KernelBoot)
    assert spec.boot.initrd is None
    assert (spec.beat, spec.control) == (True, False)


def test_the_debian_plan_boots_by_uefi_from_its_own_disk() -> None:
    """The guest file names firmware code, the guest's own variables, and its own disk before any other."""
    plan = replace(debian_guest(), disks=(DiskPlan(Path("/d/data.qcow2")),))
    spec = parsed(plan, DEBIAN)
    assert spec.boot == UefiBoot(code="/c/code.fd", nvram="/l/a.fd")
    assert [disk.path for disk in spec.disks] == ["/l/a.qcow2", "/d/data.qcow2"]
    assert (spec.beat, spec.control, spec.echo) == (True, True, f"{GUEST_ADDRESS}:7007")


@pytest.mark.parametrize("bridge", [True, False])
def test_a_guest_has_an_address_only_on_a_bridge(bridge: bool) -> None:
    """The fabric's address belongs to a NIC on the bridge; user networking hands out its own."""
    plan = GuestPlan("linux", nics=(NicPlan(bridge=bridge),))
    assert ("ip" in plan.settings()) is bridge


def test_nics_and_disks_arrive_in_order() -> None:
    """Every NIC and disk of the plan is in the file, with its I/O path and format."""
    nics = (NicPlan("emulated", bridge=False), NicPlan())
    spec = parsed(GuestPlan("linux", nics=nics, disks=(DiskPlan(Path("/d/a.qcow2")),)), LINUX)
    assert [(nic.io_path, nic.network) for nic in spec.nics] == [
        (IoPath.EMULATED, NetworkKind.USER),
        (IoPath.VIRTIO, NetworkKind.BRIDGE),
    ]
    assert [disk.path for disk in spec.disks] == ["/d/a.qcow2"]
