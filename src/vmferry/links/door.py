"""The destination's end: one port on which agents connect for streams, and nobody else gets past the first bytes."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from dataclasses import dataclass

import structlog

from vmferry.core.errors import Refused, VmferryError
from vmferry.core.ids import HandoverId
from vmferry.links import preamble
from vmferry.links.dial import dial
from vmferry.links.exact import read_exactly, write
from vmferry.links.listening import listening_socket
from vmferry.ports.stream import Receive, StreamConnection, Ticket

#: For everything before the connection is QEMU's.
TIME_LIMIT_S = 10.0
#: That are not QEMU's yet; more are closed at once. One host that runs wild must not lock the others out.
MOST_WAITING = 64
MOST_PER_ADDRESS = 16
_BACKLOG = 64
_SECRET_BYTES = 32
_TELL_EVERY_S = 60.0
#: Out of descriptors: others may close some meanwhile.
_ACCEPT_AGAIN_S = 0.1

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Expected:
    secret: str
    receive: Receive
    left: int  #: connections


class StreamDoor:
    """Listens on one port.

    Args:
        address: IP address.
        port: TCP port; 0 takes a free one.

    Raises:
        Broken: the port is taken, or the address is not one of this host.
    """

    def __init__(self, address: str, port: int) -> None:
        self._socket = listening_socket(
            socket.socket, address, port, _BACKLOG, what="listen for streams", setting="migration.stream_port"
        )
        self.port = int(self._socket.getsockname()[1])  #: the port that is listened on
        self._expected: dict[HandoverId, _Expected] = {}
        self._unproven: dict[asyncio.Task[None], str] = {}  #: with where they come from, the oldest first
        self._handed: set[asyncio.Task[None]] = set()  #: QEMU is being given them
        self._accepting: asyncio.Task[None] | None = None
        self._turned_away = 0  #: since it was told last
        self._told_at = float("-inf")

    def start(self) -> None:
        """Accept from now on; who comes while nobody is expected is closed at once."""
        self._accepting = asyncio.create_task(self._accept(), name="stream door")

    def expect(self, handover: HandoverId, receive: Receive, most: int = 1) -> Ticket:
        """Let connections for a hand-over in, and call `receive` with each; its ticket is good for so many."""
        ticket = Ticket(self.port, secrets.token_hex(_SECRET_BYTES))
        self._expected[handover] = _Expected(ticket.secret, receive, most)
        return ticket

    def forget(self, handover: HandoverId) -> None:
        """Let nobody in for a hand-over any more; unknown ones are no error."""
        self._expected.pop(handover, None)

    async def dial(self, address: str, ticket: Ticket, handover: HandoverId) -> StreamConnection:
        """Connect to another host's door; raises as `links.dial.dial`."""
        return await dial(address, ticket, handover)

    async def close(self) -> None:
        """Stop listening; what QEMU has goes on. Idempotent."""
        tasks = [*self._unproven, *self._handed, *([] if self._accepting is None else [self._accepting])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(self._socket)
            except OSError as error:  # out of descriptors
                self._tell("nobody yet", f"cannot accept: {error.strerror}")
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            host = str(address[0])
            if not self._expected:
                connection.close()
                self._tell(host, "nobody is expected")
                continue
            self._make_room(host)
            await asyncio.sleep(0)  # those who are in may speak: accepting does not wait while others wait
            task = asyncio.create_task(self._let_in(connection, host), name="stream door: one")
            self._unproven[task] = host
            task.add_done_callback(self._forget_task)

    def _make_room(self, host: str) -> None:
        """Close the oldest of those that have not proven who they are: whoever comes for a stream is quick."""
        same = [task for task, of in self._unproven.items() if of == host]
        expected = len(self._expected)
        oldest = None
        if len(same) >= MOST_PER_ADDRESS + expected:
            oldest = same[0]
        elif len(self._unproven) >= MOST_WAITING + expected:
            oldest = next(iter(self._unproven))
        if oldest is not None:
            oldest.cancel()
            self._tell(self._unproven.pop(oldest), "too many came behind it")

    def _forget_task(self, task: asyncio.Task[None]) -> None:
        self._unproven.pop(task, None)
        self._handed.discard(task)

    async def _let_in(self, connection: socket.socket, host: str) -> None:
        with contextlib.closing(connection):
            try:
                async with asyncio.timeout(TIME_LIMIT_S):
                    expected = await self._prove(connection)
            except Refused as error:
                self._tell(host, error.what)
                return
            except TimeoutError:
                self._tell(host, f"no greeting in {TIME_LIMIT_S:.0f} s")
                return
            except OSError as error:
                self._tell(host, error.strerror or str(error))
                return
            if (task := asyncio.current_task()) is not None and self._unproven.pop(task, None) is not None:
                self._handed.add(task)
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)  # as on QEMU's own connections
                await expected.receive(connection)
                await write(connection, preamble.ACCEPTED)
            except (OSError, VmferryError) as error:
                with contextlib.suppress(OSError):  # a command that was started has it too
                    connection.shutdown(socket.SHUT_RDWR)
                _log.warning("stream was not taken", of=host, error=str(error))

    async def _prove(self, connection: socket.socket) -> _Expected:
        """Return what the connection is for; its ticket is good for one less then.

        Raises:
            Refused: nobody is expected, or it is somebody else.
        """
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rest = preamble.rest_bytes(await read_exactly(connection, preamble.HEAD_BYTES))
        handover, theirs = preamble.read_rest(await read_exactly(connection, rest))
        expected = self._expected.get(handover)
        if expected is None:
            raise Refused(f"nobody is expected for hand-over {handover}")
        nonces = preamble.Nonces(theirs, secrets.token_bytes(preamble.NONCE_BYTES))
        await write(connection, preamble.answer(expected.secret, handover, nonces))
        shown = await read_exactly(connection, preamble.PROOF_BYTES)
        preamble.check_proof(expected.secret, handover, nonces, shown)
        if self._expected.get(handover) is not expected:
            raise Refused(f"the ticket of hand-over {handover} was used before")
        expected.left -= 1
        if not expected.left:
            del self._expected[handover]
        return expected

    def _tell(self, host: str, why: str) -> None:
        """Log that somebody was turned away, at most once a minute: whoever scans ports must not fill the log."""
        self._turned_away += 1
        if time.monotonic() - self._told_at < _TELL_EVERY_S:
            return
        _log.warning("connection to the stream port turned away", of=host, why=why, count=self._turned_away)
        self._told_at, self._turned_away = time.monotonic(), 0
