"""A man in the middle of a lab's streams: passes everything on until it is told to do harm.

The destination takes streams at an address on its loopback (`Network.relayed_address`), and while there is a relay the
source has the same address on its own: what it sends there meets the relay, which goes on inside the destination.

    async with Relay(lab.network, "host-a", "host-b") as relay:
        relay.harm(Harm.RESET, after_bytes=MIB)
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import socket
import struct
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

from vmferry.lab.inside import socket_in
from vmferry.lab.iproute import batch
from vmferry.lab.network import Network, relayed_address

PORTS = range(49152, 49160)
STREAM_PORT = 7717
_PIECE = 64 * 1024
_LINGER_NOT = struct.pack("ii", 1, 0)


class Harm(enum.Enum):
    """What is done to a connection."""

    RESET = "reset"  #: both sides get a reset
    HALF_CLOSE = "half-closed"  #: the destination hears that nothing more comes; the source hears nothing
    STALL = "stalled"  #: nothing passes, either way, until `let_go`
    FLIP = "flipped bytes"  #: one bit of each of twenty bytes in a row is another one


def settings(index: int) -> dict[str, object]:
    """Return keys of the n-th host's agent file: its streams come through a relay."""
    return {"migration": {"address": relayed_address(index), "ports": f"{PORTS.start}-{PORTS.stop - 1}"}}


@dataclass(eq=False)
class _Open:
    """A connection that is passed on."""

    come: socket.socket
    go: socket.socket
    port: int
    is_mute: bool = False  #: nothing more goes to the destination
    is_reset: asyncio.Event = field(default_factory=asyncio.Event)

    def harm(self, harm: Harm) -> None:
        """Do what is done to one connection."""
        if harm is Harm.RESET:
            for end in (self.come, self.go):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            self.is_reset.set()
        elif harm is Harm.HALF_CLOSE:
            self.is_mute = True
            self.go.shutdown(socket.SHUT_WR)


class Relay:
    """The relay; harm is done once, to the connection that has passed enough.

    Args:
        network: of the lab.
        source: the host from which streams come.
        destination: the host to which they go.
    """

    def __init__(self, network: Network, source: str, destination: str) -> None:
        self._network = network
        self._address = network.relayed_address(destination)
        self._source = network.namespace(source)
        self._destination = network.namespace(destination)
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: list[socket.socket] = []
        self._open: list[_Open] = []
        self._harm: Harm | None = None
        self._ports: frozenset[int] = frozenset()
        self._after = 0
        self._free = asyncio.Event()
        self._free.set()
        self.done = asyncio.Event()  #: the harm was done

    async def __aenter__(self) -> Self:
        """Listen."""
        batch(self._source, [f"addr add {self._address}/32 dev lo"])
        for port in (*PORTS, STREAM_PORT):
            listening = socket_in(self._source, socket.AF_INET, socket.SOCK_STREAM)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((self._address, port))
            listening.listen()
            os.set_blocking(listening.fileno(), False)
            self._listening.append(listening)
            self._begin(self._accept(listening, port))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cut whatever still passes."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listening in self._listening:
            listening.close()
        batch(self._source, [f"addr del {self._address}/32 dev lo"])

    def harm(self, harm: Harm, after_bytes: int, ports: Iterable[int] = (*PORTS, STREAM_PORT)) -> None:
        """Do harm to the first connection to one of these ports that has passed so many bytes from now on."""
        self._harm, self._after, self._ports = harm, after_bytes, frozenset(ports)
        self.done.clear()

    def harm_now(self, harm: Harm, ports: Iterable[int] = (*PORTS, STREAM_PORT)) -> int:
        """Do harm to every connection to one of these ports, although nothing passes; returns to how many.

        Raises:
            ValueError: bytes are flipped while they pass.
        """
        if harm is Harm.FLIP:
            raise ValueError("bytes are flipped while they pass: use harm")
        found = [each for each in self._open if each.port in frozenset(ports)]
        self.done.set()
        if harm is Harm.STALL:
            self._free.clear()
        for each in found:
            each.harm(harm)
        return len(found)

    def let_go(self) -> None:
        """Let everything pass again."""
        self._harm = None
        self._free.set()

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket, port: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            come, _ = await loop.sock_accept(listening)
            self._begin(self._join(come, port))

    async def _join(self, come: socket.socket, port: int) -> None:
        """Pass a connection on, both ways, until either end closes it."""
        loop = asyncio.get_running_loop()
        go = socket_in(self._destination, socket.AF_INET, socket.SOCK_STREAM)
        with contextlib.closing(come), contextlib.closing(go):
            try:
                for end in (come, go):
                    os.set_blocking(end.fileno(), False)
                await loop.sock_connect(go, (self._address, port))
                with self._known(_Open(come, go, port)) as both:
                    async with asyncio.TaskGroup() as reset:
                        waiting = reset.create_task(_end_reset(both))
                        async with asyncio.TaskGroup() as ways:
                            ways.create_task(self._pass(both))
                            ways.create_task(self._pass_back(go, come))
                        waiting.cancel()
            except* OSError:
                pass  # one end is gone, and with it the other

    @contextlib.contextmanager
    def _known(self, both: _Open) -> Iterator[_Open]:
        self._open.append(both)
        try:
            yield both
        finally:
            self._open.remove(both)

    async def _pass(self, both: _Open) -> None:
        loop, passed = asyncio.get_running_loop(), 0
        while piece := await loop.sock_recv(both.come, _PIECE):
            waits = self._harm is not None and both.port in self._ports
            passed = passed + len(piece) if waits else 0
            if waits and passed > self._after:
                piece = await self._hurt(piece, both)
            await self._free.wait()
            if not both.is_mute:
                await loop.sock_sendall(both.go, piece)
        if not both.is_mute:
            both.go.shutdown(socket.SHUT_WR)

    async def _hurt(self, piece: bytes, both: _Open) -> bytes:
        """Do the harm, once; returns what is passed on."""
        harm, self._harm = self._harm, None
        self.done.set()
        if harm is Harm.FLIP:
            return bytes(byte ^ 1 for byte in piece[:20]) + piece[20:]
        if harm is Harm.STALL:
            self._free.clear()
        elif harm is not None:
            both.harm(harm)
        return piece

    async def _pass_back(self, go: socket.socket, come: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while piece := await loop.sock_recv(go, _PIECE):
            await self._free.wait()
            await loop.sock_sendall(come, piece)
        come.shutdown(socket.SHUT_WR)


async def _end_reset(both: _Open) -> None:
    """End a connection that is to be reset: whoever closes it then resets it.

    Raises:
        ConnectionResetError: always.
    """
    await both.is_reset.wait()
    raise ConnectionResetError
