"""Doors in memory, stricter than the real one: a connection that is used after it was closed is a mistake."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable

from vmferry.core.errors import BadInput, Refused, Unreachable
from vmferry.core.ids import HandoverId
from vmferry.ports.stream import Receive, StreamConnection, Ticket
from vmferry.testing.fake_qemu import FakeLink

_NUMBERS = itertools.count(1)


class FakeConnection:
    """One end of a connection that both hosts see."""

    def __init__(self, number: int) -> None:
        self.address = ("door", number)  #: by which a `FakeLink` knows it
        self.closed = False

    def fileno(self) -> int:
        """Return no real descriptor."""
        if self.closed:
            raise AssertionError("a connection is used after it was closed")
        return self.address[1]

    def getsockname(self) -> tuple[str, int]:
        """Return where it goes out from."""
        return self.getpeername()

    def getpeername(self) -> tuple[str, int]:
        """Return who is at its other end."""
        self.fileno()
        return self.address

    def close(self) -> None:
        """Close it."""
        self.closed = True


class FakeDoor:
    """One host's door.

    Args:
        doors: all doors by port, shared between hosts.
    """

    def __init__(self, doors: dict[int, FakeDoor]) -> None:
        self.port = next(_NUMBERS)
        self.expected: dict[HandoverId, tuple[Ticket, Receive, int]] = {}
        self._doors = doors
        doors[self.port] = self

    def start(self) -> None:
        """Do nothing: it is open."""

    async def close(self) -> None:
        """Do nothing: a host that is gone answers nobody."""

    def expect(self, handover: HandoverId, receive: Receive, most: int = 1) -> Ticket:
        """Let so many connections in."""
        ticket = Ticket(self.port, f"secret-{next(_NUMBERS)}")
        self.expected[handover] = ticket, receive, most
        return ticket

    def forget(self, handover: HandoverId) -> None:
        """Let nobody in for it any more."""
        self.expected.pop(handover, None)

    async def dial(self, address: str, ticket: Ticket, handover: HandoverId) -> StreamConnection:
        """Connect; the other host's agent takes its end before this returns."""
        door = self._doors.get(ticket.port)
        if door is None:
            raise Unreachable(f"nobody listens on {address} port {ticket.port}")
        known = door.expected.get(handover)
        if known is None or known[0] != ticket:
            raise Refused("the ticket is not good", side="destination")
        door.expected[handover] = (*known[:2], known[2] - 1)
        if known[2] == 1:
            del door.expected[handover]
        number = next(_NUMBERS)
        theirs = FakeConnection(number)
        await known[1](theirs)
        theirs.close()
        return FakeConnection(number)


class FakePipelines:
    """Commands that pass on what they get.

    Args:
        names: of those that there are.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self.ended: list[HandoverId] = []
        self.started: list[tuple[str, str, int | None]] = []

    async def send(
        self, name: str, connection: StreamConnection, uid: int | None, handover: HandoverId
    ) -> StreamConnection:
        """Pass on."""
        return self._begin("send", name, connection, uid, handover)

    async def receive(
        self, name: str, connection: StreamConnection, uid: int | None, handover: HandoverId
    ) -> StreamConnection:
        """Pass on."""
        return self._begin("receive", name, connection, uid, handover)

    def _begin(
        self, half: str, name: str, connection: StreamConnection, uid: int | None, handover: HandoverId
    ) -> StreamConnection:
        if handover in self.ended:
            raise AssertionError(f"a command is started for hand-over {handover}, which has ended")
        if name not in self.names:
            raise BadInput(f"There is no pipeline {name}")
        self.started.append((half, name, uid))
        return FakeConnection(connection.fileno())

    def end(self, handover: HandoverId) -> None:
        """Note it."""
        self.ended.append(handover)

    async def close(self) -> None:
        """Do nothing."""


class FakeRelays:
    """Joins one channel, which is all that a fake QEMU has.

    Args:
        link: on which the two sides of a joined stream find each other.
        joined: where the connections of both hosts lead, by their numbers.
    """

    def __init__(self, link: FakeLink, joined: dict[int, str]) -> None:
        self._link = link
        self._joined = joined
        self.users: list[int | None] = []  #: as whom
        self.carried: set[HandoverId] = set()  #: neither finished nor ended

    async def into(self, path: str, connection: StreamConnection, uid: int | None, handover: HandoverId) -> None:
        """Note where a connection leads."""
        self.users.append(uid)
        self._joined[connection.fileno()] = path
        self.carried.add(handover)

    async def out_of(
        self, path: str, dial: Callable[[], Awaitable[StreamConnection]], uid: int | None, handover: HandoverId
    ) -> None:
        """Dial, and have what is sent to the local socket arrive where the connection leads."""
        self.users.append(uid)
        first = await dial()
        self.carried.add(handover)
        self._link.local[path] = self._joined[first.fileno()]

    def end(self, handover: HandoverId) -> None:
        """Note it."""
        self.carried.discard(handover)

    def finish(self, handover: HandoverId) -> None:
        """Note it."""
        self.carried.discard(handover)

    async def close(self) -> None:
        """Do nothing."""
