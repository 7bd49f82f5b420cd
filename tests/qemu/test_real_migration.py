"""Migrations between two real QEMUs of this machine: who holds the image's lock when, across versions and users."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from tests.qemu.conftest import Start, holds_lock
from tests.qemus import VERSIONS, binary_of

from vmferry.core.errors import Broken
from vmferry.core.guest import DIRECT_CACHES, Acceleration, Disk, DiskFormat, GuestSpec, IoPath, Nic
from vmferry.core.units import Milliseconds
from vmferry.ports.hypervisor import MigrationStatus, RunState
from vmferry.qemu import QemuGuestProcess, QemuHypervisor
from vmferry.testing.conformance_hypervisor import SPEC, Move, make_setup, wait_status

pytestmark = pytest.mark.real

Version = tuple[int, int]

PAIRS = [(a, b) for a in VERSIONS for b in VERSIONS]

UID = 70001


def owner_and_mode(path: Path) -> tuple[int, int]:
    """Return a file's uid and permissions."""
    stat = path.stat()
    return stat.st_uid, stat.st_mode & 0o777


def name_of(pair: tuple[Version, Version]) -> str:
    """Return a pair as 7.2-to-10.0."""
    return "-to-".join(f"{major}.{minor}" for major, minor in pair)


async def make_move(
    pair: tuple[Version, Version], spec: GuestSpec, start: Start, state_dir: Path, *, uid: int | None = None
) -> Move:
    """Start a guest on one version, running, and its destination on the other."""
    one, other = (QemuHypervisor(binary_of(v), Acceleration.TCG, state_dir=state_dir) for v in pair)
    guest = await one.freeze(spec)
    assert list(await other.probe_cpu(guest)) == []
    source: QemuGuestProcess = await start(one, guest, uid=uid)
    await source.cont()
    destination: QemuGuestProcess = await start(other, guest, incoming=True, uid=uid)
    return Move(source, destination, source.events(), destination.events())


@pytest.mark.parametrize("cache", [*DIRECT_CACHES, "writeback"])
@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
async def test_lock_follows_the_owner(
    pair: tuple[Version, Version], cache: str, image: Disk, start: Start, probes_dir: Path
) -> None:
    """The write lock is the source's until it completes, nobody's while loaded, the destination's after cont."""
    move = await make_move(pair, replace(SPEC, disks=(replace(image, cache=cache),)), start, probes_dir)

    def holders() -> tuple[bool, bool]:
        return tuple(holds_lock(p.record.pid, image.path) for p in (move.source, move.destination))  # type: ignore[return-value]

    assert holders() == (True, False)
    await move.pause()
    assert holders() == (True, False)
    await move.source.migrate_continue()
    await wait_status(move.source_events, MigrationStatus.COMPLETED)
    await wait_status(move.destination_events, MigrationStatus.COMPLETED)
    assert holders() == (False, False)
    await move.destination.cont()
    assert holders() == (False, True)
    with pytest.raises(Broken, match="lock"):
        await move.source.cont()
    assert await move.destination.query_run_state() is RunState.RUNNING


@pytest.mark.parametrize("pair", [(v, v) for v in VERSIONS], ids=name_of)
async def test_rollback_takes_the_lock_again(
    pair: tuple[Version, Version], image: Disk, start: Start, probes_dir: Path
) -> None:
    """A source that goes on after everything was sent has the write lock again, and moves the next time."""
    move = await make_move(pair, replace(SPEC, disks=(image,)), start, probes_dir)
    await move.load()
    await move.destination.kill()
    await move.source.cont()
    assert holds_lock(move.source.record.pid, image.path)
    hypervisor = QemuHypervisor(binary_of(pair[1]), Acceleration.TCG, state_dir=probes_dir)
    guest = await hypervisor.freeze(replace(SPEC, disks=(image,)))
    second = await start(hypervisor, replace(guest, macs=guest.macs), incoming=True)
    again = Move(move.source, second, move.source.events(), second.events())
    await again.load()
    assert not holds_lock(move.source.record.pid, image.path)


@pytest.mark.parametrize("pair", [(v, v) for v in VERSIONS], ids=name_of)
async def test_read_only_image_moves(
    pair: tuple[Version, Version], tmp_path: Path, start: Start, probes_dir: Path
) -> None:
    """A read-only raw image opens on both hosts at once and moves with its guest."""
    path = tmp_path / "data.raw"
    path.write_bytes(bytes(1 << 20))
    path.chmod(0o444)
    disk = Disk(str(path), DiskFormat.RAW, read_only=True, cache="writeback")
    move = await make_move(pair, replace(SPEC, disks=(disk,)), start, probes_dir)
    await move.load()
    await move.destination.cont()
    assert await move.destination.query_run_state() is RunState.RUNNING


@pytest.mark.root
@pytest.mark.parametrize("pair", [(v, v) for v in VERSIONS], ids=name_of)
async def test_unprivileged_guest_moves_with_its_key(
    pair: tuple[Version, Version], image: Disk, start: Start, probes_dir: Path
) -> None:
    """Processes of another uid move encrypted, although they may enter neither the run directories nor the image's."""
    binary = Path(binary_of(pair[0]).argv[0])
    if any(not directory.stat().st_mode & 0o001 for directory in binary.parents):
        pytest.skip(f"{binary} is below a private directory; set VMFERRY_CACHE to one that all users may enter")
    owner = owner_and_mode(Path(image.path))
    move = await make_move(pair, replace(SPEC, disks=(image,)), start, probes_dir, uid=UID)
    await move.pause()
    for process in (move.source, move.destination):
        assert isinstance(process, QemuGuestProcess)
        assert owner_and_mode(Path(f"/proc/{process.record.pid}"))[0] == UID
        assert owner_and_mode(process.run_dir.tls / "keys.psk") == (UID, 0o600)
    await move.source.migrate_continue()
    await wait_status(move.source_events, MigrationStatus.COMPLETED)
    await wait_status(move.destination_events, MigrationStatus.COMPLETED)
    for process in (move.source, move.destination):
        await process.cleanup_migration()
        await process.cleanup_migration()
        assert not process.run_dir.tls.exists()  # type: ignore[attr-defined]
    await move.destination.cont()
    assert owner_and_mode(Path(image.path)) == owner


@pytest.mark.parametrize("pair", [(v, v) for v in VERSIONS], ids=name_of)
async def test_forwards_follow_the_guest(pair: tuple[Version, Version], start: Start, probes_dir: Path) -> None:
    """A forwarded port of one machine goes from the old process to the new one as soon as it is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    move = await make_move(pair, replace(SPEC, nics=(Nic(forward_udp=((port, 7),)),)), start, probes_dir)
    await move.load()
    await move.destination.cont()
    assert isinstance(move.destination, QemuGuestProcess)
    forwarder = move.destination._forwarder
    assert forwarder is not None
    assert not forwarder.done()
    await move.source.quit()
    await forwarder
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, pytest.raises(OSError, match="in use"):
        probe.bind(("127.0.0.1", port))


@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
async def test_key_is_needed(pair: tuple[Version, Version], start: Start, probes_dir: Path) -> None:
    """A source without a key does not reach a destination that has one, and the guest runs on.

    A small guest may be in pre-switchover before the refusal is there: QEMU then waits there, and fails when told to go
    on. Only 10.0 has the reason in its reading meanwhile.
    """
    move = await make_move(pair, SPEC, start, probes_dir)
    await move.destination.prepare_migration(make_setup(), incoming=True)
    await move.source.prepare_migration(make_setup(None), incoming=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    await move.destination.listen("127.0.0.1", port)
    await move.source.migrate("127.0.0.1", port)
    async with asyncio.timeout(60):
        async for event in move.source_events:
            if event.status is MigrationStatus.PRE_SWITCHOVER:
                with contextlib.suppress(Broken):  # it failed meanwhile
                    await move.source.migrate_continue()
            if event.status is MigrationStatus.FAILED:
                break
    destination = await move.destination.query_migration() if move.destination.is_alive() else None
    assert destination is None or destination.status is not MigrationStatus.COMPLETED
    assert await move.settle() is RunState.RUNNING


@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
#: A card that the kernel serves moves in tests/nested/test_vhost_net.py, whose hosts have a kernel that does.
@pytest.mark.parametrize("nic_path", [path for path in IoPath if path is not IoPath.VHOST])
async def test_every_device_moves(
    pair: tuple[Version, Version], nic_path: IoPath, image: Disk, tmp_path: Path, start: Start, probes_dir: Path
) -> None:
    """Each device that we build loads on the other version: emulated and virtio NICs and disks, ports, root ports."""
    raw = tmp_path / "old.raw"
    raw.write_bytes(bytes(1 << 20))
    emulated = Disk(str(raw), DiskFormat.RAW, IoPath.EMULATED, cache="writeback")
    spec = replace(SPEC, disks=(image, emulated), nics=(Nic(nic_path),), beat=True, control=True, vcpus=2)
    move = await make_move(pair, spec, start, probes_dir)
    await move.load()
    await move.destination.cont()
    assert await move.states() == (RunState.POSTMIGRATE, RunState.RUNNING)


async def test_setup_is_read_back(start: Start, probes_dir: Path) -> None:
    """Limits arrive in QEMU's units, and a second setup switches off what the first had on."""
    hypervisor = QemuHypervisor(binary_of(VERSIONS[0]), Acceleration.TCG, state_dir=probes_dir)
    process = await start(hypervisor, await hypervisor.freeze(SPEC))
    first = replace(
        make_setup(auto_converge=True), downtime_limit_ms=Milliseconds(123), parameters={"multifd-channels": 3}
    )
    await process.prepare_migration(first, incoming=False)
    await process.prepare_migration(make_setup(None), incoming=False)
    rows = await process._session.execute("query-migrate-capabilities")
    on = {row["capability"] for row in rows if row["state"]}
    assert on == {"events", "return-path", "pause-before-switchover", "late-block-activate"}
    chosen = await process._session.execute("query-migrate-parameters")
    assert (chosen["downtime-limit"], chosen["multifd-channels"], chosen["tls-creds"]) == (300, 3, "")
