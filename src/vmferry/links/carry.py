"""Carries bytes between pairs of connections, in the kernel; a program of its own: `carry.py CONTROL UID NAME`.

It has a guest's rights and no others, and starts in the guest's directory, where a guest that has broken out may put
whatever it likes at NAME: so it is this program that makes and opens what is there, and never its agent.

CONTROL carries one order at a time, a byte with descriptors: LISTEN at NAME, answered with the socket; CONNECT to NAME,
and join that with the connection that comes along; JOIN two connections. Each is answered with its own byte, or FAILED
and why. Both ways of a pair have a thread. An end that is closed closes the other in that direction, one that fails
closes both ends. The program ends when CONTROL is closed and nothing is left to carry, so it outlives its agent.

Source: splice(2), unix(7), tcp(7).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Sequence

#: Between two ends; what is on its way here is what QEMU takes for sent.
PIPE_BYTES = 256 << 10
#: Of the connection between the hosts that the kernel holds and has not sent.
UNSENT_BYTES = 128 << 10
LISTEN, CONNECT, JOIN, FAILED = b"l", b"c", b"j", b"!"
BACKLOG = 16
CONNECT_LIMIT_S = 5
_BROKEN = select.POLLERR | select.POLLNVAL


def carry(source: socket.socket, target: socket.socket) -> None:
    """Carry everything from one end to the other, until there is no more or one of them fails."""
    reads, writes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with contextlib.suppress(PermissionError):  # a user with very many of them gets small ones
            fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        while count := _splice(source.fileno(), writes, PIPE_BYTES, source, select.POLLIN | select.POLLRDHUP):
            while count:
                count -= _splice(reads, target.fileno(), count, target, select.POLLOUT)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            with contextlib.suppress(OSError):  # it is closed already
                end.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(reads)
        os.close(writes)


def _splice(source: int, target: int, most: int, waits_for: socket.socket, event: int) -> int:
    """Move some bytes and return how many; 0 at the end."""
    while True:
        try:
            return os.splice(source, target, most, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            poll = select.poll()
            poll.register(waits_for, event)
            if any(seen & _BROKEN for _, seen in poll.poll()):
                raise OSError(waits_for.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "connection failed") from None


def join(ends: Sequence[socket.socket]) -> None:
    """Begin to carry between two ends; they are closed when both ways have ended."""
    for end in ends:
        end.setblocking(False)  # noqa: FBT003 - the standard library's
        if end.family != socket.AF_UNIX:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    there = threading.Thread(target=carry, args=(ends[0], ends[1]))

    def both() -> None:
        carry(ends[1], ends[0])
        there.join()
        for end in ends:
            end.close()

    there.start()
    threading.Thread(target=both).start()


def listen(name: str) -> socket.socket:
    """Return a socket in this directory to which only this user connects."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name)  # noqa: PTH108 - `pathlib` takes longer to load than all of this
    os.umask(0o177)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(name)
    made.listen(BACKLOG)
    return made


def connect(name: str) -> socket.socket:
    """Return a connection to a socket in this directory; waits for one that has a crowd before it."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", CONNECT_LIMIT_S, 0))
    made.connect(name)
    return made


def obey(order: bytes, ends: Sequence[socket.socket], name: str) -> Sequence[socket.socket]:
    """Do one thing; returns what the agent gets."""
    if order == LISTEN:
        return [listen(name)]
    join([connect(name), *ends] if order == CONNECT else ends)
    return []


def main(words: Sequence[str]) -> None:
    """Do what the agent says until it says no more."""
    control = socket.socket(fileno=int(words[0]))
    if words[1] != "-":  # a guest's user, who can read and write nothing but what is passed, and this directory
        uid = int(words[1])
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    with contextlib.suppress(ConnectionError):  # an agent that dies leaves an answer unread
        while True:
            order, descriptors, _, _ = socket.recv_fds(control, 1, 2)
            if not order:
                return
            ends = [socket.socket(fileno=descriptor) for descriptor in descriptors]
            try:
                made = obey(order, ends, words[2])
            except OSError as error:
                for end in ends:
                    end.close()
                control.send(FAILED + str(error).encode())
                continue
            socket.send_fds(control, [order], [each.fileno() for each in made])
            for each in made:
                each.close()


if __name__ == "__main__":
    main(sys.argv[1:])
