"""Receives a guest's beats on this host and keeps when the kernel saw each of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from vmferry.measure.beats import BeatLog, BeatStats
from vmferry.measure.stamps import received, stamping_socket

if TYPE_CHECKING:
    from array import array
    from types import TracebackType

#: The kernel stamps each beat, so there is no need to wake up for each.
_DRAIN_EVERY_S = 0.05
#: Read at one go, some milliseconds: a guest that beats without pause must not hold the event loop.
_MOST_AT_ONCE = 2000
#: More than the socket's buffer holds: whoever asks for a window gets all that had come when he asked.
_MOST_WAITING = 12_000


class BeatReceiver:
    """Listens for beats on a UDP port of the loopback interface; an async context manager.

    Datagrams are the guest's bytes on isa-debugcon, one byte each: the low byte of the sequence number.
    """

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        """Bind at once, so that the port is known before QEMU starts.

        Args:
            port: 0 for any free one; the one it had, when an agent adopts a running guest again.
            host: Where QEMU's chardev sends to.

        Raises:
            OSError: When the port is taken.
        """
        self._log = BeatLog()
        self._lost = 0
        self._task: asyncio.Task[None] | None = None
        self._sock = stamping_socket()
        try:
            self._sock.bind((host, port))
        except OSError:
            self._sock.close()
            raise

    @property
    def port(self) -> int:
        """The UDP port that the guest's chardev must send to."""
        return int(self._sock.getsockname()[1])

    @property
    def total(self) -> int:
        """All beats so far."""
        return self._log.total

    @property
    def missed(self) -> int:
        """Beats that were sent but never came, as far as an eight-bit sequence number can tell."""
        return self._log.missed

    @property
    def lost_by_kernel(self) -> int:
        """Beats dropped because nobody read in time; while this grows, a gap may be ours and not the guest's."""
        return self._lost

    async def __aenter__(self) -> Self:
        """Start to read."""
        self._task = asyncio.create_task(self._drain_for_ever())
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        """Stop and frees the port."""
        await self.close()

    async def close(self) -> None:
        """Stop and frees the port; closing again does nothing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        self._sock.close()

    def window(self, start_ns: int, end_ns: int) -> BeatStats:
        """Return what the beats of a window say, up to those that have come by now.

        Args:
            start_ns: CLOCK_MONOTONIC of this host, included.
            end_ns: As start_ns.
        """
        self._drain(_MOST_WAITING)
        return self._log.window(start_ns, end_ns)

    def stamps(self, start_ns: int, end_ns: int) -> array[int]:
        """Return the stamps of a window, preceded by the latest one before it, for `guest_gap`."""
        self._drain(_MOST_WAITING)
        return self._log.stamps(start_ns, end_ns)

    async def wait_for_beats(self, count: int) -> None:
        """Return once so many more beats have come than at the call; never, if the guest does not beat."""
        wanted = self._log.total + count
        while self._log.total < wanted:
            await asyncio.sleep(_DRAIN_EVERY_S / 5)
            self._drain()

    async def _drain_for_ever(self) -> None:
        while True:
            self._drain()
            await asyncio.sleep(_DRAIN_EVERY_S)

    def _drain(self, most: int = _MOST_AT_ONCE) -> None:
        if self._sock.fileno() < 0:
            return
        for datagram in received(self._sock, size=16, most=most):
            self._lost = max(self._lost, datagram.dropped)
            if datagram.data:
                self._log.add(datagram.stamp_ns, datagram.data[-1])
