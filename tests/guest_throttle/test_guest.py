"""The write throttle in a real guest: Debian's kernel, our workload under the helper, a virtio-serial port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from vmferry.core.errors import NotFound
from vmferry.guest_throttle import ThrottleChannel, ThrottleOrder
from vmferry.lab.guests import build
from vmferry.lab.guests.throttled import ThrottledGuest, throttled_guest
from vmferry.lab.toolchain import cache_dir, find_qemus

pytestmark = [pytest.mark.real, pytest.mark.slow]

#: Long enough for a guest under TCG on a busy machine to want far more than its 40 pages: a caught write can cost 2 ms.
ORDER = ThrottleOrder("move-1", slot_ms=250, max_stall_ms=250, lease_ms=60000)
#: 80 pages per second: 20 000 pages would take four minutes.
SLOW = ThrottleOrder("move-1", slot_ms=500, max_stall_ms=500, lease_ms=60000)
UNLIMITED = 4000  # MiB/s

Start = Callable[..., AbstractAsyncContextManager[ThrottledGuest]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts linux guests under the helper on the newest QEMU, each with a folder of its own."""
    try:
        qemu = max(find_qemus(), key=lambda found: found.version)
    except (NotFound, ValueError) as error:
        pytest.skip(f"no QEMU: {error}")
    image = await asyncio.to_thread(build, "linux", cache_dir())
    with TemporaryDirectory(prefix="vmf-") as folder:
        names = iter("abc")

        def started(**settings: object) -> AbstractAsyncContextManager[ThrottledGuest]:
            own = Path(folder) / next(names)
            own.mkdir()
            incoming = bool(settings.pop("incoming", False))
            return throttled_guest(qemu, image, own, helper=True, incoming=incoming, **settings)

        yield started


async def _wait_slots(guest: ThrottledGuest, channel: ThrottleChannel, more: int) -> None:
    """Wait until so many more slots have passed, and see that the guest answers all the time."""
    first = await channel.status()
    while (await channel.status()).slots < first.slots + more:
        await guest.ask("status")


async def test_the_guest_writes_forty_pages_per_slot_and_nothing_is_lost(start: Start) -> None:
    """Bounded while the order is in force, free after it, seen from outside too, and the oracle stays clean."""
    async with start(rate=UNLIMITED) as guest, await guest.open_throttle() as channel:
        free = await guest.dirty_mib_per_s()
        begun = await channel.begin(ORDER)
        first = await guest.numbers("status")
        await _wait_slots(guest, channel, 12)
        last = await guest.numbers("status")
        slots = (await channel.status()).slots - begun.slots
        bounded = await guest.dirty_mib_per_s()
        ended = await channel.end()
        after = await guest.dirty_mib_per_s()
        assert (begun.processes, begun.uncovered) == (1, 0)
        assert begun.covered_kib >= 64 << 10
        # These slots have passed around both answers, however long those took; the ones at either end count too.
        assert 0 < last["writes"] - first["writes"] <= ORDER.writes * (slots + 2)
        assert (ended.errors, ended.overruns) == (0, 0)
        assert ended.holds > 0
        assert bounded < free / 2
        assert after > bounded * 2
        assert (await guest.ask("oracle")).startswith("oracle clean ")


async def test_a_guest_that_moves_under_an_order_arrives_free(start: Start) -> None:
    """The port is closed where it arrives: the helper sees it, lets everything go, and nothing was lost on the way."""
    async with start(rate=UNLIMITED) as source, start(rate=UNLIMITED, incoming=True) as destination:
        async with await source.open_throttle() as channel:
            await channel.begin(SLOW)
            await _move(source, destination)
            first = await destination.numbers("status")
            while (await destination.numbers("status"))["writes"] < first["writes"] + 20_000:
                pass
            async with await destination.open_throttle() as there:
                status = await there.status()
        assert status.order_id is None
        assert status.slots < SLOW.lease_ms / SLOW.slot_ms  # it was not the lease that ended it
        assert (await destination.ask("oracle")).startswith("oracle clean ")


async def _move(source: ThrottledGuest, destination: ThrottledGuest) -> None:
    for side in (source, destination):
        await side.qmp.execute("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})
    await source.qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 30, "downtime-limit": 300})
    uri = f"unix:{destination.port.parent}/migration"
    await destination.qmp.execute("migrate-incoming", {"uri": uri})
    await source.qmp.execute("migrate", {"uri": uri})
    while True:
        event = await asyncio.wait_for(destination.qmp.events.get(), 120)
        if event["event"] == "RESUME":
            return
