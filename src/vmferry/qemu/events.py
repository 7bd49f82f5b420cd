"""QMP events turned into ours, and handed to everyone who listens.

Source: qapi/run-state.json (SHUTDOWN, RESET, STOP, RESUME, GUEST_PANICKED), qapi/migration.json, qapi/block-core.json,
qapi/qdev.json.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from vmferry.ports.hypervisor import GuestEvent, GuestEventKind, MigrationStatus, RunState

#: how many events a reader may be behind before the unimportant ones are dropped, oldest first
BACKLOG = 256

#: What the jobs and the nodes of mirrors are called: this, and the image's own node (disk_mirror.py).
MIRROR_PREFIX = "copy-"

#: never dropped: whoever misses one of these waits for ever
_KEPT = frozenset(
    {
        GuestEventKind.EXITED,
        GuestEventKind.MIGRATION,
        GuestEventKind.POWERED_OFF,
        GuestEventKind.PANICKED,
        GuestEventKind.RESET,
        GuestEventKind.MIRROR_FAILED,
        GuestEventKind.UNPLUGGED,
        GuestEventKind.UNPLUG_REFUSED,
    }
)


#: The oldest event whose own stamp is believed: nobody reads that late, so the system's clock was set meanwhile.
_OLDEST_NS = 1_000_000_000


def happened_ns(message: Mapping[str, Any], read_ns: int, now_ns: int) -> int:
    """Return when an event happened on CLOCK_MONOTONIC, by QEMU's own stamp, which is of the system's clock.

    Args:
        message: with QEMU's `timestamp`, to the microsecond; -1 in it is "not known".
        read_ns: CLOCK_MONOTONIC when it was read.
        now_ns: the system's clock at the same moment. If it was set since the event, `read_ns` counts.

    Source: docs/interop/qmp-spec, "Asynchronous events".
    """
    stamp = message.get("timestamp")
    if not isinstance(stamp, Mapping):
        return read_ns
    seconds, microseconds = stamp.get("seconds"), stamp.get("microseconds")
    if not isinstance(seconds, int) or not isinstance(microseconds, int):
        return read_ns
    age_ns = now_ns - (seconds * 1_000_000_000 + microseconds * 1_000)
    return read_ns - age_ns if 0 <= age_ns < _OLDEST_NS else read_ns


def translate(message: Mapping[str, Any], at_ns: int) -> GuestEvent | None:
    """Return the event as ours, None when nobody of ours needs it."""
    make = _TRANSLATIONS.get(message.get("event", ""))
    return None if make is None else make(message.get("data", {}), at_ns)


def _plain(kind: GuestEventKind) -> Callable[[Mapping[str, Any], int], GuestEvent]:
    return lambda _, at_ns: GuestEvent(kind, at_ns)


def _shutdown(data: Mapping[str, Any], at_ns: int) -> GuestEvent | None:
    # With guest = false it is our own quit or a signal: EXITED follows and says enough.
    reason = str(data.get("reason", ""))
    if not data.get("guest") or reason == "guest-panic":
        return None
    return GuestEvent(GuestEventKind.POWERED_OFF, at_ns, detail=reason)


def _reset(data: Mapping[str, Any], at_ns: int) -> GuestEvent | None:
    if not data.get("guest"):
        return None
    return GuestEvent(GuestEventKind.RESET, at_ns, detail=str(data.get("reason", "")))


def _panicked(data: Mapping[str, Any], at_ns: int) -> GuestEvent | None:
    return GuestEvent(GuestEventKind.PANICKED, at_ns, detail=str(data.get("action", "")))


def _io_error(data: Mapping[str, Any], at_ns: int) -> GuestEvent | None:
    detail = f"{data.get('operation', '?')} on {data.get('node-name') or data.get('device')}: {data.get('reason', '?')}"
    return GuestEvent(GuestEventKind.IO_ERROR, at_ns, detail=detail)


def _job_completed(data: Mapping[str, Any], at_ns: int) -> GuestEvent | None:
    name, error = str(data.get("device", "")), data.get("error")
    if not name.startswith(MIRROR_PREFIX) or error is None:
        return None
    why = f"copy of image {name.removeprefix(MIRROR_PREFIX)} failed: {error}"
    return GuestEvent(GuestEventKind.MIRROR_FAILED, at_ns, detail=why)


def _migration(data: Mapping[str, Any], at_ns: int) -> GuestEvent | None:
    return GuestEvent(GuestEventKind.MIGRATION, at_ns, status=migration_status(data.get("status")))


def _migration_pass(data: Mapping[str, Any], at_ns: int) -> GuestEvent | None:
    return GuestEvent(GuestEventKind.ROUND_ENDED, at_ns, round=int(data.get("pass", 0)))


def _unplugged(data: Mapping[str, Any], at_ns: int) -> GuestEvent | None:
    # What has no id is a part of something else.
    return GuestEvent(GuestEventKind.UNPLUGGED, at_ns, detail=str(data["device"])) if "device" in data else None


def _unplug_refused(data: Mapping[str, Any], at_ns: int) -> GuestEvent:
    return GuestEvent(GuestEventKind.UNPLUG_REFUSED, at_ns, detail=str(data.get("device", "")))


def run_state(word: str) -> RunState:
    """Return QEMU's run state as ours; an unknown one is OTHER."""
    try:
        return RunState(word)
    except ValueError:
        return RunState.OTHER


def migration_status(word: object) -> MigrationStatus:
    """Return QEMU's word as ours; an unknown one is OTHER, none at all is NONE."""
    if word is None:
        return MigrationStatus.NONE
    try:
        return MigrationStatus(str(word))
    except ValueError:
        return MigrationStatus.OTHER


_TRANSLATIONS: dict[str, Callable[[Mapping[str, Any], int], GuestEvent | None]] = {
    "STOP": _plain(GuestEventKind.STOPPED),
    "RESUME": _plain(GuestEventKind.RESUMED),
    "SHUTDOWN": _shutdown,
    "RESET": _reset,
    "GUEST_PANICKED": _panicked,
    "BLOCK_IO_ERROR": _io_error,
    "BLOCK_JOB_COMPLETED": _job_completed,
    "DEVICE_DELETED": _unplugged,
    "DEVICE_UNPLUG_GUEST_ERROR": _unplug_refused,
    "MIGRATION": _migration,
    "MIGRATION_PASS": _migration_pass,
}


class Subscription(AsyncIterator[GuestEvent]):
    """One reader's events, from its creation to EXITED or until the process is let go of."""

    def __init__(self) -> None:
        self._events: deque[GuestEvent] = deque()
        self._arrived = asyncio.Event()
        self._ended = False

    def put(self, event: GuestEvent) -> None:
        """Add an event; when the reader is far behind, drop the oldest that nobody waits for."""
        if len(self._events) >= BACKLOG:
            self._drop_one()
        self._events.append(event)
        self._ended = self._ended or event.kind is GuestEventKind.EXITED
        self._arrived.set()

    def end(self) -> None:
        """End it after what is already there."""
        self._ended = True
        self._arrived.set()

    def _drop_one(self) -> None:
        for event in self._events:
            if event.kind not in _KEPT:
                self._events.remove(event)
                return

    async def __anext__(self) -> GuestEvent:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._events.popleft()


class EventHub:
    """Hands every event to every living subscription; a forgotten one costs nothing."""

    def __init__(self) -> None:
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._last: GuestEvent | None = None
        self._closed = False

    def subscribe(self) -> Subscription:
        """Return a new subscription; after EXITED it holds just that."""
        subscription = Subscription()
        if self._last is not None:
            subscription.put(self._last)
        elif self._closed:
            subscription.end()
        else:
            self._subscriptions.add(subscription)
        return subscription

    def publish(self, event: GuestEvent) -> None:
        """Hand an event to everyone; nothing comes after EXITED."""
        if self._last is not None:
            return
        if event.kind is GuestEventKind.EXITED:
            self._last = event
        for subscription in list(self._subscriptions):
            subscription.put(event)

    def close(self) -> None:
        """End all subscriptions without EXITED: the process is let go of, not gone."""
        self._closed = True
        for subscription in list(self._subscriptions):
            subscription.end()
