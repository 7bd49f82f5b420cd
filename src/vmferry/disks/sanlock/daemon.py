"""Asks sanlock's daemon: one connection per question, each with a limit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from vmferry.core.errors import Broken, TimedOut
from vmferry.disks.sanlock import wire

#: More than any answer has: 2000 hosts, or a process's leases.
_MOST_BYTES = 4 << 20
#: For questions that need no storage.
QUICK_S = 3.0
_START = "start it (`systemctl start wdmd sanlock`) and look at its log (`sanlock client log_dump`)"


class Daemon:
    """The daemon of this host.

    Args:
        where: its socket.
        quick_s: how long it may take over questions that need no storage.
    """

    def __init__(self, where: Path, quick_s: float = QUICK_S) -> None:
        self.where = where
        self.quick_s = quick_s

    async def ask(self, request: bytes, limit_s: float | None = None) -> tuple[int, bytes]:
        """Return the result of a request, below zero where it was refused, and what else was answered.

        Args:
            request: of `wire`.
            limit_s: how long it may take; None: it needs no storage.

        Raises:
            Broken: nobody answers there, or nothing that sanlock would say.
            TimedOut: it took longer than the limit; whether it was carried out is not known.
        """
        limit_s = self.quick_s if limit_s is None else limit_s
        try:
            async with asyncio.timeout(limit_s), self._connected() as (reader, writer):
                writer.write(request)
                result, length = wire.parse_header(await reader.readexactly(wire.HEADER.size))
                return result, await reader.readexactly(min(length, _MOST_BYTES))
        except TimeoutError as error:
            raise TimedOut(
                f"sanlock's daemon at {self.where} has not answered within {limit_s:g} s",
                fix="look at its storage and its log: `sanlock client log_dump`",
            ) from error
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise self._broken(error) from error

    async def ask_status(self) -> bytes:
        """Return how the daemon is set up, in its own words; raises as `ask` does."""
        try:
            async with asyncio.timeout(self.quick_s), self._connected() as (reader, writer):
                writer.write(wire.status())
                return await reader.read()
        except TimeoutError as error:
            raise TimedOut(f"sanlock's daemon at {self.where} has not answered within {self.quick_s:g} s") from error
        except OSError as error:
            raise self._broken(error) from error

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_unix_connection(self.where)
        try:
            yield reader, writer
        finally:
            writer.close()

    def _broken(self, error: Exception) -> Broken:
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        return Broken(f"sanlock's daemon does not answer at {self.where}: {told}", fix=_START)
