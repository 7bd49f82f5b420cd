"""Asks a built-in guest something over its control channel or its serial console."""

from __future__ import annotations

import asyncio
from pathlib import Path

from vmferry.core.errors import Broken, TimedOut

#: Checking 256 MiB takes a few seconds under TCG on a busy machine.
ANSWER_TIMEOUT_S = 60.0


async def ask(path: Path, question: str, prefix: str, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
    """Send a question and return the first line of the answer that begins with `prefix`; other lines are passed over.

    The channel has room for one client at a time: while the agent reads it, this waits.

    Raises:
        Broken: nobody has the channel open, or it closed before the answer.
        TimedOut: no such line came.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(path, question, prefix)
    except TimeoutError as error:
        raise TimedOut(f"No answer to {question!r} on {path} within {timeout_s:.0f} s", retry=True) from error
    except OSError as error:
        raise Broken(f"Guest channel {path} is not there: {error}") from error


async def _ask(path: Path, question: str, prefix: str) -> str:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(question.encode())
        while line := await reader.readline():
            text = line.decode("utf-8", "replace").strip()
            if text.startswith(prefix):
                return text
        raise Broken(f"Guest channel {path} closed before it answered {question!r}")
    finally:
        writer.close()


async def send(path: Path, order: str) -> None:
    """Send something that has no answer.

    Raises:
        Broken: nobody has the channel open.
    """
    try:
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(order.encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    except OSError as error:
        raise Broken(f"Guest channel {path} is not there: {error}") from error
