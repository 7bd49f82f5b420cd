"""A migration's connections, seen and broken from outside: neither QEMU nor an agent is asked.

Source: proc_pid_net(5): column 2 is the local address, 4 the state, 5 tx_queue:rx_queue, 10 the inode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmferry.core.errors import Broken
from vmferry.lab.iproute import run

_ESTABLISHED = "01"  # include/net/tcp_states.h


def queues(pid: int) -> list[str]:
    """Return the send and receive queues of a process's TCP connections."""
    return [row[4] for row in _connections(pid)]


def break_off(inside: Sequence[str], pid: int) -> int:
    """Reset every TCP connection of one process, so that both ends notice at once; return how many.

    Args:
        inside: argument prefix that runs a command in the process's network namespace.
        pid: the process.

    Raises:
        Broken: it has none, or the kernel does not reset connections.

    Source: ss(8), --kill; CONFIG_INET_DIAG_DESTROY.
    """
    ports = _ports(pid)
    for port in ports:
        run(*inside, "ss", "--tcp", "--kill", "state", "established", f"sport = :{port}")
    if not ports or ports & _ports(pid):
        raise Broken(f"Process {pid} has {len(ports)} connections, and they could not be reset")
    return len(ports)


def _ports(pid: int) -> set[int]:
    return {int(row[1].rpartition(":")[2], 16) for row in _connections(pid)}


def _connections(pid: int) -> list[list[str]]:
    own = set(_sockets(pid))
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text("ascii").splitlines()[1:]]
    return [row for row in rows if row[3] == _ESTABLISHED and f"socket:[{row[9]}]" in own]


def _sockets(pid: int) -> Iterator[str]:
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield str(file.readlink())
