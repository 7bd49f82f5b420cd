"""Runs a command to its end as part of a lab, away from the terminal's Ctrl-C."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command did."""

    exit_code: int
    stdout: str
    stderr: str


async def run_command(argv: Sequence[str], env: Mapping[str, str], timeout_s: float) -> Ran:
    """Run a command and return what it did; a cancelled or late one is ended.

    Raises:
        TimeoutError: it did not end in time.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except BaseException:
        await end(process)
        raise
    return Ran(process.returncode or 0, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


async def end(process: asyncio.subprocess.Process) -> None:
    """End a process that we started: politely, and at once when it does not go. Idempotent."""
    for stop in (process.terminate, process.kill):
        if process.returncode is not None:
            return
        stop()
        try:
            async with asyncio.timeout(3):
                await process.wait()
        except TimeoutError:
            continue
