"""One blocker per test case: what is spoiled, which code comes, and what its sentences must say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from tests.core_checks.conftest import (
    DISK,
    KERNEL,
    MAC,
    make_case,
    make_files,
    make_host,
    with_destination,
    with_file_there,
    with_guest,
    with_probe,
    with_qemu,
    with_runtime,
    with_spec,
)

from vmferry.core.checks import Case, find_blockers, guarantee, memory_needed
from vmferry.core.errors import Blocker
from vmferry.core.guest import (
    TPM_DRIVER,
    Acceleration,
    BiosBoot,
    Disk,
    FrozenDevice,
    HostDevice,
    IoPath,
    NetworkKind,
    Nic,
    UefiBoot,
)
from vmferry.core.host import FileFacts
from vmferry.core.migratable import MigratableDevice
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import Inventory
from vmferry.core.units import MIB, Bytes
from vmferry.core.wanted_devices import Pools, WantedDevice, choose_devices

CODE, NVRAM = "/usr/share/OVMF/code.fd", "/srv/vmferry/web-7.nvram"


def find(case: Case) -> tuple[Blocker, ...]:
    """Ask."""
    return find_blockers(case)


def without_capability(case: Case, capability: str, *, at_source: bool = False) -> Case:
    """Return the case with a QEMU that lacks a capability."""
    host = case.source if at_source else case.destination
    spoiled = with_qemu(host, capabilities=host.qemu.capabilities - {capability})
    return dataclasses.replace(case, source=spoiled) if at_source else dataclasses.replace(case, destination=spoiled)


def with_postcopy(case: Case, why_no_postcopy: str | None) -> Case:
    """Return the case with post-copy allowed, and QEMUs that have it."""
    hosts = [
        with_qemu(host, capabilities=host.qemu.capabilities | {"postcopy-ram"})
        for host in (case.source, case.destination)
    ]
    there = dataclasses.replace(hosts[1], why_no_postcopy=why_no_postcopy)
    return dataclasses.replace(case, source=hosts[0], destination=there, postcopy=True)


def with_port(case: Case, version: tuple[int, int, int]) -> Case:
    """Return the case with a PCIe port in the guest and another QEMU at the destination."""
    port = FrozenDevice("rp1", "pcie-root-port", "pcie.0", "0x4")
    case = with_guest(case, devices=(*case.guest.devices, port))
    return with_destination(case, qemu=with_qemu(case.destination, version=version).qemu)


def without_romfile(case: Case) -> Case:
    """Return the case with an option ROM in the network card and QEMU 7.2 at the destination."""
    net = dataclasses.replace(case.guest.devices[0], properties=())
    case = with_guest(case, devices=(net, case.guest.devices[1]))
    return with_destination(case, qemu=with_qemu(case.destination, version=(7, 2, 17)).qemu)


def with_driver(case: Case, driver: str) -> Case:
    """Return the case with one device of another driver."""
    return with_guest(case, devices=(FrozenDevice("dev0", driver, "pcie.0", "0x5"),))


def with_tpm(case: Case) -> Case:
    """Return the case with a TPM in the guest, and what emulates it on both hosts."""
    case = with_guest(case, devices=(*case.guest.devices, FrozenDevice("tpm0", TPM_DRIVER, "isa.0", "")))
    hosts = [
        dataclasses.replace(with_qemu(host, devices=host.qemu.devices | {TPM_DRIVER}), tpm_emulator=(0, 7, 1))
        for host in (case.source, case.destination)
    ]
    return dataclasses.replace(case, source=hosts[0], destination=hosts[1])


def with_vhost(case: Case) -> Case:
    """Return the case with a card that the kernel serves, and a destination whose kernel can."""
    nic = dataclasses.replace(case.guest.spec.nics[0], io_path=IoPath.VHOST)
    return with_destination(with_spec(case, nics=(nic,)), why_no_vhost=None)


def with_function(case: Case, **changes: Any) -> Case:
    """Return the case with a card that is to be a virtual function, and has a standby."""
    nic = dataclasses.replace(case.guest.spec.nics[0], io_path=IoPath.SRIOV_VF, physical_network="fabric", **changes)
    return with_spec(case, nics=(nic,))


def with_host_device(case: Case, *, may_detach: bool) -> Case:
    """Return the case with a device of its host that the guest is to have."""
    return with_spec(case, host_devices=(HostDevice("1b36:0010", may_detach),))


def with_uefi(case: Case) -> Case:
    """Return a UEFI guest whose code and NVRAM are fine on both hosts."""
    files = (
        make_files()[0],
        FileFacts(CODE, True, True, False, Bytes(4 * MIB), "ext4:boot-1:8:2", sha256="c" * 64),
        FileFacts(NVRAM, True, True, True, Bytes(MIB), "nfs4:server-1:/srv:4712"),
    )
    case = with_guest(with_spec(case, boot=UefiBoot(CODE, NVRAM)), boot_hashes=((CODE, "c" * 64),))
    return with_probe(with_runtime(case, source_files=files), files=files)


def without_files_there(case: Case, path: str) -> Case:
    """Return the case with a destination that says nothing about one file."""
    return with_probe(case, files=tuple(file for file in case.probe.files if file.path != path))


#: What a destination says of what it has not.
_POOLS = Pools("host-b", Inventory.of(()), {"fabric": (PciAddress.parse("01:00.0"),)})
_WANTED = (WantedDevice("nic0", "rp0", False, "fabric", "52:54:00:00:00:01", 0, "br0"),)
_NVME = (WantedDevice("host0", "rp0", True, device="1b36:0010"),)
(NONE_FREE,) = choose_devices(_NVME, _POOLS)[1]
(NO_FUNCTION,) = choose_devices(_WANTED, _POOLS)[1]
(NO_NETWORK,) = choose_devices(_WANTED, dataclasses.replace(_POOLS, networks={}))[1]

#: what is spoiled -> (code of the only blocker, words of `what`, words of `fix`)
CASES: dict[str, tuple[Callable[[Case], Case], str, list[str], list[str]]] = {
    "no function there": (
        lambda c: with_probe(with_function(c), without_devices=(NO_FUNCTION,)),
        "device.no-function",
        ["nic0", "host-b"],
        ["vf create"],
    ),
    "no such network there": (
        lambda c: with_probe(with_function(c), without_devices=(NO_NETWORK,)),
        "device.no-network",
        ["nic0", "fabric", "it has none"],
        ["agent.toml of host-b"],
    ),
    "a function without a standby": (
        lambda c: with_function(c, network=NetworkKind.NONE, bridge=None),
        "device.no-standby",
        ["nic0's virtual function of fabric", "web-7"],
        ["may_detach"],
    ),
    "a paused guest with a function": (
        lambda c: with_runtime(with_function(c), run_state="paused", functions=("0000:01:10.0",)),
        "device.cannot-let-go",
        ["web-7", "0000:01:10.0", "host-a", "paused"],
        ["guest resume"],
    ),
    "no such device there": (
        lambda c: with_probe(with_host_device(c, may_detach=True), without_devices=(NONE_FREE,)),
        "device.none-free",
        ["host0 (1b36:0010)", "host-b", "it has none"],
        ["pci list host-b"],
    ),
    "a device that stays": (
        lambda c: with_host_device(c, may_detach=False),
        "device.may-not-detach",
        ["host0 (1b36:0010)", "web-7", "host-a"],
        ["may_detach"],
    ),
    "same host": (
        lambda c: with_destination(c, name="host-a"),
        "host.same",
        ["web-7", "host-a"],
        ["host list"],
    ),
    "protocol two behind": (
        lambda c: with_destination(c, protocol=3),
        "protocol.versions",
        ["protocol 1", "3", "host-b"],
        ["host-a", "2 or 3"],
    ),
    "busy": (lambda c: with_runtime(c, busy_with="hand-over h-1"), "guest.busy", ["h-1"], ["vmferry cancel web-7"]),
    "stopped": (lambda c: with_runtime(c, run_state="stopped"), "guest.stopped", ["no QEMU"], ["guest start web-7"]),
    "powered off": (lambda c: with_runtime(c, run_state="shutdown"), "guest.powered-off", ["'shutdown'"], ["start"]),
    "panicked": (lambda c: with_runtime(c, run_state="guest-panicked"), "guest.panicked", ["panicked"], ["console"]),
    "I/O error": (lambda c: with_runtime(c, run_state="io-error"), "guest.io-error", ["I/O error"], ["resume web-7"]),
    "internal error": (lambda c: with_runtime(c, run_state="internal-error"), "guest.internal-error", [], ["log"]),
    "never started": (lambda c: with_runtime(c, run_state="prelaunch"), "guest.not-started", [], ["start"]),
    "arriving": (lambda c: with_runtime(c, run_state="inmigrate"), "guest.arriving", [], ["wait"]),
    "leaving": (lambda c: with_runtime(c, run_state="finish-migrate"), "guest.leaving", [], ["wait"]),
    "left": (lambda c: with_runtime(c, run_state="postmigrate"), "guest.left", [], ["vmferry recover web-7"]),
    "unknown run state": (lambda c: with_runtime(c, run_state="dreaming"), "guest.not-running", ["'dreaming'"], []),
    "QEMU: VFIO": (
        lambda c: with_runtime(c, blocked_reasons=("0000:01:10.0: VFIO device doesn't support migration",)),
        "qemu.blocked",
        ["0000:01:10.0: VFIO device doesn't support migration"],
        ["detach", "VF"],
    ),
    "a device of its host": (
        lambda c: with_runtime(
            c,
            attached=("0000:01:10.0",),
            blocked_reasons=("0000:01:10.0: VFIO migration is not supported in kernel",),
        ),
        "device.attached",
        ["web-7", "0000:01:10.0 of host-a"],
        ["vmferry guest detach web-7 0000:01:10.0"],
    ),
    "QEMU: vhost-user": (
        lambda c: with_runtime(c, blocked_reasons=("Migration disabled: vhost-user backend lacks LOG_SHMFD",)),
        "qemu.blocked",
        ["lacks LOG_SHMFD"],
        ["logs dirty memory"],
    ),
    "QEMU: a new text": (
        lambda c: with_runtime(c, blocked_reasons=("the moon is full",)),
        "qemu.blocked",
        ["the moon is full"],
        ["QEMU's own"],
    ),
    "KVM guest to a TCG host": (
        lambda c: with_guest(c, acceleration=Acceleration.KVM),
        "accelerator.differs",
        ["KVM", "TCG", "neither svm nor vmx"],
        ['"tcg"'],
    ),
    "CPU features": (
        lambda c: with_probe(c, cpu_missing_features=("avx2", "sse3")),
        "cpu.features-missing",
        ["2 CPU", "avx2, sse3", "qemu64"],
        ['"qemu64,-avx2,-sse3"', '"EPYC"'],
    ),
    "CPU refused": (
        lambda c: with_probe(c, cpu_error="unable to find CPU model"),
        "cpu.refused",
        ["unable to find"],
        ["EPYC"],
    ),
    "no common CPU": (
        lambda c: with_destination(
            with_probe(c, cpu_error="no"), qemu=with_qemu(c.destination, cpu_models=frozenset()).qemu
        ),
        "cpu.refused",
        ["no"],
        ["another host than host-b"],
    ),
    "machine type": (
        lambda c: with_guest(c, machine="pc-q35-10.1"),
        "machine.missing",
        ["pc-q35-10.1", "pc-q35-10.0, pc-q35-7.2, pc-q35-9.2"],
        ['"pc-q35-10.0"'],
    ),
    "no common machine type": (
        lambda c: with_destination(c, qemu=with_qemu(c.destination, machines=frozenset()).qemu),
        "machine.missing",
        ["none"],
        ["update QEMU on host-b"],
    ),
    "no events": (lambda c: without_capability(c, "events"), "qemu.capability-missing", ["events"], ["host-b"]),
    "no return-path": (
        lambda c: without_capability(c, "return-path"),
        "qemu.capability-missing",
        ["return-path"],
        ["host-b"],
    ),
    "no pause": (
        lambda c: without_capability(c, "pause-before-switchover"),
        "qemu.capability-missing",
        ["pause-before-switchover"],
        ["host-b"],
    ),
    "source without late-block-activate": (
        lambda c: without_capability(c, "late-block-activate", at_source=True),
        "qemu.capability-missing",
        ["late-block-activate", "host-a"],
        ["restart the guest"],
    ),
    "no postcopy-ram": (
        lambda c: without_capability(with_postcopy(c, None), "postcopy-ram", at_source=True),
        "postcopy.capability-missing",
        ["host-a", "postcopy-ram"],
        ["without post-copy"],
    ),
    "no userfaultfd": (
        lambda c: with_postcopy(c, why_no_postcopy="uid 70001 may not open it"),
        "postcopy.no-userfaultfd",
        ["host-b", "uid 70001 may not open it"],
        ["host-b", "without post-copy"],
    ),
    "8.0.0 and PCIe ports": (
        lambda c: with_port(c, (8, 0, 0)),
        "qemu.known-incompatibility",
        ["8.0.0", "rp1"],
        ["8.1"],
    ),
    "ROM of another size": (without_romfile, "qemu.known-incompatibility", ["net0", "7.2.17", "ROM"], ["restart"]),
    "a running TCG guest leaves 7.2": (
        lambda c: dataclasses.replace(c, source=with_qemu(c.source, version=(7, 2, 22))),
        "qemu.tcg-loses-writes",
        ["7.2.22", "host-a", "web-7", "TCG"],
        ["pause"],
    ),
    "driver": (lambda c: with_driver(c, "igb"), "device.driver-missing", ["igb", "dev0"], ["install"]),
    "memory": (
        lambda c: with_destination(c, memory_free_bytes=500 * MIB),
        "memory.not-enough",
        ["587 MiB", "512 MiB RAM", "500 MiB of 8192 MiB"],
        ["free 87 MiB"],
    ),
    "disk missing": (
        lambda c: with_file_there(c, DISK, exists=False, error="ENOENT"),
        "disk.not-seen",
        [DISK, "ENOENT"],
        ["mount"],
    ),
    "disk not mentioned": (lambda c: without_files_there(c, DISK), "disk.not-seen", [DISK], ["mount"]),
    "disk not readable": (lambda c: with_file_there(c, DISK, readable=False), "disk.not-readable", [DISK], ["access"]),
    "disk read-only": (lambda c: with_file_there(c, DISK, writable=False), "disk.not-writable", [DISK], ["access"]),
    "another disk": (
        lambda c: with_file_there(c, DISK, identity="ext4:boot-2:8:9"),
        "disk.not-same-file",
        ["nfs4:server-1:/srv:4711", "ext4:boot-2:8:9"],
        ["NFSv4"],
    ),
    "unsafe cache": (lambda c: with_spec(c, disks=(Disk(DISK, cache="writeback"),)), "disk.unsafe-cache", [], ["none"]),
    "kernel missing": (
        lambda c: with_file_there(c, KERNEL, exists=False, error="ENOENT"),
        "boot.file-missing",
        ["kernel", KERNEL, "ENOENT"],
        ["copy"],
    ),
    "kernel differs": (
        lambda c: with_file_there(c, KERNEL, sha256="b" * 64),
        "boot.file-differs",
        ["a" * 12, "b" * 12],
        ["copy"],
    ),
    "kernel not hashed": (
        lambda c: with_file_there(c, KERNEL, sha256=None),
        "boot.file-differs",
        ["not known"],
        ["copy"],
    ),
    "NVRAM missing": (lambda c: without_files_there(with_uefi(c), NVRAM), "nvram.not-seen", [NVRAM], ["mount"]),
    "NVRAM not shared": (
        lambda c: with_file_there(with_uefi(c), NVRAM, identity="ext4:boot-2:8:9"),
        "nvram.not-same-file",
        [NVRAM],
        ["storage that both"],
    ),
    "no TPM there": (
        lambda c: with_destination(with_tpm(c), tpm_emulator=None),
        "tpm.emulator-missing",
        ["host-b", "agent is older"],
        ["install swtpm", "host-b"],
    ),
    "older TPM there": (
        lambda c: with_destination(with_tpm(c), tpm_emulator=(0, 6, 9)),
        "tpm.emulator-older",
        ["host-b is 0.6.9", "0.7.1 on host-a"],
        ["swtpm 0.7 or newer"],
    ),
    "TPM has ended": (
        lambda c: with_runtime(with_tpm(c), has_lost_tpm=True),
        "tpm.emulator-ended",
        ["web-7", "host-a"],
        ["vmferry guest stop web-7"],
    ),
    "bridge": (
        lambda c: with_destination(c, bridges=frozenset({"br1", "br2"})),
        "network.bridge-missing",
        ["br0", "br1, br2"],
        ["create bridge br0"],
    ),
    "the kernel's cards": (
        lambda c: with_destination(with_vhost(c), why_no_vhost="it has no /dev/vhost-net: `modprobe vhost_net`"),
        "network.no-vhost",
        ["network card 0", "host-b", "it has no /dev/vhost-net"],
        ["the kernel of host-b", "virtio cards"],
    ),
    "name": (lambda c: with_probe(c, names_taken=frozenset({"web-7"})), "identity.name-taken", ["web-7"], ["remove"]),
    "UUID": (lambda c: with_probe(c, uuids_taken=frozenset({c.guest.uuid})), "identity.uuid-taken", [], ["copy"]),
    "MAC": (lambda c: with_probe(c, macs_taken=frozenset({MAC.upper()})), "identity.mac-taken", [MAC], ["mac"]),
    "ports": (lambda c: with_destination(c, migration_ports_free=0), "port.none-free", ["0"], ["wait"]),
}


@pytest.mark.parametrize("name", CASES)
def test_each_fault_gives_exactly_its_blocker(name: str) -> None:
    """A fault gives its own code and no other, with the seen and expected values and a fix that names what to do."""
    spoil, code, what, fix = CASES[name]
    (blocker,) = find(spoil(make_case()))
    assert blocker.code == code
    assert [word for word in what if word not in blocker.what] == []
    assert [word for word in fix if word not in blocker.fix] == []


def test_a_guest_that_can_move_has_no_blocker(case: Case) -> None:
    """The case that the others spoil is really fine, running, paused and with UEFI."""
    assert find(case) == ()
    assert find(with_runtime(case, run_state="paused")) == ()
    assert find(with_uefi(case)) == ()


def test_a_tpm_moves_where_it_can(case: Case) -> None:
    """With an emulator there that is as new in its first two numbers, or newer, nothing is in the way."""
    for version in ((0, 7, 0), (0, 7, 1), (0, 10, 1), (1, 0, 0)):
        assert find(with_destination(with_tpm(case), tpm_emulator=version)) == ()


def test_all_that_is_wrong_with_a_tpm_is_told_at_once(case: Case) -> None:
    """Ended here and missing there are two blockers."""
    spoiled = with_destination(with_runtime(with_tpm(case), has_lost_tpm=True), tpm_emulator=None)
    assert [blocker.code for blocker in find(spoiled)] == ["tpm.emulator-ended", "tpm.emulator-missing"]


def test_a_tpm_that_was_never_built_is_none(case: Case) -> None:
    """What an older agent's guest file said of a TPM was passed over: such a guest moves."""
    assert find(with_spec(case, tpm="/var/lib/swtpm/web-7")) == ()


def test_neighbouring_protocols_work_together(case: Case) -> None:
    """Protocol N and N-1 are no blocker in either direction."""
    assert find(with_destination(case, protocol=2)) == ()
    assert find(with_destination(case, protocol=0)) == ()


def test_a_tcg_guest_moves_to_a_kvm_host(case: Case) -> None:
    """A host with KVM still runs a TCG guest with TCG."""
    assert find(with_destination(case, acceleration=Acceleration.KVM)) == ()


def test_user_networking_is_no_blocker(case: Case) -> None:
    """QEMU's own network stack exists on both sides, bridges or not."""
    moved = with_spec(case, nics=(Nic(network=NetworkKind.USER),))
    assert find(with_destination(moved, bridges=frozenset())) == ()


def test_a_newer_machine_type_is_not_hit_by_the_8_0_0_bug(case: Case) -> None:
    """Only machine types before 8.0 have the PCIe incompatibility, and only with that one version."""
    machine = with_guest(with_port(case, (8, 0, 0)), machine="pc-q35-9.2")
    assert find(machine) == ()
    assert find(with_port(case, (8, 1, 0))) == ()


def test_versions_7_2_and_10_0_with_frozen_hardware_are_a_pair(case: Case) -> None:
    """A guest without option ROMs moves between the two tested versions."""
    assert find(with_destination(case, qemu=with_qemu(case.destination, version=(7, 2, 17)).qemu)) == ()


def test_postcopy_is_asked_of_nobody_who_does_not_use_it(case: Case) -> None:
    """Hosts without post-copy do not block a move that does not allow it; hosts with it block none."""
    assert case.destination.why_no_postcopy is not None
    assert find(case) == ()
    assert find(with_postcopy(case, None)) == ()


def test_a_paused_guest_leaves_7_2(case: Case) -> None:
    """Nothing is lost of a guest that writes nothing."""
    old = dataclasses.replace(case, source=with_qemu(case.source, version=(7, 2, 22)))
    assert find(with_runtime(old, run_state="paused")) == ()


def test_a_read_only_disk_needs_no_write_access(case: Case) -> None:
    """A disk that the guest only reads may be read-only at the destination, and cached."""
    moved = with_spec(case, disks=(Disk(DISK, read_only=True, cache="writeback"),))
    assert find(with_file_there(moved, DISK, writable=False)) == ()


def test_two_hosts_that_do_not_know_a_file_do_not_mean_the_same(case: Case) -> None:
    """Equal text "unknown" on both sides is not proof of one file."""
    unknown = tuple(dataclasses.replace(file, identity="unknown: statfs failed") for file in make_files())
    moved = with_probe(with_runtime(case, source_files=unknown), files=unknown)
    assert [blocker.code for blocker in find(moved)] == ["disk.not-same-file"]


def test_a_device_that_cannot_move_is_told_beside_a_missing_driver(case: Case) -> None:
    """A passthrough device gives its own blocker and the missing driver's."""
    codes = [blocker.code for blocker in find(with_driver(case, "vfio-pci"))]
    assert codes == ["device.driver-missing", "device.not-migratable"]


def test_without_a_frozen_hash_the_source_file_counts(case: Case) -> None:
    """A guest that was frozen without hashes is compared with the source's file of today."""
    assert find(with_guest(case, boot_hashes=())) == ()


def test_every_blocker_comes_at_once(case: Case) -> None:
    """Five faults of five families give five blockers, in the order in which people read them."""
    spoiled = with_runtime(case, busy_with="hand-over h-1")
    spoiled = with_guest(spoiled, machine="pc-q35-11.0")
    spoiled = with_destination(spoiled, bridges=frozenset(), migration_ports_free=0)
    spoiled = with_file_there(spoiled, DISK, writable=False)
    codes = [blocker.code for blocker in find(spoiled)]
    assert codes == ["guest.busy", "machine.missing", "disk.not-writable", "network.bridge-missing", "port.none-free"]


def test_a_guest_whose_cards_the_kernel_serves_moves_to_a_host_that_can(case: Case) -> None:
    """And other guests do not care."""
    assert find(with_vhost(case)) == ()
    assert find(with_function(case)) == ()
    assert find(with_function(case, network=NetworkKind.NONE, bridge=None, may_detach=True)) == ()
    vfio = "0000:01:10.0: VFIO migration is not supported in kernel"
    assert find(with_runtime(with_function(case), blocked_reasons=(vfio,), functions=("0000:01:10.0",))) == ()
    assert find(with_destination(case, why_no_vhost="no")) == ()


def test_a_device_whose_state_goes_along_is_not_let_go(case: Case) -> None:
    """Both hosts have the same one: it need not be allowed to be taken away, nor have a standby, nor does it stand."""
    kind = MigratableDevice("host0", "15b3:101e", "mlx5_vfio_pci")
    case = with_host_device(case, may_detach=False)
    case = with_runtime(case, functions=("0000:01:10.0",), migratable=(kind,), run_state="paused")
    assert find(with_probe(case, offers=(kind,))) == ()
    other = dataclasses.replace(kind, ids="15b3:1018")
    for spoiled in (with_probe(case, offers=(other,)), case):
        assert {one.code for one in find(spoiled)} == {"device.may-not-detach", "device.cannot-let-go"}
    with_pages = dataclasses.replace(with_probe(case, offers=(kind,)), postcopy=True)
    assert {"device.may-not-detach", "device.cannot-let-go"} <= {one.code for one in find(with_pages)}
    promised = guarantee(case.guest, case.runtime, with_probe(case, offers=(kind,)).probe)
    assert "the state of host0 (1b36:0010) goes along, into an equal one there (VFIO migration)" in promised.sentence


def test_a_move_to_the_same_host_has_one_blocker_only(case: Case) -> None:
    """The guest does not clash with itself: name, MAC and port are not told beside "same host"."""
    spoiled = with_destination(case, name="host-a", migration_ports_free=0)
    spoiled = with_probe(spoiled, names_taken=frozenset({"web-7"}), macs_taken=frozenset({MAC}))
    assert [blocker.code for blocker in find(spoiled)] == ["host.same"]


def test_memory_needed_is_ram_two_percent_and_64_mib(case: Case) -> None:
    """The reservation's number is the check's number, and exactly enough memory is enough."""
    needed = memory_needed(case.guest)
    assert needed == 512 * MIB + 512 * MIB * 2 // 100 + 64 * MIB
    assert find(with_destination(case, memory_free_bytes=needed)) == ()
    assert len(find(with_destination(case, memory_free_bytes=needed - 1))) == 1


def test_a_guest_that_boots_from_its_disk_needs_no_boot_files(case: Case) -> None:
    """A BIOS guest asks for no kernel at the destination."""
    assert find(with_spec(without_files_there(case, KERNEL), boot=BiosBoot())) == ()


def test_hosts_are_told_apart_by_name_only(case: Case) -> None:
    """Two hosts with equal facts are two hosts."""
    assert find(dataclasses.replace(case, destination=make_host("host-c"))) == ()
