"""One migration between two real QEMUs of this machine, encrypted, with a shared image: who holds the lock when."""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.qemu.conftest import VERSIONS, Start, binary_of, holds_lock
from vmferry.core.errors import Broken
from vmferry.core.guest import Acceleration, Disk, GuestSpec
from vmferry.core.units import Milliseconds
from vmferry.ports.hypervisor import (
    GuestEvent,
    GuestEventKind,
    MigrationSetup,
    MigrationStatus,
    RunState,
)
from vmferry.qemu import QemuGuestProcess, QemuHypervisor

pytestmark = pytest.mark.real

CAPABILITIES = {"events": True, "return-path": True, "pause-before-switchover": True, "late-block-activate": True}

PAIRS = [(a, b) for a in VERSIONS for b in VERSIONS]


def make_setup(psk_key: str | None = None) -> MigrationSetup:
    return MigrationSetup(
        capabilities=CAPABILITIES, max_bandwidth=None, downtime_limit_ms=Milliseconds(300), psk_key=psk_key
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def wait_status(events: AsyncIterator[GuestEvent], wanted: MigrationStatus) -> None:
    async for event in events:
        if event.kind is GuestEventKind.EXITED:
            raise AssertionError(f"QEMU ended: {event.detail}")
        if event.status is wanted:
            return
        assert event.status is not MigrationStatus.FAILED, "the migration failed"


async def wait_kind(events: AsyncIterator[GuestEvent], wanted: GuestEventKind) -> GuestEvent:
    async for event in events:
        if event.kind is wanted:
            return event
    raise AssertionError(f"no {wanted}")


class Pair:
    """A running guest and its destination, with the stream up to pre-switchover."""

    def __init__(self, source: QemuGuestProcess, destination: QemuGuestProcess) -> None:
        self.source = source
        self.destination = destination
        self.source_events = source.events()
        self.destination_events = destination.events()

    async def move_to_pre_switchover(self, psk_key: str | None = None) -> None:
        port = free_port()
        await self.source.prepare_migration(make_setup(psk_key), incoming=False)
        await self.destination.prepare_migration(make_setup(psk_key), incoming=True)
        await self.destination.listen("127.0.0.1", port)
        await self.source.migrate("127.0.0.1", port)
        await wait_status(self.source_events, MigrationStatus.PRE_SWITCHOVER)

    async def load(self) -> None:
        await self.source.migrate_continue()
        await wait_status(self.source_events, MigrationStatus.COMPLETED)
        await wait_status(self.destination_events, MigrationStatus.COMPLETED)


async def make_pair(
    versions: tuple[tuple[int, int], tuple[int, int]], spec: GuestSpec, start: Start, probes_dir: Path
) -> Pair:
    source_host, destination_host = (
        QemuHypervisor(binary_of(version), Acceleration.TCG, state_dir=probes_dir) for version in versions
    )
    guest = await source_host.freeze(spec)
    source = await start(source_host, guest)
    await source.cont()
    return Pair(source, await start(destination_host, guest, incoming=True))


@pytest.mark.parametrize("versions", PAIRS, ids=lambda p: f"{p[0][0]}.{p[0][1]}-to-{p[1][0]}.{p[1][1]}")
async def test_lock_follows_the_owner(
    versions: tuple[tuple[int, int], tuple[int, int]], spec: GuestSpec, image: Disk, start: Start, probes_dir: Path
) -> None:
    """The image's write lock is the source's until it completes, nobody's while loaded, the destination's after cont."""
    pair = await make_pair(versions, replace(spec, disks=(image,)), start, probes_dir)
    source, destination = pair.source.record.pid, pair.destination.record.pid

    def holders() -> tuple[bool, bool]:
        return holds_lock(source, image.path), holds_lock(destination, image.path)

    assert holders() == (True, False)
    await pair.move_to_pre_switchover(secrets.token_hex(32))
    assert await pair.source.query_run_state() is RunState.FINISH_MIGRATE
    assert holders() == (True, False)
    await pair.load()
    assert (await pair.source.query_run_state(), await pair.destination.query_run_state()) == (
        RunState.POSTMIGRATE,
        RunState.PAUSED,
    )
    assert holders() == (False, False)
    await pair.destination.cont()
    assert holders() == (False, True)
    assert await pair.destination.query_run_state() is RunState.RUNNING
    with pytest.raises(Broken, match="lock"):
        await pair.source.cont()
