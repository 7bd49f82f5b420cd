"""What watchers of one hand-over see: every progress event from the start, then live, until it is finished."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from vmferry.core.progress import Finished, Progress, ProgressEvent

#: More readings than this are thinned: a watcher that comes late needs rounds and states, not every reading.
_KEPT_READINGS = 2000


class Feed:
    """Append-only list of events with any number of readers, each at its own pace."""

    def __init__(self) -> None:
        self._events: list[ProgressEvent] = []
        self._readings = 0
        self._changed = asyncio.Condition()

    async def publish(self, event: ProgressEvent) -> None:
        """Add an event and wake the readers; readings beyond the kept number are dropped for late readers."""
        if isinstance(event, Progress):
            self._readings += 1
            if self._readings > _KEPT_READINGS:
                return
        self._events.append(event)
        async with self._changed:
            self._changed.notify_all()

    @property
    def last_progress(self) -> Progress | None:
        """Return the newest reading."""
        return next((event for event in reversed(self._events) if isinstance(event, Progress)), None)

    async def follow(self) -> AsyncIterator[ProgressEvent]:
        """Yield everything from the start and then live; ends after `Finished`."""
        index = 0
        while True:
            await self._wait_longer_than(index)
            for event in self._events[index:]:
                index += 1
                yield event
                if isinstance(event, Finished):
                    return

    async def _wait_longer_than(self, length: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._events) > length)
