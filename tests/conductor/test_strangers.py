"""What is said of connections without the key: at once, then once a minute, and the rest at the end."""

from __future__ import annotations

from typing import Any, cast

import structlog
from structlog.testing import capture_logs

from vmferry.conductor.strangers import Strangers
from vmferry.core.ids import GuestName


class Qemu:
    """Refused so many."""

    refused = 0

    def count_refused(self) -> int:
        """Return them."""
        return self.refused


async def test_a_crowd_is_told_once_a_minute() -> None:
    """Each is counted once, and a log that was cut counts nobody twice."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(0), cache_logger_on_first_use=False)
    now, qemu = [1000.0], Qemu()
    told = Strangers(GuestName("web-7"), lambda: now[0])

    async def look(refused: int, *, after_s: float = 0.0, last: bool = False) -> list[int]:
        now[0] += after_s
        qemu.refused = refused
        with capture_logs() as logs:
            await told.look(cast("Any", qemu), last=last)
        return [each["count"] for each in logs]

    assert await look(0) == []
    assert await look(1) == [1]
    assert await look(30, after_s=59) == []
    assert await look(40, after_s=2) == [39]
    assert await look(41) == []
    assert await look(3, after_s=61) == []
    assert await look(42, last=True) == [2]
