"""Connections between two agents that become a guest's stream: opened and authenticated by us, carried on by QEMU."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from vmferry.core.ids import HandoverId


class StreamConnection(Protocol):
    """A connection of which not one byte of the stream was read; a `socket.socket` is one."""

    def fileno(self) -> int:
        """Return its descriptor here."""

    def getsockname(self) -> Any:
        """Return which of our IP addresses and ports it goes out from."""

    def getpeername(self) -> Any:
        """Return who is at its other end: IP address and port first; None: a command of ours."""

    def close(self) -> None:
        """Close it here; a process that was given it keeps its own."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a source needs to connect: the destination's door, and the secret for this one hand-over."""

    port: int
    secret: str = field(repr=False)


#: Hands a connection over to QEMU; what it raises closes the connection.
Receive = Callable[[StreamConnection], Awaitable[None]]


class Door(Protocol):
    """The one port of this host on which streams are connected to."""

    def start(self) -> None:
        """Accept from now on; who comes while nobody is expected is closed at once."""

    async def close(self) -> None:
        """Stop listening; what QEMU has goes on. Idempotent."""

    def expect(self, handover: HandoverId, receive: Receive, most: int = 1) -> Ticket:
        """Let connections for a hand-over in, and call `receive` with each; its ticket is good for so many."""

    def forget(self, handover: HandoverId) -> None:
        """Let nobody in for a hand-over any more; unknown ones are no error."""

    async def dial(self, address: str, ticket: Ticket, handover: HandoverId) -> StreamConnection:
        """Connect to another host's door; returns when QEMU there has the connection. The caller closes it.

        Raises:
            Unreachable: nobody answers there.
            TimedOut: it takes too long.
            Refused: the ticket is not good there (any more), or who answers does not know it.
        """


class Relays(Protocol):
    """Joins QEMU's local connections, one per channel, with connections between the hosts."""

    async def into(self, path: str, connection: StreamConnection, uid: int | None, handover: HandoverId) -> None:
        """Join a connection with a new one to QEMU's local socket.

        Args:
            path: where QEMU listens.
            connection: from the other host; the caller closes its own end of it.
            uid: the guest's user, as whom bytes are carried; None: the agent's own.
            handover: whose stream.

        Raises:
            Broken: QEMU does not listen (any more), or nothing carries them.
        """

    async def out_of(
        self, path: str, dial: Callable[[], Awaitable[StreamConnection]], uid: int | None, handover: HandoverId
    ) -> None:
        """Listen on a local socket for QEMU, which may be told to connect then; until `finish` or `end`.

        Args:
            path: where to listen; what is left there of an earlier attempt is replaced.
            dial: connects to the other host; called for one after the other, in the order in which QEMU connects.
            uid: as `into`.
            handover: whose stream.

        Raises:
            Broken, or what `dial` raises: there is no stream to the other host.
        """

    def end(self, handover: HandoverId) -> None:
        """Break what is carried for a hand-over; unknown ones are no error."""

    def finish(self, handover: HandoverId) -> None:
        """Join no further connection for a hand-over; what is carried comes to its end. Unknown ones are no error."""

    async def close(self) -> None:
        """Let go of everything: what is carried goes on. Idempotent."""


class Pipelines(Protocol):
    """Commands of this host's configuration through which a stream may go, one way. QEMU never starts any."""

    async def send(
        self, name: str, connection: StreamConnection, uid: int | None, handover: HandoverId
    ) -> StreamConnection:
        """Start a pipeline in front of a connection, and return the end that takes the stream; the caller closes it.

        The command has the connection from then on, and ends when everybody else has closed the returned end.

        Raises:
            BadInput: there is none of that name here.
            Broken: it cannot be started.
        """

    async def receive(
        self, name: str, connection: StreamConnection, uid: int | None, handover: HandoverId
    ) -> StreamConnection:
        """Start the other half behind a connection, and return the end out of which the stream comes.

        Raises: as `send`.
        """

    def end(self, handover: HandoverId) -> None:
        """End a hand-over's commands that have not ended by themselves; unknown ones are no error.

        QEMU cannot break off a pipe that nobody reads, so a cancel would wait for them.
        """

    async def close(self) -> None:
        """Let go of the commands: they go on with their streams. Idempotent."""


@dataclass(frozen=True, slots=True)
class StreamWays:
    """How this host carries streams that the agents connect."""

    door: Door
    pipelines: Pipelines
    relays: Relays

    async def close(self) -> None:
        """Let go of everything: streams go on. Idempotent."""
        await self.door.close()
        await self.pipelines.close()
        await self.relays.close()

    def finish(self, handover: HandoverId) -> None:
        """Let nobody else in for a hand-over; what is carried comes to its end."""
        self.door.forget(handover)
        self.relays.finish(handover)

    def end(self, handover: HandoverId) -> None:
        """Let nobody in for a hand-over any more, and break what is carried."""
        self.door.forget(handover)
        self.pipelines.end(handover)
        self.relays.end(handover)
