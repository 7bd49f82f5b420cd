"""The kit that every Hypervisor must pass: subclass `HypervisorConformance` and give it a fixture `bench`.

No guest software is needed: a guest is nothing but its firmware, which finds no disk to boot from and waits.
"""

# ruff: noqa: S101 - the checks of a kit are assertions

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import BadInput, Broken
from vmferry.core.guest import BiosBoot, Disk, FrozenGuest, GuestSpec, Nic
from vmferry.core.ids import GuestName, GuestUuid
from vmferry.core.pci import PciAddress
from vmferry.core.units import MIB, Bytes, BytesPerSecond, Milliseconds
from vmferry.ports.hypervisor import (
    GuestEvent,
    GuestEventKind,
    GuestProcess,
    HostResources,
    Hypervisor,
    MigrationSample,
    MigrationSetup,
    MigrationStatus,
    RunState,
)

ADDRESS = "127.0.0.1"
TIMEOUT_S = 60.0

CAPABILITIES = {"events": True, "return-path": True, "pause-before-switchover": True, "late-block-activate": True}

SPEC = GuestSpec(
    name=GuestName("web-7"),
    memory_bytes=Bytes(16 * MIB),
    boot=BiosBoot(),
    nics=(Nic(),),
)

KEY = "5e" * 32


def make_setup(psk_key: str | None = KEY, **capabilities: bool) -> MigrationSetup:
    """Return what both sides are set up with; further capabilities with `_` for `-`."""
    extra = {name.replace("_", "-"): on for name, on in capabilities.items()}
    return MigrationSetup(
        capabilities={**CAPABILITIES, **extra},
        max_bandwidth=BytesPerSecond(1000 * MIB),
        downtime_limit_ms=Milliseconds(300),
        psk_key=psk_key,
    )


def find_free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


def make_connection() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection, of which nothing was read."""
    with socket.create_server((ADDRESS, 0)) as server:
        outgoing = socket.create_connection(server.getsockname())
        arriving, _ = server.accept()
    return outgoing, arriving


async def wait_event(
    events: AsyncIterator[GuestEvent], kind: GuestEventKind, status: MigrationStatus | None = None
) -> GuestEvent:
    """Return the next event of that kind (and status); a status that is waited for in vain fails the test at once."""
    async with asyncio.timeout(TIMEOUT_S):
        async for event in events:
            if event.kind is kind and status in {None, event.status}:
                return event
            failed = kind is GuestEventKind.MIGRATION and event.status is MigrationStatus.FAILED
            assert not failed, f"the migration failed, expected {status}"
    raise AssertionError(f"the events ended without {kind} {status or ''}")


async def wait_status(events: AsyncIterator[GuestEvent], status: MigrationStatus) -> None:
    """Wait until the migration has that status."""
    await wait_event(events, GuestEventKind.MIGRATION, status)


async def wait_reading(process: GuestProcess, status: MigrationStatus) -> MigrationSample:
    """Return the first reading with that status."""
    async with asyncio.timeout(TIMEOUT_S):
        while (sample := await process.query_migration()).status is not status:  # noqa: ASYNC110 - no event is sure
            await asyncio.sleep(0.001)
    return sample


#: So slow that a post-copy does not end while a test looks at it; 1 does not do that (docs/design/postcopy.md).
CRAWL = {"max-postcopy-bandwidth": 1000}
UNLIMITED = {"max-postcopy-bandwidth": 0}

#: So slow that no round ends before post-copy is ordered: after its last round QEMU completes as pre-copy.
ROUND_BANDWIDTH = BytesPerSecond(4096)


@dataclass
class Bench:
    """Two hosts with shared storage, and what was started on them.

    Args:
        source: hypervisor of the first host.
        destination: of the second.
        directory: for run directories; short.
        image: on storage that both see.
    """

    source: Hypervisor
    destination: Hypervisor
    directory: Path
    image: Disk
    started: list[GuestProcess] = field(default_factory=list)

    def resources(self, name: str) -> HostResources:
        """Return what a host gives to a guest."""
        return HostResources(run_dir=str(self.directory / name), uid=None)

    async def start(self, guest: FrozenGuest, *, incoming: bool = False) -> GuestProcess:
        """Start a guest: at the destination when it is to arrive, else at the source."""
        host, name = (self.destination, "in") if incoming else (self.source, "out")
        process = await host.start(guest, self.resources(name), incoming=incoming)
        self.started.append(process)
        return process

    async def end(self) -> None:
        """Kill what is left."""
        for process in self.started:
            await process.kill()


@dataclass
class Move:
    """A guest at the source and its empty process at the destination."""

    source: GuestProcess
    destination: GuestProcess
    source_events: AsyncIterator[GuestEvent]
    destination_events: AsyncIterator[GuestEvent]

    async def send(self, destination_key: str | None = KEY) -> None:
        """Prepare both sides and start the stream."""
        port = find_free_port()
        await self.source.prepare_migration(make_setup(), incoming=False)
        await self.destination.prepare_migration(make_setup(destination_key), incoming=True)
        await self.destination.listen(ADDRESS, port)
        await self.source.migrate(ADDRESS, port)

    async def send_over(self, destination_key: str | None = KEY) -> None:
        """Prepare both sides and start the stream over a connection that somebody else has made."""
        await self.source.prepare_migration(make_setup(), incoming=False)
        await self.destination.prepare_migration(make_setup(destination_key), incoming=True)
        with contextlib.ExitStack() as ours:
            outgoing, arriving = (ours.enter_context(end) for end in make_connection())
            await self.destination.take_stream(arriving)
            await self.source.migrate_over(outgoing)

    async def pause(self) -> None:
        """Go as far as pre-switchover."""
        await self.send()
        await wait_status(self.source_events, MigrationStatus.PRE_SWITCHOVER)

    async def load(self) -> None:
        """Go as far as both sides say that everything is there."""
        await self.pause()
        await self.source.migrate_continue()
        await wait_status(self.source_events, MigrationStatus.COMPLETED)
        await wait_status(self.destination_events, MigrationStatus.COMPLETED)
        await self.settle()

    async def begin_postcopy(self) -> None:
        """Go as far as post-copy: the source stands for good, the destination could run and pages are missing."""
        port = find_free_port()
        setup = replace(make_setup(postcopy_ram=True), max_bandwidth=ROUND_BANDWIDTH, parameters=CRAWL)
        await self.source.prepare_migration(setup, incoming=False)
        await self.destination.prepare_migration(setup, incoming=True)
        await self.destination.listen(ADDRESS, port)
        await self.source.migrate(ADDRESS, port)
        await self.source.start_postcopy()
        await wait_status(self.source_events, MigrationStatus.PRE_SWITCHOVER)
        await wait_reading(self.destination, MigrationStatus.ACTIVE)
        await self.source.migrate_continue()
        await self.both_in(MigrationStatus.POSTCOPY_ACTIVE)
        async with asyncio.timeout(TIMEOUT_S):
            while await self.destination.query_run_state() is RunState.INMIGRATE:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.001)

    async def both_in(self, status: MigrationStatus) -> None:
        """Wait until both sides say so.

        By their events: a status may have passed before it is asked for, and a vCPU that waits for a page may keep the
        destination's main loop from answering.
        """
        await wait_status(self.source_events, status)
        await wait_status(self.destination_events, status)

    async def recover(self) -> None:
        """Bring a paused post-copy together again."""
        port = find_free_port()
        await self.destination.recover_listen(ADDRESS, port)
        await self.source.resume_stream(ADDRESS, port)
        await self.both_in(MigrationStatus.POSTCOPY_ACTIVE)

    async def settle(self) -> RunState:
        """Return the source's run state after its last status, which QEMU tells a moment before."""
        async with asyncio.timeout(TIMEOUT_S):
            while (state := await self.source.query_run_state()) is RunState.FINISH_MIGRATE:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0)
        return state

    async def states(self) -> tuple[RunState, RunState]:
        """Return the run states of source and destination."""
        return await self.source.query_run_state(), await self.destination.query_run_state()


async def make_move(bench: Bench, spec: GuestSpec = SPEC, *, running: bool = True) -> Move:
    """Start both sides."""
    guest = await bench.source.freeze(spec)
    source = await bench.start(guest)
    await source.cont()
    if not running:
        await source.stop()
    destination = await bench.start(guest, incoming=True)
    return Move(source, destination, source.events(), destination.events())


class HypervisorConformance:
    """What every Hypervisor promises, one sentence per test."""

    async def test_starts_paused(self, bench: Bench) -> None:
        """A started guest stands still: prelaunch, or inmigrate when it is to arrive."""
        guest = await bench.source.freeze(SPEC)
        assert await (await bench.start(guest)).query_run_state() is RunState.PRELAUNCH
        assert await (await bench.start(guest, incoming=True)).query_run_state() is RunState.INMIGRATE

    async def test_a_uuid_that_is_given_is_kept(self, bench: Bench) -> None:
        """A guest has the UUID that was asked for."""
        uuid = GuestUuid("6f1c1a1e-0000-4000-8000-000000000007")
        assert (await bench.source.freeze(replace(SPEC, uuid=uuid))).uuid == uuid

    async def test_cont_and_stop(self, bench: Bench) -> None:
        """Cont runs the vCPUs and stop stands them still, each with its event."""
        process = await bench.start(await bench.source.freeze(SPEC))
        events = process.events()
        await process.cont()
        await wait_event(events, GuestEventKind.RESUMED)
        assert await process.query_run_state() is RunState.RUNNING
        await process.stop()
        await wait_event(events, GuestEventKind.STOPPED)
        assert await process.query_run_state() is RunState.PAUSED

    async def test_cont_refuses_a_running_guest(self, bench: Bench) -> None:
        """Cont is refused while the vCPUs run."""
        process = await bench.start(await bench.source.freeze(SPEC))
        await process.cont()
        with pytest.raises(Broken, match="running"):
            await process.cont()

    async def test_early_cont_never_starts_an_arrival(self, bench: Bench) -> None:
        """Cont before everything is loaded is refused, and the guest still stands when it is."""
        move = await make_move(bench)
        with pytest.raises(Broken, match="inmigrate"):
            await move.destination.cont()
        await move.load()
        assert await move.destination.query_run_state() is RunState.PAUSED

    async def test_freezing_twice_gives_other_identities(self, bench: Bench) -> None:
        """Two guests of one specification share their hardware but neither uuid nor MAC."""
        one, two = await bench.source.freeze(SPEC), await bench.source.freeze(SPEC)
        assert (one.machine, one.cpu, len(one.devices)) == (two.machine, two.cpu, len(two.devices))
        assert one.uuid != two.uuid
        assert not set(one.macs) & set(two.macs)

    @pytest.mark.parametrize("cpu", ["host", "max", "base", "host,+aes", "no-such-cpu"])
    async def test_freeze_refuses_cpus_that_cannot_move(self, bench: Bench, cpu: str) -> None:
        """A CPU that is whatever the host is, or that nobody knows, is bad input."""
        with pytest.raises(BadInput, match="CPU"):
            await bench.source.freeze(replace(SPEC, cpu=cpu))

    @pytest.mark.parametrize("machine", ["q35", "pc", "pc-q35-99.1", "none"])
    async def test_freeze_refuses_unversioned_machines(self, bench: Bench, machine: str) -> None:
        """An alias or unknown machine type is bad input, and the fix names what there is."""
        with pytest.raises(BadInput, match=r"pc-q35-7\.2"):
            await bench.source.freeze(replace(SPEC, machine=machine))

    async def test_probe_cpu_finds_nothing_missing(self, bench: Bench) -> None:
        """A guest's CPU that was frozen here lacks nothing here or on the same host again."""
        guest = await bench.source.freeze(SPEC)
        assert list(await bench.destination.probe_cpu(guest)) == []

    async def test_takes_no_device_that_was_not_lent(self, bench: Bench) -> None:
        """It has the devices that it was built with; one that its host did not lend it is refused and not there."""
        guest = await bench.source.freeze(SPEC)
        process = await bench.start(guest)
        assert {device.id for device in guest.devices} <= set(await process.plugs.plugged())
        claim = DeviceClaim(PciAddress(0xFFFF, 0xFF, 0x1F, 7), SPEC.name, 1, "rp0")
        with pytest.raises(Broken):
            await process.plugs.plug(claim)
        with pytest.raises(Broken):
            await process.plugs.unplug(claim.id)
        assert claim.id not in await process.plugs.plugged()

    async def test_adopts_what_it_let_go(self, bench: Bench) -> None:
        """A process outlives its handle, and its record brings it back with the same state."""
        guest = await bench.source.freeze(SPEC)
        first = await bench.start(guest)
        await first.cont()
        await first.close()
        assert first.is_alive()
        again = await bench.source.adopt(guest, bench.resources("out"), first.record)
        assert again is not None
        bench.started = [again]
        assert again.record == first.record
        assert await again.query_run_state() is RunState.RUNNING
        events = again.events()
        await again.stop()
        await wait_event(events, GuestEventKind.STOPPED)

    async def test_adopts_no_other_process(self, bench: Bench) -> None:
        """A dead process, a reused pid and a pid of another boot are proven dead."""
        guest = await bench.source.freeze(SPEC)
        process = await bench.start(guest)
        record = process.record
        reused = dataclasses.replace(record, start_ticks=record.start_ticks - 1)
        rebooted = dataclasses.replace(record, boot_id="another boot")
        await process.close()
        for wrong in (reused, rebooted):
            assert await bench.source.adopt(guest, bench.resources("out"), wrong) is None
        again = await bench.source.adopt(guest, bench.resources("out"), record)
        assert again is not None
        await again.kill()
        bench.started = []
        assert await bench.source.adopt(guest, bench.resources("out"), record) is None

    async def test_ends_what_nobody_recorded(self, bench: Bench) -> None:
        """A process whose agent died before it was recorded is ended, arriving or not, and only once."""
        guest = await bench.source.freeze(SPEC)
        for incoming in (False, True):
            process = await bench.start(guest, incoming=incoming)
            await process.close()
            host, resources = (bench.destination, "in") if incoming else (bench.source, "out")
            assert await host.end_unrecorded(guest, bench.resources(resources))
            assert not process.is_alive()
            assert not await host.end_unrecorded(guest, bench.resources(resources))
        bench.started = []

    async def test_touches_nothing_that_ran(self, bench: Bench) -> None:
        """A process that was let run is no leftover of a start, whatever a journal has forgotten of it."""
        guest = await bench.source.freeze(SPEC)
        process = await bench.start(guest)
        record = process.record
        await process.cont()
        await process.close()
        with pytest.raises(Broken, match="not in the journal"):
            await bench.source.end_unrecorded(guest, bench.resources("out"))
        again = await bench.source.adopt(guest, bench.resources("out"), record)
        assert again is not None
        bench.started = [again]
        assert await again.query_run_state() is RunState.RUNNING

    async def test_everyone_sees_the_end(self, bench: Bench) -> None:
        """Each subscription ends after EXITED, one made later holds just that, and quit and kill are idempotent."""
        process = await bench.start(await bench.source.freeze(SPEC))
        one, two = process.events(), process.events()
        await process.quit()
        for events in (one, two, process.events()):
            kinds = [event.kind async for event in events]
            assert kinds[-1:] == [GuestEventKind.EXITED]
        assert not process.is_alive()
        await process.quit()
        await process.kill()

    async def test_no_answer_from_the_dead(self, bench: Bench) -> None:
        """Every question to a dead process is Broken at once."""
        process = await bench.start(await bench.source.freeze(SPEC))
        await process.kill()
        with pytest.raises(Broken, match="gone"):
            await process.query_run_state()
        with pytest.raises(Broken, match="gone"):
            await process.cont()

    async def test_moves(self, bench: Bench) -> None:
        """A guest moves: the source holds all of it stopped, the destination stands until its cont."""
        move = await make_move(bench)
        await move.load()
        assert await move.states() == (RunState.POSTMIGRATE, RunState.PAUSED)
        sample = await move.source.query_migration()
        assert sample.status is MigrationStatus.COMPLETED
        assert sample.transferred_bytes > 0
        assert sample.rounds >= 1
        assert (await move.destination.query_migration()).status is MigrationStatus.COMPLETED
        await move.destination.cont()
        await wait_event(move.destination_events, GuestEventKind.RESUMED)
        await move.destination.announce()
        await move.destination.announce([])
        assert await move.states() == (RunState.POSTMIGRATE, RunState.RUNNING)

    async def test_moves_over_a_connection(self, bench: Bench) -> None:
        """Encrypted over a connection that was given to both; it is theirs alone then, and good for one attempt."""
        move = await make_move(bench)
        await move.send_over(destination_key=secrets.token_hex(32))
        await wait_status(move.source_events, MigrationStatus.FAILED)
        assert await move.settle() is RunState.RUNNING
        await move.destination.kill()
        arrival = await bench.start(await bench.source.freeze(SPEC), incoming=True)
        again = Move(move.source, arrival, move.source.events(), arrival.events())
        await again.send_over()
        await wait_status(again.source_events, MigrationStatus.PRE_SWITCHOVER)
        await again.source.migrate_continue()
        await again.both_in(MigrationStatus.COMPLETED)
        await again.settle()
        assert await again.states() == (RunState.POSTMIGRATE, RunState.PAUSED)
        await arrival.cont()

    async def test_takes_a_connection_only_where_it_may(self, bench: Bench) -> None:
        """A guest of its own takes none, an arrival takes one."""
        move = await make_move(bench)
        await move.destination.prepare_migration(make_setup(), incoming=True)
        with contextlib.ExitStack() as ours:
            ends = [ours.enter_context(end) for end in make_connection()]
            with pytest.raises(Broken, match="incoming"):
                await move.source.take_stream(ends[0])
            await move.destination.take_stream(ends[1])
            with pytest.raises(Broken, match=r"incoming"):
                await move.destination.take_stream(ends[1])

    async def test_statuses_come_in_order(self, bench: Bench) -> None:
        """The source tells every status, in order, and stops its vCPUs before pre-switchover is told."""
        move = await make_move(bench)
        told = move.source.events()
        await move.load()
        await move.source.kill()
        seen = [event async for event in told]
        assert [event.status for event in seen if event.kind is GuestEventKind.MIGRATION] == [
            MigrationStatus.SETUP,
            MigrationStatus.ACTIVE,
            MigrationStatus.PRE_SWITCHOVER,
            MigrationStatus.DEVICE,
            MigrationStatus.COMPLETED,
        ]
        kinds = [event.kind for event in seen]
        paused = [event.status for event in seen].index(MigrationStatus.PRE_SWITCHOVER)
        assert kinds.index(GuestEventKind.STOPPED) < paused
        assert GuestEventKind.ROUND_ENDED in kinds
        assert [event.at_ns for event in seen] == sorted(event.at_ns for event in seen)

    async def test_rolls_back_when_loaded(self, bench: Bench) -> None:
        """Before the destination's cont the source can go on, once the destination is dead."""
        move = await make_move(bench, replace(SPEC, disks=(bench.image,)))
        await move.load()
        await move.destination.kill()
        await move.source.cont()
        assert await move.source.query_run_state() is RunState.RUNNING

    async def test_a_started_arrival_bars_the_source(self, bench: Bench) -> None:
        """Once the destination runs, its image locks keep the source from going on."""
        move = await make_move(bench, replace(SPEC, disks=(bench.image,)))
        await move.load()
        await move.destination.cont()
        with pytest.raises(Broken, match="lock"):
            await move.source.cont()

    async def test_two_guests_never_share_an_image(self, bench: Bench) -> None:
        """A second guest on a locked image does not start, and nothing of it is left."""
        spec = replace(SPEC, disks=(bench.image,))
        await bench.start(await bench.source.freeze(spec))
        other = await bench.destination.freeze(replace(spec, name=GuestName("web-8")))
        with pytest.raises(Broken, match="lock"):
            await bench.destination.start(other, bench.resources("in"), incoming=False)

    async def test_cancel_in_pre_switchover(self, bench: Bench) -> None:
        """A cancelled migration gives the vCPUs back by itself; cont is refused until then."""
        move = await make_move(bench)
        await move.pause()
        with pytest.raises(Broken, match="finish-migrate"):
            await move.source.cont()
        await move.source.migrate_cancel()
        await wait_status(move.source_events, MigrationStatus.CANCELLED)
        assert await move.settle() is RunState.RUNNING
        await wait_event(move.destination_events, GuestEventKind.EXITED)

    async def test_dead_destination_in_pre_switchover(self, bench: Bench) -> None:
        """The source does not notice a destination that dies here; when told to go on it fails and runs by itself."""
        move = await make_move(bench)
        await move.pause()
        await move.destination.kill()
        assert (await move.source.query_migration()).status is MigrationStatus.PRE_SWITCHOVER
        await move.source.migrate_continue()
        await wait_status(move.source_events, MigrationStatus.FAILED)
        assert await move.settle() is RunState.RUNNING
        assert (await move.source.query_migration()).error

    async def test_dead_source_ends_its_destination(self, bench: Bench) -> None:
        """A destination whose stream breaks before all is there ends by itself."""
        move = await make_move(bench)
        await move.pause()
        await move.source.kill()
        await wait_event(move.destination_events, GuestEventKind.EXITED)
        assert not move.destination.is_alive()

    async def test_tries_again_after_a_failure(self, bench: Bench) -> None:
        """A source that failed once moves the next time."""
        move = await make_move(bench)
        await move.source.prepare_migration(make_setup(), incoming=False)
        await move.source.migrate(ADDRESS, find_free_port())
        await wait_status(move.source_events, MigrationStatus.FAILED)
        assert await move.settle() is RunState.RUNNING
        await move.load()
        assert await move.states() == (RunState.POSTMIGRATE, RunState.PAUSED)

    async def test_wrong_key_fails(self, bench: Bench) -> None:
        """With another key at the destination nothing moves and the guest runs on."""
        move = await make_move(bench)
        await move.send(destination_key=secrets.token_hex(32))
        await wait_status(move.source_events, MigrationStatus.FAILED)
        assert await move.settle() is RunState.RUNNING

    async def test_paused_guest_arrives_paused(self, bench: Bench) -> None:
        """A guest that was paused by order moves, and stands on both sides afterwards."""
        move = await make_move(bench, running=False)
        await move.load()
        assert await move.states() == (RunState.POSTMIGRATE, RunState.PAUSED)

    async def test_listens_only_where_it_may(self, bench: Bench) -> None:
        """A guest of its own does not listen, and an arrival listens once."""
        move = await make_move(bench)
        with pytest.raises(Broken, match="incoming"):
            await move.source.listen(ADDRESS, find_free_port())
        await move.destination.prepare_migration(make_setup(), incoming=True)
        await move.destination.listen(ADDRESS, find_free_port())
        with pytest.raises(Broken, match=r"listen|incoming"):
            await move.destination.listen(ADDRESS, find_free_port())

    async def test_refuses_a_taken_port(self, bench: Bench) -> None:
        """A port that somebody else has is Broken; the process is of no use afterwards and can be ended."""
        move = await make_move(bench)
        await move.destination.prepare_migration(make_setup(), incoming=True)
        with socket.socket() as taken:
            taken.bind((ADDRESS, 0))
            taken.listen()
            self.occupy(bench, taken.getsockname()[1])
            with pytest.raises(Broken, match="in use"):
                await move.destination.listen(ADDRESS, taken.getsockname()[1])
        await move.destination.quit()
        assert not move.destination.is_alive()

    def occupy(self, bench: Bench, port: int) -> None:
        """Tell a hypervisor without real sockets that a port is taken; real ones see it."""

    async def test_continue_needs_pre_switchover(self, bench: Bench) -> None:
        """Migrate-continue without a migration that waits for it is refused; cancel then does nothing."""
        process = await bench.start(await bench.source.freeze(SPEC))
        await process.cont()
        with pytest.raises(Broken, match="migrate-continue"):
            await process.migrate_continue()
        await process.migrate_cancel()
        assert await process.query_run_state() is RunState.RUNNING

    async def test_limits_change_while_it_moves(self, bench: Bench) -> None:
        """Bandwidth, downtime limit and what waits in the kernel can be changed while a migration waits."""
        move = await make_move(bench)
        with pytest.raises(Broken):
            move.source.bound_unsent(Bytes(MIB))  # nothing is sent yet
        await move.pause()
        move.source.bound_unsent(Bytes(MIB))
        await move.source.set_bandwidth(BytesPerSecond(10 * MIB))
        await move.source.set_downtime_limit(Milliseconds(50))
        assert (await move.source.query_migration()).status is MigrationStatus.PRE_SWITCHOVER

    async def test_refuses_unknown_and_bad_capabilities(self, bench: Bench) -> None:
        """Unknown capabilities, and those that exclude each other, are bad input and change nothing."""
        move = await make_move(bench)
        with pytest.raises(BadInput, match="teleport"):
            await move.source.prepare_migration(make_setup(teleport=True), incoming=False)
        with pytest.raises(BadInput, match="exclude each other"):
            await move.source.prepare_migration(make_setup(multifd=True, xbzrle=True), incoming=False)
        await move.load()
        assert await move.states() == (RunState.POSTMIGRATE, RunState.PAUSED)
