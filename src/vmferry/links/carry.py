"""Carries bytes between pairs of connections, in the kernel; a program of its own: `python -I -S carry.py CONTROL UID`.

Pairs arrive as two descriptors in a message on CONTROL; each is answered with one byte. Both ways of a pair have a
thread. An end that is closed closes the other in that direction, one that fails closes both ends. The program ends
when CONTROL is closed and nothing is left to carry, so it outlives the agent that started it.

Source: splice(2), unix(7), tcp(7).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import sys
import threading
from collections.abc import Sequence

#: Between two ends; what is on its way here is what QEMU takes for sent.
PIPE_BYTES = 256 << 10
#: Of the connection between the hosts that the kernel holds and has not sent.
UNSENT_BYTES = 128 << 10
_FAILED = select.POLLERR | select.POLLNVAL


def carry(source: socket.socket, target: socket.socket) -> None:
    """Carry everything from one end to the other, until there is no more or one of them fails."""
    reads, writes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    try:
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
            if any(seen & _FAILED for _, seen in poll.poll()):
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


def main(words: Sequence[str]) -> None:
    """Take pairs until the agent has no more."""
    control = socket.socket(fileno=int(words[0]))
    if words[1] != "-":  # a guest's user, who can read and write nothing but what is passed
        uid = int(words[1])
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    with contextlib.suppress(ConnectionError):  # an agent that dies leaves an answer unread
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, 1, 2)
            if not message:
                return
            join([socket.socket(fileno=descriptor) for descriptor in descriptors])
            control.send(message)


if __name__ == "__main__":
    main(sys.argv[1:])
