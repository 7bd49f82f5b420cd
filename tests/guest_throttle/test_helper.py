"""The helper on this kernel: it bounds what programs write, breaks none of them, and lets go whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmferry.core.errors import Refused
from vmferry.guest_throttle import ThrottleChannel, ThrottleFigures, ThrottleOrder

if TYPE_CHECKING:
    Helper = Any  # conftest's
    Shared = Any
    StartHelper = Callable[..., Awaitable[Any]]

pytestmark = [pytest.mark.root]

ORDER = ThrottleOrder("move-1", writes=40, slot_ms=20, max_stall_ms=100, lease_ms=60000)
#: More pages than a throttled program could write before the test's own time limit.
FAR = 1_000_000


async def _slots(channel: ThrottleChannel, more: int) -> ThrottleFigures:
    """Return the figures when so many more slots have passed."""
    first = figures = await channel.status()
    while figures.slots < first.slots + more:
        await asyncio.sleep(0.02)
        figures = await channel.status()
    return figures


async def _faults(channel: ThrottleChannel, more: int) -> ThrottleFigures:
    """Return the figures when so many more writes were caught; never, if nothing new is under protection."""
    first = figures = await channel.status()
    while figures.faults < first.faults + more:
        await asyncio.sleep(0.02)
        figures = await channel.status()
    return figures


@pytest.mark.parametrize("program", ["victim", "victim-static"])
async def test_no_more_than_so_many_pages_are_written_per_slot(
    program: str, programs: Path, shared: Shared, start: StartHelper
) -> None:
    """Forty pages per slot and not one more, free before and after; the program's memory is right all the time."""
    helper = await start(programs / program, "write", shared.path)
    await shared.wait_writes(FAR)
    async with await helper.channel() as channel:
        begun = await channel.begin(ORDER)
        at_begin = shared.writes
        running = await _slots(channel, 30)
        written = shared.writes - at_begin
        last = await channel.status()
        ended = await channel.end()
    await shared.wait_writes(FAR)
    assert (begun.processes, begun.uncovered) == (1, 0)
    assert begun.covered_kib >= 8192
    assert 30 <= written <= ORDER.writes * (last.slots - begun.slots + 2)
    assert running.holds > 0
    assert (ended.errors, ended.overruns) == (0, 0)


async def test_what_the_kernel_writes_for_a_program_counts_too(
    programs: Path, shared: Shared, start: StartHelper
) -> None:
    """Pages filled by read(2) are held back like the program's own writes, and read returns what it should."""
    helper = await start(programs / "victim", "system", shared.path)
    await shared.wait_writes(10_000)
    async with await helper.channel() as channel:
        begun = await channel.begin(ORDER)
        at_begin = shared.writes
        await _slots(channel, 20)
        written = shared.writes - at_begin
        last = await channel.status()
    await shared.wait_writes(100_000)
    assert written <= ORDER.writes * (last.slots - begun.slots + 2)


@pytest.mark.parametrize("mode", ["fork", "exec", "grow", "grow-heap"])
async def test_new_processes_and_new_memory_are_followed(
    mode: str, programs: Path, shared: Shared, start: StartHelper
) -> None:
    """A child, another program, fresh mappings and a grown heap come under protection while the order runs."""
    helper = await start(programs / "victim", mode, shared.path)
    await shared.wait_stage()
    async with await helper.channel() as channel:
        await channel.begin(ORDER)
        os.kill(shared.pid, signal.SIGUSR1)
        figures = await _faults(channel, 500)
        assert figures.processes == (2 if mode == "fork" else 1)
        assert figures.errors == 0
    await shared.wait_writes(FAR)


async def test_another_users_process_is_throttled_through_the_device(
    programs: Path, shared: Shared, start: StartHelper
) -> None:
    """A process that may not create a userfaultfd by itself gets one by way of /dev/userfaultfd."""
    if not os.access("/dev/userfaultfd", os.R_OK):
        pytest.skip("this kernel has no /dev/userfaultfd (Linux 6.1)")
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    helper = await start(*drop, programs / "victim", "write", shared.path)
    await shared.wait_writes(FAR)
    folder = Path(f"/proc/{shared.pid}/fd")
    before = sorted(os.listdir(folder))  # noqa: PTH208  names
    async with await helper.channel() as channel:
        begun = await channel.begin(ORDER)
        await _faults(channel, 500)
        assert sorted(os.listdir(folder)) == before  # noqa: PTH208  nothing of ours stays in the process
    await shared.wait_writes(FAR)
    assert (begun.processes, begun.uncovered) == (1, 0)


async def test_a_filtered_process_is_left_alone_and_counted(programs: Path, shared: Shared, start: StartHelper) -> None:
    """A seccomp filter might kill a process for the calls that we need: it runs on, and the host is told."""
    helper = await start(programs / "victim", "filter", shared.path)
    await shared.wait_writes(FAR)
    async with await helper.channel() as channel:
        begun = await channel.begin(ORDER)
        assert (begun.processes, begun.uncovered) == (0, 1)
        await shared.wait_writes(FAR)
    shared.end()
    assert "is not throttled: it has a seccomp filter" in await helper.said()


async def test_everything_is_let_go_when_the_helper_is_killed(
    programs: Path, shared: Shared, start: StartHelper
) -> None:
    """SIGKILL in the middle of a slot: the kernel closes the descriptor, and the program runs on at full speed."""
    helper = await start(programs / "victim", "write", shared.path)
    await shared.wait_writes(FAR)
    async with await helper.channel() as channel:
        await channel.begin(ORDER)
        await _faults(channel, 100)
        helper.process.kill()
        await shared.wait_writes(FAR)


async def test_everything_is_let_go_when_the_channel_breaks(programs: Path, shared: Shared, start: StartHelper) -> None:
    """A host that closes the port without a word frees the guest."""
    helper = await start(programs / "victim", "write", shared.path)
    await shared.wait_writes(FAR)
    async with await helper.channel() as channel:
        await channel.begin(ORDER)
        await _faults(channel, 100)
    await shared.wait_writes(FAR)


async def test_who_orders_and_is_gone_at_once_throttles_nobody(
    programs: Path, shared: Shared, start: StartHelper
) -> None:
    """An order whose host is gone when it is read: the helper looks again a moment later, not at the lease's end."""
    helper = await start(programs / "victim", "write", shared.path)
    await shared.wait_writes(FAR)
    helper.process.send_signal(signal.SIGSTOP)
    helper.far.send(b"1 begin 1 1000 1000 60000 move-1\n")
    helper.far.close()
    helper.process.send_signal(signal.SIGCONT)
    await shared.wait_writes(FAR)


async def test_everything_is_let_go_when_the_host_falls_silent(
    programs: Path, shared: Shared, start: StartHelper
) -> None:
    """Without renewals the lease runs out, though the port stays open; a late renewal is refused."""
    helper = await start(programs / "victim", "write", shared.path)
    await shared.wait_writes(FAR)
    reader, writer = await asyncio.open_connection(sock=helper.far)
    writer.write(b"1 begin 40 20 100 100 move-1\n")
    assert (await reader.readline()).startswith(b"1 begun move-1 processes=1 ")
    assert (await reader.readline()).startswith(b"1 expired move-1 processes=1 ")
    await shared.wait_writes(FAR)
    writer.write(b"1 keep move-1\n")
    assert await reader.readline() == b"1 error unknown no order of this id is in force\n"
    writer.close()


@pytest.mark.parametrize(("writes", "max_stall_ms"), [(40, 100), (1, 10)], ids=["usual", "starved"])
async def test_a_program_full_of_hazards_is_not_broken(
    writes: int, max_stall_ms: int, programs: Path, start: StartHelper
) -> None:
    """Ending threads, forks, interrupted and restarted system calls, moving memory: all as without a throttle.

    Without the pages that are left out for the kernel's own sake, the first second ends in a thread that never joins.
    With one page per slot for all threads, who would wait longer than promised is let go on top of the budget.
    """
    helper = await start(programs / "hazards", "5", env={"GLIBC_TUNABLES": "glibc.pthread.rseq=0"})
    errors, overruns, rounds = 0, 0, 0
    async with await helper.channel() as channel:
        while helper.process.returncode is None and rounds < 8:
            rounds += 1
            await channel.begin(ThrottleOrder(f"move-{rounds}", writes, 10, max_stall_ms, 60000))
            await _slots(channel, 30)
            ended = await channel.end()
            errors += ended.errors
            overruns += ended.overruns
        assert "joins=" in await helper.said()
    assert await helper.process.wait() == 0
    assert (rounds, errors) == (8, 0)
    assert (overruns > 0) == (writes == 1)


async def test_garbage_and_bad_orders_are_refused_and_change_nothing(
    programs: Path, shared: Shared, start: StartHelper
) -> None:
    """Whatever a host sends is answered by one error line, and the order in force stays."""
    helper = await start(programs / "victim", "write", shared.path)
    await shared.wait_writes(FAR)
    reader, writer = await asyncio.open_connection(sock=helper.far)
    writer.write(b"1 begin 40 20 100 60000 move-1\n")
    await reader.readline()
    for line, code in (
        (b"\xff\xfe\x00garbage", b"line"),
        (b"x" * 5000, b"line"),
        (b"", b"version"),
        (b"2 begin 40 20 100 2000 a", b"version"),
        (b"1 dance", b"command"),
        (b"1 begin 40 20 100 2000", b"words"),
        (b"1 status now", b"words"),
        (b"1 begin 0 20 100 2000 a", b"range"),
        (b"1 begin 5000 20 100 2000 a", b"range"),
        (b"1 begin 40 20 10 2000 a", b"range"),
        (b"1 begin 99999999999999999999 20 100 2000 a", b"range"),
        (b"1 begin -1 20 100 2000 a", b"range"),
        (b"1 begin 40 20 100 2000 a/b", b"id"),
        (b"1 begin 40 20 100 2000 " + b"a" * 65, b"id"),
        (b"1 begin 40 20 100 2000 move-2", b"busy"),
        (b"1 end move-2", b"unknown"),
    ):
        writer.write(line + b"\n")
        assert (await reader.readline()).startswith(b"1 error " + code + b" "), line
    writer.write(b"1 status\n")
    assert (await reader.readline()).startswith(b"1 status move-1 processes=1 ")
    writer.close()


async def test_an_order_is_changed_by_the_same_id_and_refused_under_another(
    programs: Path, shared: Shared, start: StartHelper
) -> None:
    """A policy may tighten its order; somebody else's is refused, and the first stays in force."""
    helper = await start(programs / "victim", "write", shared.path)
    await shared.wait_writes(FAR)
    async with await helper.channel() as channel:
        await channel.begin(ThrottleOrder("move-1", slot_ms=1000, max_stall_ms=1000, lease_ms=60000))
        with pytest.raises(Refused, match="busy"):
            await channel.begin(ThrottleOrder("move-2"))
        await channel.begin(ThrottleOrder("move-1", writes=4, slot_ms=5, lease_ms=60000))
        at_change, first = shared.writes, await channel.status()
        last = await _slots(channel, 50)
        assert shared.writes - at_change <= 4 * (last.slots - first.slots + 50)
        assert last.order_id == "move-1"


async def test_the_commands_end_is_the_helpers_end(programs: Path, shared: Shared, start: StartHelper) -> None:
    """The exit status is the command's, a signal is passed on, and what cannot be started says so."""
    assert await (await start("sh", "-c", "exit 7")).process.wait() == 7
    assert await (await start("/nonexistent")).process.wait() == 127
    helper = await start(programs / "victim", "write", shared.path)
    await shared.wait_writes(1)
    helper.process.terminate()
    assert await helper.process.wait() == 128 + signal.SIGTERM
