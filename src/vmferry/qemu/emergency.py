"""The emergency line: a second monitor for orders that must work while QEMU answers no question, also to a new agent.

A vCPU that waits for a page of a post-copy may do so with QEMU's lock held. Its main loop then answers nothing, and a
new connection cannot be negotiated; what goes out of band works nevertheless, on a connection that was negotiated
before. QEMU stops reading one on which eight questions wait, so no question ever goes over this line. And QEMU itself
keeps our end of it, as a descriptor that it never uses: an agent that comes later borrows it from there.

QEMU may be in the hands of its guest. It can then do to our end whatever it likes, for it has it too: nothing here
waits for it outside of asyncio, and nothing that comes is believed for more than what QEMU could say anyway.

Source: QEMU docs/interop/qmp-spec ("Out-of-band execution"), monitor/qmp.c (QMP_REQ_QUEUE_LEN_MAX); unix(7), abstract
names; docs/design/postcopy.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from vmferry.core.errors import Broken
from vmferry.qemu.sockets import peer_of

#: Our end has such a name, by which it is known among QEMU's descriptors; nobody listens there.
NAME = b"\0vmferry-emergency-"
#: As much of a message as is read at once.
_BLOCK = 1 << 16
#: Longer than any event of QEMU's.
_LONGEST = 1 << 20
#: QEMU answers out of band within milliseconds, whatever its main loop does.
_RESUME_TIMEOUT_S = 5.0


class Line(socket.socket):
    """Our end. Each call says that it must not wait: QEMU has the same end, and may switch O_NONBLOCK off there."""

    @classmethod
    def of(cls, connection: socket.socket) -> Line:
        """Take a socket over."""
        line = cls(fileno=connection.detach())
        line.setblocking(False)  # noqa: FBT003 - the library's own signature
        return line

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Read what is there."""
        return super().recv(size, flags | socket.MSG_DONTWAIT)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Read what is there."""
        return super().recv_into(buffer, nbytes, flags | socket.MSG_DONTWAIT)

    def send(self, data: Any, flags: int = 0, /) -> int:
        """Send what there is room for."""
        return super().send(data, flags | socket.MSG_DONTWAIT)

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
        """Send what there is room for."""
        return super().sendmsg(buffers, ancdata, flags | socket.MSG_DONTWAIT, address)


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, Line]]:
    """Yield QEMU's end and ours, for QEMU to inherit both; QEMU's is closed here when the block ends, both if it fails.

    Raises:
        OSError: there is no descriptor left.
    """
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs, contextlib.ExitStack() as failed:
        line = failed.enter_context(Line.of(ours))
        line.bind(NAME + secrets.token_hex(16).encode("ascii"))
        yield theirs, line
        failed.pop_all()


def is_ours(found: socket.socket) -> bool:
    """Tell whether a socket is the agent's end of an emergency line, made by an agent of this user."""
    if found.family != socket.AF_UNIX or found.type != socket.SOCK_STREAM:
        return False
    name = found.getsockname()
    return isinstance(name, bytes) and name.startswith(NAME) and peer_of(found).uid == os.geteuid()


async def resume(line: Line) -> None:
    """Take a borrowed line up, behind whatever an earlier agent left unread.

    Raises:
        Broken: it was never negotiated, or it is closed.
        OSError: QEMU is gone, or does not answer on it (TimeoutError).
    """
    token = f"resume-{secrets.token_hex(8)}"
    ask = json.dumps({"exec-oob": "query-yank", "id": token}) + "\n"
    async with asyncio.timeout(_RESUME_TIMEOUT_S):
        await asyncio.get_running_loop().sock_sendall(line, ask.encode("ascii"))
        while True:
            message = await _read_message(line)
            if message.get("id") == token or ("error" in message and "id" not in message):
                if "return" in message:
                    return
                raise Broken(f"emergency line to QEMU is of no use: {str(message)[:200]}")


async def _read_message(line: Line) -> Mapping[str, Any]:
    """Return the next message and take no byte behind it; the end of one whose beginning was read is an empty one."""
    read = b""
    while not read.endswith(b"\n"):
        await _wait_readable(line)
        with contextlib.suppress(BlockingIOError):  # somebody else took it
            seen = line.recv(_BLOCK, socket.MSG_PEEK)
            if not seen or len(read) > _LONGEST:
                raise Broken("emergency line to QEMU is closed, or what comes over it has no end")
            read += line.recv(seen.find(b"\n") + 1 or len(seen))
    with contextlib.suppress(ValueError, RecursionError):
        message = json.loads(read)
        if isinstance(message, dict):
            return message
    return {}


async def _wait_readable(line: Line) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(line, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(line)
