"""QMP events become ours, and no reader loses what it waits for."""

from __future__ import annotations

import asyncio

import pytest

from vmferry.ports.hypervisor import GuestEvent, GuestEventKind, MigrationStatus
from vmferry.qemu.events import BACKLOG, EventHub, Subscription, happened_ns, migration_status, translate

KINDS = GuestEventKind


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("STOP", {}, GuestEvent(KINDS.STOPPED, 5)),
        ("RESUME", {}, GuestEvent(KINDS.RESUMED, 5)),
        (
            "SHUTDOWN",
            {"guest": True, "reason": "guest-shutdown"},
            GuestEvent(KINDS.POWERED_OFF, 5, detail="guest-shutdown"),
        ),
        ("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"}, None),
        ("SHUTDOWN", {"guest": False, "reason": "host-signal"}, None),
        ("SHUTDOWN", {"guest": True, "reason": "guest-panic"}, None),
        ("RESET", {"guest": True, "reason": "guest-reset"}, GuestEvent(KINDS.RESET, 5, detail="guest-reset")),
        ("RESET", {"guest": False, "reason": "host-qmp-system-reset"}, None),
        ("GUEST_PANICKED", {"action": "pause"}, GuestEvent(KINDS.PANICKED, 5, detail="pause")),
        ("MIGRATION", {"status": "device"}, GuestEvent(KINDS.MIGRATION, 5, status=MigrationStatus.DEVICE)),
        ("MIGRATION", {"status": "new-in-12"}, GuestEvent(KINDS.MIGRATION, 5, status=MigrationStatus.OTHER)),
        ("MIGRATION_PASS", {"pass": 3}, GuestEvent(KINDS.ROUND_ENDED, 5, round=3)),
        (
            "BLOCK_IO_ERROR",
            {"operation": "write", "node-name": "image0", "reason": "No space left on device"},
            GuestEvent(KINDS.IO_ERROR, 5, detail="write on image0: No space left on device"),
        ),
        ("RTC_CHANGE", {"offset": 1}, None),
    ],
)
def test_translation(name: str, data: dict[str, object], expected: GuestEvent | None) -> None:
    """Each event of QEMU is one of ours or nothing; what the host did itself is nothing."""
    assert translate({"event": name, "data": data}, 5) == expected


def test_every_status_is_known_by_its_word() -> None:
    """QEMU's words are our values, no word is NONE."""
    assert [migration_status(status.value) for status in MigrationStatus] == list(MigrationStatus)
    assert migration_status(None) is MigrationStatus.NONE


async def drain(subscription: Subscription) -> list[GuestEvent]:
    """Read to the end."""
    return [event async for event in subscription]


async def test_slow_reader_keeps_what_counts() -> None:
    """A reader that is far behind loses rounds and stops, never a status or the end."""
    hub = EventHub()
    slow = hub.subscribe()
    hub.publish(GuestEvent(KINDS.MIGRATION, 0, status=MigrationStatus.ACTIVE))
    for number in range(BACKLOG * 2):
        hub.publish(GuestEvent(KINDS.ROUND_ENDED, number, round=number))
    hub.publish(GuestEvent(KINDS.MIGRATION, 1, status=MigrationStatus.COMPLETED))
    hub.publish(GuestEvent(KINDS.EXITED, 2))
    events = await drain(slow)
    assert len(events) == BACKLOG
    assert [e.kind for e in events if e.kind is not KINDS.ROUND_ENDED] == [
        KINDS.MIGRATION,
        KINDS.MIGRATION,
        KINDS.EXITED,
    ]


async def test_statuses_alone_are_never_dropped() -> None:
    """When only important events are waiting, all of them stay."""
    hub = EventHub()
    slow = hub.subscribe()
    for number in range(BACKLOG * 2):
        hub.publish(GuestEvent(KINDS.MIGRATION, number, status=MigrationStatus.ACTIVE))
    hub.close()
    assert len(await drain(slow)) == BACKLOG * 2


async def test_subscriptions_are_independent() -> None:
    """What one reader takes, another still gets, and one made later gets only what comes then."""
    hub = EventHub()
    early = hub.subscribe()
    hub.publish(GuestEvent(KINDS.STOPPED, 1))
    late = hub.subscribe()
    hub.publish(GuestEvent(KINDS.EXITED, 2))
    hub.publish(GuestEvent(KINDS.STOPPED, 3))
    assert [event.at_ns for event in await drain(early)] == [1, 2]
    assert [event.at_ns for event in await drain(late)] == [2]
    assert [event.at_ns for event in await drain(hub.subscribe())] == [2]


async def test_close_ends_without_exited() -> None:
    """Letting a process go ends its subscriptions, waiting ones and new ones, without saying that it is dead."""
    hub = EventHub()
    waiting = asyncio.create_task(drain(hub.subscribe()))
    await asyncio.sleep(0)
    hub.close()
    assert await waiting == []
    assert await drain(hub.subscribe()) == []


async def test_forgotten_subscriptions_cost_nothing() -> None:
    """A subscription that nobody holds is gone."""
    hub = EventHub()
    hub.subscribe()
    assert len(hub._subscriptions) == 0


def stamped(seconds: object, microseconds: object) -> dict[str, object]:
    """Return an event with a stamp."""
    return {"event": "RESUME", "timestamp": {"seconds": seconds, "microseconds": microseconds}}


def test_an_event_happened_when_qemu_says() -> None:
    """QEMU's stamp counts, moved to the monotonic clock: how late it was read does not matter."""
    assert happened_ns(stamped(100, 250), read_ns=5_000_000, now_ns=100_001_250_000) == 5_000_000 - 1_000_000


@pytest.mark.parametrize(
    "message",
    [
        {"event": "RESUME"},
        {"event": "RESUME", "timestamp": 7},
        stamped(-1, -1),
        stamped("100", 250),
        stamped(99, 0),  # the clock was set forward since
        stamped(101, 0),  # the clock was set back since
    ],
)
def test_a_stamp_that_cannot_be_is_not_believed(message: dict[str, object]) -> None:
    """Without a stamp of the last second the moment of reading counts."""
    assert happened_ns(message, read_ns=5_000_000, now_ns=100_001_250_000) == 5_000_000
