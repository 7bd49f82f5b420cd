"""What a guest says of its own stalls, over the built-in guest's control channel; silence is "not measured"."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import structlog

from vmferry.conductor.guests import Guests
from vmferry.core.errors import VmferryError
from vmferry.core.ids import GuestName
from vmferry.core.units import Milliseconds

_log = structlog.get_logger(__name__)

#: For everything: the channel serves one client at a time, and a guest may be busy or stand still.
TIME_LIMIT_S = 2.0
#: For one answer: reading does not yield while more lines wait, and a guest that never stops would hold the event loop.
_MOST_LINES = 64
_RESET = re.compile(rb"reset\r?\n")
_STALLS = re.compile(rb"stalls max_us=(\d{1,15}) since_reset\r?\n")

_Open: TypeAlias = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Stalls:
    """Asks guests of this host for the longest stall that they saw on their own clock.

    Nothing here raises, takes longer than its limit or touches a hand-over: no answer is None.

    Args:
        guests: this host's guests.
        limit_s: time for one question.
    """

    def __init__(self, guests: Guests, limit_s: float = TIME_LIMIT_S) -> None:
        self._guests = guests
        self._limit_s = limit_s

    async def reset(self, guest: GuestName) -> bool:
        """Have the guest begin anew; False when it did not say that it does."""
        return await self._ask(guest, b"reset\n", _RESET) is not None

    async def longest(self, guest: GuestName) -> Milliseconds | None:
        """Return the longest stall since the guest's meter was reset."""
        answer = await self._ask(guest, b"stalls\n", _STALLS)
        return None if answer is None else Milliseconds(int(answer.group(1)) / 1000)

    async def _ask(self, guest: GuestName, question: bytes, answer: re.Pattern[bytes]) -> re.Match[bytes] | None:
        opener = self._opener(guest)
        if opener is None:
            return None
        try:
            async with asyncio.timeout(self._limit_s):
                return await _exchange(opener, question, answer)
        except (VmferryError, OSError, ValueError) as error:  # TimeoutError is an OSError; ValueError: an endless line
            _log.info("guest does not say its stalls", guest=guest, question=question.decode().strip(), why=repr(error))
            return None

    def _opener(self, guest: GuestName) -> _Open | None:
        """Return what opens the guest's control port; None when it has none, or does not run here."""
        row = self._guests.journal.guest(guest)
        if row is None or not row.guest.spec.control:
            return None
        return getattr(self._guests.process(guest), "open_control", None)


async def _exchange(opener: _Open, question: bytes, answer: re.Pattern[bytes]) -> re.Match[bytes] | None:
    """Ask and return the first line that is an answer; None when the guest hangs up, or says too much else before."""
    reader, writer = await opener()
    try:
        writer.write(question)
        for _ in range(_MOST_LINES):
            line = await reader.readline()
            found = answer.fullmatch(line)
            if found is not None or not line:
                return found
        return None
    finally:
        writer.close()  # at once: the next client waits for it
        with contextlib.suppress(OSError):
            await writer.wait_closed()
