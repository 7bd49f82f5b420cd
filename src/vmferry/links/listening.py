"""Sockets that listen."""

from __future__ import annotations

import socket
from typing import TypeVar

from vmferry.core.errors import Broken

Kind = TypeVar("Kind", bound=socket.socket)


def listening_socket(kind: type[Kind], address: str, port: int, backlog: int, *, what: str, setting: str) -> Kind:
    """Return a socket that does not block and listens; from now on nobody is refused.

    Args:
        kind: of socket.
        address: IP address.
        port: TCP port; 0 takes a free one.
        backlog: connections that may wait for being accepted.
        what: the agent does, in an error: "listen for streams".
        setting: of agent.toml that names address and port, in an error.

    Raises:
        Broken: the port is taken, or the address is not one of this host.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = kind(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(backlog)
    except OSError as error:
        made.close()
        raise Broken(
            f"Agent cannot {what} on {address} port {port}: {error.strerror}",
            fix=f"end what listens there, or set another {setting} in agent.toml",
        ) from error
    return made
