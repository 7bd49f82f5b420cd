"""What every Hypervisor promises about post-copy: mix `PostcopyConformance` into a class of the kit with its `bench`.

Source: docs/design/postcopy.md.
"""

# ruff: noqa: S101 - the checks of a kit are assertions

from __future__ import annotations

from dataclasses import replace

import pytest

from vmferry.core.errors import BadInput, Broken
from vmferry.ports.hypervisor import MigrationStatus, RunState
from vmferry.testing.conformance_hypervisor import (
    ADDRESS,
    SPEC,
    UNLIMITED,
    Bench,
    Move,
    find_free_port,
    make_move,
    make_setup,
    wait_reading,
    wait_status,
)


class PostcopyConformance:
    """Post-copy begins, breaks, is recovered, and has no way back; one sentence per test."""

    async def test_moves_by_postcopy(self, bench: Bench) -> None:
        """Post-copy: the destination stands, loaded, until its cont; the pages follow; the source is done last."""
        move = await make_move(bench, replace(SPEC, disks=(bench.image,)))
        await move.begin_postcopy()
        assert await move.states() == (RunState.FINISH_MIGRATE, RunState.PAUSED)
        await move.destination.cont()
        assert await move.source.query_run_state() is RunState.FINISH_MIGRATE
        await move.source.set_parameters(UNLIMITED)
        await move.both_in(MigrationStatus.COMPLETED)
        assert await move.settle() is RunState.POSTMIGRATE
        assert await move.destination.query_run_state() is RunState.RUNNING

    async def test_postcopy_needs_a_migration(self, bench: Bench) -> None:
        """Post-copy cannot be ordered before a migration, and nothing can be recovered that is not paused."""
        move = await make_move(bench)
        await move.source.prepare_migration(make_setup(postcopy_ram=True), incoming=False)
        with pytest.raises(Broken, match="started"):
            await move.source.start_postcopy()
        for order in (move.source.pause_postcopy(), move.destination.recover_listen(ADDRESS, find_free_port())):
            with pytest.raises(Broken, match="only"):
                await order
        with pytest.raises(Broken, match="resume"):
            await move.source.resume_stream(ADDRESS, find_free_port())

    async def test_postcopy_ordered_is_not_begun(self, bench: Bench) -> None:
        """Until migrate_continue post-copy is an order only: cancel gives the guest back (7.2: stopped)."""
        move = await make_move(bench)
        port = find_free_port()
        for process, incoming in ((move.source, False), (move.destination, True)):
            await process.prepare_migration(make_setup(postcopy_ram=True), incoming=incoming)
        await move.destination.listen(ADDRESS, port)
        await move.source.migrate(ADDRESS, port)
        await move.source.start_postcopy()
        await move.source.start_postcopy()
        await wait_status(move.source_events, MigrationStatus.PRE_SWITCHOVER)
        await move.source.migrate_cancel()
        await wait_status(move.source_events, MigrationStatus.CANCELLED)
        if await move.settle() is RunState.POSTMIGRATE:
            await move.source.cont()
        assert await move.source.query_run_state() is RunState.RUNNING

    async def test_no_way_back_in_postcopy(self, bench: Bench) -> None:
        """Once post-copy began the source can neither cancel nor go on, whether its stream is broken or not."""
        move = await make_move(bench)
        await move.begin_postcopy()
        for status in (MigrationStatus.POSTCOPY_ACTIVE, MigrationStatus.POSTCOPY_PAUSED):
            await wait_reading(move.source, status)
            with pytest.raises(Broken, match="cancel"):
                await move.source.migrate_cancel()
            with pytest.raises(Broken, match="finish-migrate"):
                await move.source.cont()
            if status is MigrationStatus.POSTCOPY_ACTIVE:
                await move.source.pause_postcopy()

    async def test_recovers_a_postcopy_again_and_again(self, bench: Bench) -> None:
        """A post-copy that was broken, on either side, is recovered with the key that it had, as often as needed."""
        move = await make_move(bench)
        await move.begin_postcopy()
        await move.destination.cont()
        for side in (move.source, move.destination):
            await side.pause_postcopy()
            await move.both_in(MigrationStatus.POSTCOPY_PAUSED)
            await move.recover()
        await move.source.set_parameters(UNLIMITED)
        await move.both_in(MigrationStatus.COMPLETED)
        assert (await move.settle(), await move.destination.query_run_state()) == (
            RunState.POSTMIGRATE,
            RunState.RUNNING,
        )

    async def test_a_failed_recovery_can_be_tried_again(self, bench: Bench) -> None:
        """A source that finds nobody is paused as before, and a second address replaces the first."""
        move = await make_move(bench)
        await move.begin_postcopy()
        await move.source.pause_postcopy()
        await move.both_in(MigrationStatus.POSTCOPY_PAUSED)
        await move.source.resume_stream(ADDRESS, find_free_port())
        await wait_reading(move.source, MigrationStatus.POSTCOPY_PAUSED)
        await move.destination.recover_listen(ADDRESS, find_free_port())
        await move.recover()

    async def test_waiting_vcpus_are_not_stopped(self, bench: Bench) -> None:
        """While a post-copy is broken stop is refused, QEMU would wait with its vCPUs; questions are answered."""
        move = await make_move(bench)
        await move.begin_postcopy()
        await move.destination.pause_postcopy()
        await move.both_in(MigrationStatus.POSTCOPY_PAUSED)
        with pytest.raises(Broken, match="wait for pages"):
            await move.destination.stop()
        assert await move.destination.query_run_state() is RunState.PAUSED
        await move.recover()
        await move.destination.cont()
        await move.source.set_parameters(UNLIMITED)
        await move.both_in(MigrationStatus.COMPLETED)
        await move.destination.stop()
        assert await move.destination.query_run_state() is RunState.PAUSED

    async def test_a_dead_side_pauses_the_other(self, bench: Bench) -> None:
        """A destination that dies in post-copy leaves its source paused, stopped for good."""
        move = await make_move(bench)
        await move.begin_postcopy()
        await move.destination.kill()
        await wait_reading(move.source, MigrationStatus.POSTCOPY_PAUSED)
        with pytest.raises(Broken, match="finish-migrate"):
            await move.source.cont()

    async def test_a_dead_source_pauses_its_destination(self, bench: Bench) -> None:
        """A source that dies in post-copy takes the pages with it: the destination lives on, paused."""
        move = await make_move(bench)
        await move.begin_postcopy()
        await move.source.kill()
        await wait_status(move.destination_events, MigrationStatus.POSTCOPY_PAUSED)
        assert move.destination.is_alive()

    async def test_a_paused_postcopy_is_adopted(self, bench: Bench) -> None:
        """A new agent finds out by asking, and recovers."""
        guest = await bench.source.freeze(SPEC)
        source = await bench.start(guest)
        await source.cont()
        destination = await bench.start(guest, incoming=True)
        move = Move(source, destination, source.events(), destination.events())
        await move.begin_postcopy()
        await move.source.pause_postcopy()
        await move.both_in(MigrationStatus.POSTCOPY_PAUSED)
        for process in (source, destination):
            await process.close()
        out = await bench.source.adopt(guest, bench.resources("out"), source.record)
        into = await bench.destination.adopt(guest, bench.resources("in"), destination.record)
        assert out is not None
        assert into is not None
        bench.started = [out, into]
        again = Move(out, into, out.events(), into.events())
        for process in (out, into):
            assert (await process.query_migration()).status is MigrationStatus.POSTCOPY_PAUSED
        assert await again.states() == (RunState.FINISH_MIGRATE, RunState.PAUSED)
        await again.recover()

    async def test_parameters_are_checked(self, bench: Bench) -> None:
        """Parameters that are unknown, not free to choose or fixed at the start are bad input."""
        process = await bench.start(await bench.source.freeze(SPEC))
        for name, why in (("teleport", "freely"), ("tls-creds", "freely"), ("multifd-channels", "fixed")):
            with pytest.raises(BadInput, match=why):
                await process.set_parameters({name: 1})
        await process.set_parameters({"cpu-throttle-initial": 30})
