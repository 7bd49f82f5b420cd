"""A pair of hosts and a guest that can move; each test spoils one thing."""

from __future__ import annotations

import dataclasses

import pytest

from vmferry.core.checks import Case
from vmferry.core.guest import (
    Acceleration,
    Disk,
    FrozenDevice,
    FrozenGuest,
    GuestSpec,
    IoPath,
    KernelBoot,
    NetworkKind,
    Nic,
)
from vmferry.core.host import FileFacts, GuestProbe, GuestRuntime, HostFacts, QemuFacts
from vmferry.core.ids import GuestName, GuestUuid, HostName
from vmferry.core.units import GIB, MIB, Bytes

DISK = "/srv/vmferry/web-7.qcow2"
KERNEL = "/srv/vmferry/vmlinuz"
KERNEL_HASH = "a" * 64
MAC = "52:54:00:00:00:07"


def make_host(name: str) -> HostFacts:
    """Return a host on which the guest of this module fits."""
    return HostFacts(
        name=HostName(name),
        agent_version="0.1.0",
        protocol=1,
        qemu=QemuFacts(
            version=(10, 0, 2),
            machines=frozenset({"pc-q35-7.2", "pc-q35-9.2", "pc-q35-10.0", "pc-i440fx-7.2"}),
            cpu_models=frozenset({"qemu64", "Nehalem", "EPYC"}),
            capabilities=frozenset({"events", "return-path", "pause-before-switchover", "late-block-activate"}),
            parameters=frozenset({"max-bandwidth"}),
            devices=frozenset({"virtio-net-pci", "virtio-blk-pci", "pcie-root-port"}),
        ),
        acceleration=Acceleration.TCG,
        acceleration_reason="the CPU flags show neither svm nor vmx",
        acceleration_tag="TCG",
        memory_total_bytes=Bytes(8 * GIB),
        memory_free_bytes=Bytes(4 * GIB),
        bridges=frozenset({"br0"}),
        migration_ports_free=10,
    )


def make_files() -> tuple[FileFacts, ...]:
    """Return both files of the guest as either host sees them."""
    disk = FileFacts(DISK, True, True, True, Bytes(10 * MIB), "nfs4:server-1:/srv:4711")
    kernel = FileFacts(KERNEL, True, True, False, Bytes(8 * MIB), "ext4:boot-1:8:1", sha256=KERNEL_HASH)
    return disk, kernel


def make_case() -> Case:
    """Return a guest that can move from host-a to host-b."""
    spec = GuestSpec(
        name=GuestName("web-7"),
        memory_bytes=Bytes(512 * MIB),
        boot=KernelBoot(KERNEL),
        cpu="qemu64",
        disks=(Disk(DISK),),
        nics=(Nic(IoPath.VIRTIO, NetworkKind.BRIDGE, bridge="br0", mac=MAC),),
    )
    guest = FrozenGuest(
        spec=spec,
        uuid=GuestUuid("6f1c1a1e-0000-4000-8000-000000000007"),
        acceleration=Acceleration.TCG,
        cpu="qemu64,+sse3",
        machine="pc-q35-7.2",
        devices=(
            FrozenDevice("net0", "virtio-net-pci", "pcie.0", "0x2", (("romfile", ""),), "netdev0"),
            FrozenDevice("disk0", "virtio-blk-pci", "pcie.0", "0x3", (), "drive0"),
        ),
        macs=(MAC,),
        boot_hashes=((KERNEL, KERNEL_HASH),),
    )
    nothing: frozenset[str] = frozenset()
    return Case(
        guest=guest,
        runtime=GuestRuntime("running", None, (), make_files()),
        source=make_host("host-a"),
        destination=make_host("host-b"),
        probe=GuestProbe(make_files(), nothing, nothing, nothing, ()),
    )


def with_spec(case: Case, **changes: object) -> Case:
    """Return the case with other lines in the guest file."""
    spec = dataclasses.replace(case.guest.spec, **changes)  # type: ignore[arg-type]
    return with_guest(case, spec=spec)


def with_guest(case: Case, **changes: object) -> Case:
    """Return the case with other frozen hardware."""
    return dataclasses.replace(case, guest=dataclasses.replace(case.guest, **changes))  # type: ignore[arg-type]


def with_runtime(case: Case, **changes: object) -> Case:
    """Return the case with another word of the running guest."""
    return dataclasses.replace(case, runtime=dataclasses.replace(case.runtime, **changes))  # type: ignore[arg-type]


def with_destination(case: Case, **changes: object) -> Case:
    """Return the case with another destination."""
    there = dataclasses.replace(case.destination, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(case, destination=there)


def with_probe(case: Case, **changes: object) -> Case:
    """Return the case with another word of the destination about this guest."""
    return dataclasses.replace(case, probe=dataclasses.replace(case.probe, **changes))  # type: ignore[arg-type]


def with_qemu(host: HostFacts, **changes: object) -> HostFacts:
    """Return the host with another QEMU."""
    return dataclasses.replace(host, qemu=dataclasses.replace(host.qemu, **changes))  # type: ignore[arg-type]


def with_file_there(case: Case, path: str, **changes: object) -> Case:
    """Return the case with another view of one file at the destination."""
    files = tuple(
        dataclasses.replace(file, **changes) if file.path == path else file  # type: ignore[arg-type]
        for file in case.probe.files
    )
    return with_probe(case, files=files)


@pytest.fixture
def case() -> Case:
    """A guest that can move."""
    return make_case()
