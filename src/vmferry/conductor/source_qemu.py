"""What a source asks its QEMU, and how it brings it back to where it was before the hand-over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from vmferry.conductor.steering import UNDER_WAY
from vmferry.core.errors import Broken, VmferryError
from vmferry.core.ids import GuestName
from vmferry.core.migration import MigrationSample, MigrationStatus, RunState
from vmferry.ports.hypervisor import GuestProcess

_POSTMIGRATE_LIMIT_S = 2.0
#: How long a QEMU whose connection broke may take to be proven dead: its memory is freed first.
_DEATH_LIMIT_S = 5.0
#: How long after a cancel QEMU may take to let the vCPUs run again by itself.
_RESUMES_ITSELF_S = 0.3
#: Run states on the way to another one, or in which the guest waits for `cont`.
_STOPPED_BY_US = frozenset({RunState.PAUSED, RunState.POSTMIGRATE, RunState.FINISH_MIGRATE})


async def is_dying(process: GuestProcess) -> bool:
    """Tell whether a process whose connection broke is dead now, or will be in a moment."""
    for _ in range(round(_DEATH_LIMIT_S / 0.01)):
        if not process.is_alive():
            return True
        with contextlib.suppress(VmferryError):
            await process.query_run_state()
            return False
        await asyncio.sleep(0.01)
    return False


async def why_ended(process: GuestProcess, status: MigrationStatus) -> str:
    """Return what QEMU says about a migration that it has given up."""
    told = f"QEMU at the source says that the migration {status}"
    with contextlib.suppress(VmferryError):
        error = (await process.query_migration()).error
        return f"{told}: {error}" if error else told
    return told


async def wait_postmigrate(process: GuestProcess, name: GuestName) -> None:
    """Wait for run state `postmigrate`, which QEMU enters right after it says `completed`.

    Raises:
        Broken: it does not within 2 s.
    """
    try:
        async with asyncio.timeout(_POSTMIGRATE_LIMIT_S):
            state = await process.query_run_state()
            while state is not RunState.POSTMIGRATE:
                await asyncio.sleep(0.001)
                state = await process.query_run_state()
    except TimeoutError as error:
        raise Broken(f"QEMU of guest {name} at the source says completed but not postmigrate", side="source") from error


async def undo_migration(
    process: GuestProcess, sample: MigrationSample, shall_run: Callable[[], bool], *, resumes: bool
) -> None:
    """Cancel what is under way, have the guest go on, and take the stream's set-up back; may be repeated.

    Args:
        process: the guest's QEMU.
        sample: read a moment ago.
        shall_run: whether the guest shall run, asked each time: an operator may change it meanwhile.
        resumes: whether QEMU lets the guest go on by itself; not when somebody else had stopped it.
    """
    if sample.status in UNDER_WAY:
        await process.migrate_cancel()
    while sample.status in UNDER_WAY:
        await asyncio.sleep(0.02)
        sample = await process.query_migration()
    await go_on(process, shall_run, resumes=resumes)
    await process.cleanup_migration()


async def go_on(process: GuestProcess, shall_run: Callable[[], bool], *, resumes: bool = True) -> None:
    """See to it that the guest runs if it shall: QEMU resumes it by itself after a cancel, not after `completed`.

    An operator who paused it meanwhile finds it paused, although QEMU may have resumed it.
    """
    loop = asyncio.get_running_loop()
    patience = loop.time() + (_RESUMES_ITSELF_S if resumes else 0.0)
    while (state := await process.query_run_state()) in _STOPPED_BY_US:
        if state is not RunState.FINISH_MIGRATE:
            if not shall_run():
                return
            if state is RunState.POSTMIGRATE or loop.time() > patience:
                await process.cont()
        await asyncio.sleep(0.01)
    if not shall_run():
        await process.stop()
