"""A frozen guest that a peer sends: what our agents freeze starts, what none of them writes never reaches QEMU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from tests.qemu.test_command_line import CASES, LINUX, make_frozen

from vmferry.core.errors import BadInput
from vmferry.core.guest import Acceleration, FrozenDevice, FrozenGuest, KernelBoot
from vmferry.core.host import QemuFacts
from vmferry.core.ids import GuestName, GuestUuid
from vmferry.ports.hypervisor import HostResources
from vmferry.qemu import QemuBinaryConfig, QemuHypervisor
from vmferry.qemu.arrival import check_frozen
from vmferry.qemu.probe import Prober

MACHINES = frozenset({"pc-q35-7.2", "pc-i440fx-7.2"})
SECRET = "/var/lib/vmferry/ca/ca-key.pem"
Forge = Callable[[FrozenGuest], FrozenGuest]


def device(driver: str, **changes: object) -> Forge:
    """Return a forger of the first device of a driver; unknown drivers replace the first device."""

    def forge(guest: FrozenGuest) -> FrozenGuest:
        index = next((i for i, one in enumerate(guest.devices) if one.driver == driver), 0)
        forged: FrozenDevice = replace(guest.devices[index], driver=driver, **changes)  # type: ignore[arg-type]
        return replace(guest, devices=(*guest.devices[:index], forged, *guest.devices[index + 1 :]))

    return forge


FORGED: dict[str, Forge] = {
    "machine with an initrd": lambda guest: replace(guest, machine=f"pc-q35-7.2,initrd={SECRET}"),
    "machine with a newline": lambda guest: replace(guest, machine="pc-q35-7.2\n"),
    "machine unknown here": lambda guest: replace(guest, machine="pc-q35-99.0"),
    "option ROM": device("virtio-net-pci", properties=(("romfile", SECRET),)),
    "no driver of ours": device("loader"),
    "property of another driver": device("isa-serial", properties=(("romfile", ""),)),
    "property of a wrong type": device("pcie-root-port", properties=(("chassis", "1"),)),
    "port of another name": device("virtserialport", properties=(("name", "org.qemu.guest_agent.0"),)),
    "serial port on the monitor": device("isa-serial", backend="qmp"),
    "disk on the firmware": device("virtio-blk-pci", backend="uefi-nvram"),
    "TPM of the host": device("tpm-tis", backend="tpm,path=/dev/tpm0"),
    "TPM with a property": device("tpm-tis", backend="tpm", properties=(("ppi", True),)),
    "place that is none": device("isa-serial", bus="isa.0,x=y"),
    "address that is none": device("virtio-net-pci", addr="0x10,x=y"),
    "id that is none": device("virtio-net-pci", id="nic0,x=y"),
    "CPU with more than features": lambda guest: replace(guest, cpu="qemu64,vendor=x"),
    "name that is a path": lambda guest: replace(guest, spec=replace(guest.spec, name=GuestName("../x"))),
    "UUID that is none": lambda guest: replace(guest, uuid=GuestUuid("x")),
    "nothing decided": lambda guest: replace(guest, acceleration=Acceleration.AUTO),
    "NUL": lambda guest: replace(guest, spec=replace(guest.spec, boot=KernelBoot("/k", None, "a\0b"))),
}


@pytest.fixture
def hypervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QemuHypervisor:
    """A driver that must not start anything."""

    async def query_facts(_: Prober, __: Acceleration) -> QemuFacts:
        none: frozenset[str] = frozenset()
        return QemuFacts((7, 2, 0), MACHINES, none, none, none, none)

    def spawn(*_: object, **__: object) -> NoReturn:
        pytest.fail("a process was started")

    monkeypatch.setattr(Prober, "query_facts", query_facts)
    monkeypatch.setattr("vmferry.qemu.hypervisor.spawn", spawn)
    monkeypatch.setattr("vmferry.qemu.probe.spawn", spawn)
    return QemuHypervisor(QemuBinaryConfig(("/bin/true",)), Acceleration.TCG, state_dir=tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_what_we_freeze_passes(name: str) -> None:
    """Every guest that `freeze` writes is one that may arrive."""
    spec = CASES[name][0]
    check_frozen(make_frozen(spec), MACHINES)
    disks = tuple(replace(disk, cache="directsync") for disk in spec.disks)
    check_frozen(make_frozen(replace(spec, disks=disks)), MACHINES)


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
async def test_what_nobody_freezes_does_not_start(hypervisor: QemuHypervisor, tmp_path: Path, forge: Forge) -> None:
    """A guest whose hardware was tampered with is bad input before a directory is made."""
    forged = forge(make_frozen(replace(LINUX, throttle=True)))
    with pytest.raises(BadInput):
        await hypervisor.start(forged, HostResources(str(tmp_path / "r"), None), incoming=True)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["machine with an initrd", "CPU with more than features"])
async def test_what_nobody_freezes_is_not_asked_about(hypervisor: QemuHypervisor, name: str) -> None:
    """A question about a guest's CPU starts a QEMU too: not with such a machine or CPU."""
    with pytest.raises(BadInput):
        await hypervisor.probe_cpu(FORGED[name](make_frozen(LINUX)))
