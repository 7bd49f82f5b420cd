"""Looks after what guests and their QEMUs write: a guest that prints for ever must not fill the disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from vmferry.qemu.log_limit import cut
from vmferry.qemu.run_dir import CONSOLE_LOG, QEMU_LOG, TPM_LOG

_log = structlog.get_logger("vmferry.logs")

#: Of each log, and as much again of the part before it.
LIMIT_BYTES = 4 << 20
#: What a guest prints in this time comes on top of the limit.
PERIOD_S = 1.0


class LogKeeper:
    """Cuts logs that are too long, for as long as the agent runs.

    Args:
        guests_dir: where each guest's directory is.
        limit_bytes: of each log.
    """

    def __init__(self, guests_dir: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._guests_dir = guests_dir
        self._limit_bytes = limit_bytes
        self._task: asyncio.Task[None] | None = None
        self._told: set[Path] = set()

    def start(self, period_s: float = PERIOD_S) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(period_s), name="log-keeper")

    async def close(self) -> None:
        """End. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, period_s: float) -> None:
        while True:
            await asyncio.to_thread(self.cut_all)
            await asyncio.sleep(period_s)

    def cut_all(self) -> None:
        """Look at every log once; one that cannot be cut is told once and keeps no other from it."""
        try:
            directories = list(self._guests_dir.iterdir())
        except OSError:
            return  # no guest yet
        for path in [directory / name for directory in directories for name in (CONSOLE_LOG, QEMU_LOG, TPM_LOG)]:
            try:
                cut(path.parent, path.name, self._limit_bytes)
            except OSError as error:
                if path not in self._told:
                    self._told.add(path)
                    _log.warning("log cannot be cut, it may grow without end", log=str(path), error=str(error))
