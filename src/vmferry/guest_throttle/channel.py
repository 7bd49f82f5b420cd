"""Tells the helper in a guest that a migration runs, and keeps telling it, so that a lost host throttles nobody."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self, TypeAlias

from vmferry.core.errors import Broken, Refused, TimedOut, VmferryError
from vmferry.guest_throttle.protocol import (
    LINE_LIMIT,
    STATUS_LINE,
    Answer,
    ThrottleFigures,
    ThrottleOrder,
    parse_answer,
)

#: Protecting a big process for the first time takes a moment in the guest.
ANSWER_TIMEOUT_S = 5.0
_RENEWALS_PER_LEASE = 4
#: How often a helper that is busy with another order is asked again within one lease.
_TRIES_PER_LEASE = 20
#: How often a guest that says nothing is asked to begin.
_QUESTIONS = 2
#: Read for one answer. More are no late answers but a flood: reading does not yield while more lines wait.
_MOST_LINES = 16

_Opened: TypeAlias = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class ThrottleChannel:
    """A guest's throttle port; an async context manager.

    Whatever happens to this object, to its process or to the connection, the guest is let go: by `end`, by the closing
    of the port, or when the lease runs out.

    Args:
        reader: of QEMU's socket of the port.
        writer: of the same.
        answer_timeout_s: for each answer of the guest.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._timeout_s = answer_timeout_s
        self._turn = asyncio.Lock()
        self._order: ThrottleOrder | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._lost: VmferryError | None = None
        self._last: ThrottleFigures | None = None

    @classmethod
    async def open(cls, path: Path, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> Self:
        """Connect to the port's socket.

        Raises:
            Broken: nobody listens there: the guest has no such port, or does not run here.
        """
        return await cls.over(lambda: asyncio.open_unix_connection(path), str(path), answer_timeout_s)

    @classmethod
    async def over(cls, opener: _Opened, name: str, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> Self:
        """Connect by whatever opens the port.

        Raises:
            Broken: it cannot be opened.
        """
        try:
            reader, writer = await opener()
        except OSError as error:
            raise Broken(f"Throttle port {name} is not there: {error}", fix="give the guest the port") from error
        return cls(reader, writer, answer_timeout_s)

    async def __aenter__(self) -> Self:
        """Return the open channel."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the port, which ends an order that is in force."""
        await self.close()

    @property
    def order(self) -> ThrottleOrder | None:
        """The order that is in force as far as this side knows."""
        return self._order

    @property
    def lost(self) -> VmferryError | None:
        """Why the order is not renewed any more: the guest is free, or will be when its lease has run out."""
        return self._lost

    @property
    def last(self) -> ThrottleFigures | None:
        """What the helper said last about the order."""
        return self._last

    async def begin(self, order: ThrottleOrder) -> ThrottleFigures:
        """Put an order into force and keep it there until `end` or `close`; with the same id it is changed.

        When it returns, every process of the helper's that can be is under protection. A helper that is busy with
        another order is asked again for one lease: that of a host that has just gone has run out by then.

        Raises:
            Refused: another order is in force and is kept so, or the helper does not take this one; nothing changed.
            TimedOut: the guest does not answer: it has no helper, or stands still. It may be throttled for one lease.
            Broken: the port has closed, or what came is garbage.
        """
        figures = await self._begin(order)
        self._order = order
        self._lost = None
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._renew())
        return figures

    async def _begin(self, order: ThrottleOrder) -> ThrottleFigures:
        lease_s = order.lease_ms / 1000
        until = asyncio.get_running_loop().time() + lease_s
        silences = 0
        while True:
            late = asyncio.get_running_loop().time() > until
            try:
                return await self._ask(order.begin_line(), "begun", order.id)
            except Refused as error:
                if late or not error.retry:
                    raise
            except TimedOut:  # what is said while a port changes hands may be lost
                silences += 1
                if silences == _QUESTIONS:
                    raise
            await asyncio.sleep(lease_s / _TRIES_PER_LEASE)

    def hush(self) -> None:
        """Renew the order no more: the guest stands still and would hear it when nobody knows where it runs."""
        if self._renewal is not None:
            self._renewal.cancel()

    async def end_carried(self, order_id: str) -> ThrottleFigures:
        """End an order that another host put into force in this guest.

        Raises:
            Refused: it is not in force here.
            TimedOut: the guest does not answer.
            Broken: the port has closed, or what came is garbage.
        """
        return await self._ask(ThrottleOrder(order_id).end_line(), "ended", order_id)

    async def end(self) -> ThrottleFigures:
        """End the order: everybody in the guest runs free when this returns.

        Raises:
            Refused: the guest knows of no such order (its lease ran out, it has moved): it runs free.
            TimedOut: the guest does not answer; it will be free when its lease has run out.
            Broken: the port has closed, or what came is garbage; as above.
        """
        order = self._order
        if order is None:
            raise Refused("The write throttle is not in force")
        await self._stop_renewal()
        self._order = None
        return await self._ask(order.end_line(), "ended", order.id)

    async def status(self) -> ThrottleFigures:
        """Return what is in force in the guest, and its figures so far.

        Raises:
            TimedOut: the guest does not answer.
            Broken: the port has closed, or what came is garbage.
        """
        return await self._ask(STATUS_LINE, "status")

    async def close(self) -> None:
        """Close the port; the helper lets everybody go when it sees that. Closing again does nothing."""
        await self._stop_renewal()
        self._order = None
        self._writer.transport.abort()  # a guest that reads nothing would never take the rest
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _renew(self) -> None:
        """Keep the order in force; one whose lease ran out because this host was held up is begun again."""
        while (order := self._order) is not None:
            await asyncio.sleep(order.lease_ms / 1000 / _RENEWALS_PER_LEASE)
            try:
                await self._ask(order.keep_line(), "kept", order.id)
                self._lost = None
            except TimedOut as error:  # a guest that stood still will hear the next one
                self._lost = error
            except Refused as error:
                self._lost = error
                if not await self._begun_again(order):
                    return
            except VmferryError as error:
                self._lost = error
                return

    async def _begun_again(self, order: ThrottleOrder) -> bool:
        try:
            await self._ask(order.begin_line(), "begun", order.id)
        except VmferryError as error:
            self._lost = error
            return isinstance(error, TimedOut)
        self._lost = None
        return True

    async def _stop_renewal(self) -> None:
        task, self._renewal = self._renewal, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _ask(self, line: bytes, word: str, order_id: str | None = None) -> ThrottleFigures:
        try:
            async with asyncio.timeout(self._timeout_s), self._turn:
                self._writer.write(line)
                await self._writer.drain()
                return await self._answer(word, order_id)
        except TimeoutError as error:
            raise TimedOut(
                f"The guest's throttle helper did not answer {line.decode().split()[1]!r} within {self._timeout_s:g} s",
                fix="start the guest's programs under vmferry-throttle",
                retry=True,
            ) from error
        except OSError as error:
            raise Broken(f"The guest's throttle port has closed: {error}") from error

    async def _answer(self, word: str, order_id: str | None) -> ThrottleFigures:
        """Return the answer that is waited for; late ones of questions that were given up are passed over."""
        for _ in range(_MOST_LINES):
            answer = await self._next()
            if answer.word == word and order_id in {None, answer.figures.order_id}:
                self._last = answer.figures
                return answer.figures
        raise Broken(
            f"The guest's throttle port sent {_MOST_LINES} lines, none of which answers what was asked ({word})",
            fix="install the vmferry-throttle of this release in the guest",
        )

    async def _next(self) -> Answer:
        try:
            line = await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            raise Broken("The guest's throttle port has closed") from error
        except asyncio.LimitOverrunError as error:
            raise Broken(f"The guest's throttle port sends lines of more than {LINE_LIMIT} bytes") from error
        return parse_answer(line)
