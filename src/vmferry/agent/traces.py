"""The traces of past hand-overs: one small file each, the oldest removed when there are many."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import structlog

from vmferry.core.convergence.trace import Trace, encode
from vmferry.core.errors import Broken, NotFound
from vmferry.core.ids import HandoverId

_log = structlog.get_logger(__name__)

MOST_TRACES = 100
#: Of all traces; one of a migration of an hour is about 4 MiB.
MOST_BYTES = 64 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9-]{1,64}\Z")


class TraceStore:
    """Keeps traces in a directory of the agent's own.

    Args:
        directory: made with the first trace.
        most: how many are kept.
        most_bytes: how much they may take.
    """

    def __init__(self, directory: Path, most: int = MOST_TRACES, most_bytes: int = MOST_BYTES) -> None:
        self._directory = directory
        self._most = most
        self._most_bytes = most_bytes

    def keep(self, handover: HandoverId, trace: Trace) -> None:
        """Store a trace and remove the oldest ones beyond the bounds; a disk that refuses costs the trace only."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(self._path(handover), trace)
            self._remove_oldest()
        except OSError as error:
            _log.warning("trace is not kept", handover=handover, error=str(error))

    def _write(self, path: Path, trace: Trace) -> None:
        scratch = path.with_suffix(".new")
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in encode(trace))
            scratch.rename(path)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise

    def _remove_oldest(self) -> None:
        newest = sorted(self._directory.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        size = 0
        for number, path in enumerate(newest, 1):
            size += path.stat().st_size
            if number > self._most or (size > self._most_bytes and number > 1):
                path.unlink(missing_ok=True)

    async def read(self, handover: HandoverId) -> AsyncIterator[dict[str, object]]:
        """Return the lines of a hand-over's trace.

        Raises:
            NotFound: there is none (any more).
            Broken: it cannot be read.
        """
        return _each(await asyncio.to_thread(self._read, handover))

    def _read(self, handover: HandoverId) -> list[str]:
        try:
            return self._path(handover).read_text("utf-8").splitlines()
        except FileNotFoundError:
            raise NotFound(
                f"There is no trace of hand-over {handover}",
                fix="it is written at the source when a hand-over that sent anything is over, and kept for the last"
                f" {self._most}",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise Broken(
                f"Trace of hand-over {handover} cannot be read: {error}", fix="look at the source's disk"
            ) from error

    def _path(self, handover: HandoverId) -> Path:
        if not _NAME.fullmatch(handover):
            raise NotFound(f"There is no hand-over {handover!r}", fix="take one of `vmferry handover list`")
        return self._directory / f"{handover}.jsonl"


async def _each(lines: Sequence[str]) -> AsyncIterator[dict[str, object]]:
    for line in lines:
        yield json.loads(line)
