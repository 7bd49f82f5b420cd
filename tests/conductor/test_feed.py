"""The feed: every reader sees the whole story, whenever it comes."""

from __future__ import annotations

import asyncio

import pytest

from vmferry.conductor import feed as feed_module
from vmferry.conductor.feed import Feed
from vmferry.core.progress import Finished, Outcome, Progress, ProgressEvent, StateEntered, Step
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds


def entered(state: str) -> StateEntered:
    """Return a state's event."""
    return StateEntered(Milliseconds(1.0), state, Step.ROUNDS, "host-a", None)


FINISHED = Finished(Milliseconds(9.0), Outcome.MOVED, "host-b", None, None, (), None)


def reading(number: int) -> Progress:
    """Return a reading that is told from others by its time."""
    none = Bytes(0)
    rate, at = BytesPerSecond(0), Milliseconds(float(number))
    return Progress(at, 1, none, none, none, rate, rate, None, Milliseconds(100.0), "fits", None)


async def read(feed: Feed) -> list[ProgressEvent]:
    """Return everything that a reader sees until it ends."""
    return [event async for event in feed.follow()]


async def test_late_and_early_readers_see_the_same() -> None:
    """A reader from the start, one in the middle and one after the end see the same events, and all of them end."""
    feed = Feed()
    early = asyncio.create_task(read(feed))
    await asyncio.sleep(0)
    await feed.publish(entered("checking"))
    middle = asyncio.create_task(read(feed))
    await asyncio.sleep(0)
    await feed.publish(FINISHED)
    assert await early == await middle == await read(feed) == [entered("checking"), FINISHED]


async def test_live_readers_see_every_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thinning takes nothing from who reads along, keeps memory bounded, and never drops a state."""
    monkeypatch.setattr(feed_module, "_KEPT_READINGS", 10)
    feed = Feed()
    live = asyncio.create_task(read(feed))
    await asyncio.sleep(0)
    readings = [reading(number) for number in range(95)]
    for number, event in enumerate(readings):
        await feed.publish(event)
        if number == 40:
            await feed.publish(entered("pre-switchover"))
        await asyncio.sleep(0)
        assert len(feed._events) <= 12
    await feed.publish(FINISHED)
    seen = await live
    assert [event for event in seen if isinstance(event, Progress)] == readings
    late = await read(feed)
    assert entered("pre-switchover") in late
    assert 0 < len([event for event in late if isinstance(event, Progress)]) <= 10
    assert feed.last_progress is readings[-1]


async def test_closed_feed_ends_its_readers() -> None:
    """A hand-over that ends without a word (the agent stops) leaves no reader waiting."""
    feed = Feed()
    reader = asyncio.create_task(read(feed))
    await feed.publish(entered("precopy"))
    feed.close()
    assert await reader == [entered("precopy")]
