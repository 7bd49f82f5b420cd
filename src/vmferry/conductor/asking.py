"""Asks a policy, which is foreign code, and waits for no longer than it may take.

Each call has a thread of its own: one that hangs costs a thread and nothing else. It is a daemon, so that it cannot
keep the agent from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from vmferry.core.convergence import Facts, Guarded, Wishes
from vmferry.core.convergence.guarded import BUDGET_MS
from vmferry.core.convergence.orders import Orders

T = TypeVar("T")


async def ask(guarded: Guarded, call: Callable[[], Orders]) -> Orders:
    """Return what a policy orders; one that does not answer in time is given up, and the order is to cancel."""
    try:
        return await _in_time(call, guarded.name)
    except TimeoutError:
        return guarded.overdue()


async def ask_wishes(guarded: Guarded, facts: Facts) -> Wishes:
    """Return what a policy wishes; nothing when it does not answer in time (its next call will tell)."""
    try:
        return await _in_time(lambda: guarded.wishes(facts), guarded.name)
    except TimeoutError:
        return Wishes()


async def _in_time(call: Callable[[], T], name: str) -> T:
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[T] = loop.create_future()

    def tell(answer: T) -> None:
        if not answered.done():
            answered.set_result(answer)

    def work() -> None:
        answer = call()  # raises nothing: `Guarded` sees to it
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, answer)

    threading.Thread(target=work, name=f"policy:{name}", daemon=True).start()
    async with asyncio.timeout(BUDGET_MS / 1000):
        return await answered
