"""What watchers of one hand-over see: every progress event from the start, then live, until it is finished."""

from __future__ import annotations

import asyncio
import bisect
import itertools
from collections.abc import AsyncIterator

from vmferry.core.progress import Finished, Progress, ProgressEvent

#: With so many readings every second of the older half is dropped: who comes late needs rounds and states.
_KEPT_READINGS = 2000


class Feed:
    """A growing list of events with any number of readers, each at its own pace.

    Everyone who reads along sees every event; who comes late sees all but the thinned-out readings.
    """

    def __init__(self) -> None:
        self._events: list[tuple[int, ProgressEvent]] = []  #: by number
        self._numbers = itertools.count()
        self._readings = 0
        self._closed = False
        self._changed = asyncio.Event()  #: set with the next change, and replaced then
        self.last_progress: Progress | None = None  #: the newest reading

    async def publish(self, event: ProgressEvent) -> None:
        """Add an event and wake the readers; never waits."""
        self.tell(event)

    def tell(self, event: ProgressEvent) -> None:
        """Add an event and wake the readers."""
        self._events.append((next(self._numbers), event))
        if isinstance(event, Progress):
            self.last_progress = event
            self._readings += 1
            if self._readings >= _KEPT_READINGS:
                self._thin_out()
        self._wake()

    def close(self) -> None:
        """End every reader after what is there; for a hand-over whose end was not published here."""
        self._closed = True
        self._wake()

    async def follow(self) -> AsyncIterator[ProgressEvent]:
        """Yield everything from the start and then live; ends after `Finished`."""
        seen = -1
        while True:
            start = bisect.bisect_right(self._events, seen, key=lambda item: item[0])
            for number, event in self._events[start:]:
                seen = number
                yield event
                if isinstance(event, Finished):
                    return
            if self._has_no_more(seen):
                if self._closed:
                    return
                await self._changed.wait()

    def _has_no_more(self, seen: int) -> bool:
        return not self._events or self._events[-1][0] <= seen

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _thin_out(self) -> None:
        """Drop every second reading of the older half; whoever reads along has seen those."""
        readings = [number for number, event in self._events if isinstance(event, Progress)]
        dropped = set(readings[1 : len(readings) // 2 : 2])
        self._readings -= len(dropped)
        self._events = [item for item in self._events if item[0] not in dropped]
