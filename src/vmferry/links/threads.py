"""Work in threads that cannot be stopped: who is cancelled leaves nothing behind that the thread makes later."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def finish(work: Callable[[], T], undo: Callable[[T], None], hurry: Callable[[], None] | None = None) -> T:
    """Run work in a thread; when this is cancelled, wait for its end all the same, and undo what it made.

    For what is quick, or must not be left half done; or, with `hurry`, for what ends soon after that was called.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if hurry is not None:
            hurry()
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:
                continue
        if not running.cancelled() and running.exception() is None:
            undo(running.result())
        raise


async def abandon(work: Callable[[], T], undo: Callable[[T], None]) -> T:
    """Run work in a thread; when this is cancelled, return at once, and have the thread undo what it makes.

    For what may hang with its storage.
    """
    lock, abandoned = threading.Lock(), threading.Event()
    made: list[T] = []

    def run() -> T:
        result = work()
        with lock:
            made.append(result)
            if abandoned.is_set():
                undo(result)
        return result

    try:
        return await asyncio.to_thread(run)
    except asyncio.CancelledError:
        with lock:
            abandoned.set()
            if made:
                undo(made[0])
        raise
