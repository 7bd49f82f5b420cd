"""The tasks in which this agent's hand-overs are driven."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from vmferry.core.handover.states import Side
from vmferry.core.ids import HandoverId

_log = structlog.get_logger(__name__)


class Lives:
    """Drives hand-overs, each side in a task of its own."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[HandoverId, Side], asyncio.Task[None]] = {}

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def begin(self, handover: HandoverId, side: Side, life: Coroutine[Any, Any, None]) -> None:
        """Have one side live; what it fails of is logged."""
        key = (handover, side)
        task = asyncio.create_task(life, name=f"{side}:{handover}")
        self._tasks[key] = task
        task.add_done_callback(lambda ended: self._bury(key, ended))

    def _bury(self, key: tuple[HandoverId, Side], ended: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)
        if not ended.cancelled() and (error := ended.exception()) is not None:
            _log.error("hand-over is not driven any more", handover=key[0], side=str(key[1]), error=repr(error))

    async def wait_ended(self, handover: HandoverId, side: Side, limit_s: float | None = None) -> None:
        """Wait until everything of a hand-over that has reached its final state is tidied up."""
        task = self._tasks.get((handover, side))
        if task is not None:
            await asyncio.wait([task], timeout=limit_s)

    async def close(self) -> None:
        """Stop driving; everything is journalled and goes on with the next agent."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
