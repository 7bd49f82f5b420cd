"""Tells of those who came to an arriving guest's ports without its key: to whoever runs the host, and seldom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from vmferry.core.ids import GuestName
from vmferry.ports.hypervisor import GuestProcess

#: Whoever scans ports must not fill the log.
_TELL_EVERY_S = 60.0

_log = structlog.get_logger(__name__)


class Strangers:
    """Those of one arrival.

    Args:
        guest: which.
        now: the time in seconds, that never goes back.
    """

    def __init__(self, guest: GuestName, now: Callable[[], float] = time.monotonic) -> None:
        self._guest = guest
        self._now = now
        self._told = 0
        self._told_at = float("-inf")

    async def look(self, process: GuestProcess, *, last: bool = False) -> None:
        """Log how many more were refused, at most once a minute.

        Args:
            process: the arrival's QEMU.
            last: whether nobody looks again: what was kept back is told.
        """
        count = await asyncio.to_thread(process.count_refused)
        is_time = last or self._now() - self._told_at >= _TELL_EVERY_S
        if count > self._told and is_time:
            _log.warning(
                "connection to an arriving guest's port refused: it showed no key or certificate of the move",
                guest=self._guest,
                count=count - self._told,
            )
            self._told, self._told_at = count, self._now()
