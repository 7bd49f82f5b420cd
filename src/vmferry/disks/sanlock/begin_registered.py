"""Becomes another program after it has registered with sanlock's daemon: leases belong to the process that connected.

Started by the agent with its own rights, which the daemon's socket needs, as

    python -I -S begin_registered.py SOCKET REQUESTS UID GROUPS [NAME=VALUE...] -- PROGRAM [ARGUMENT...]

REQUESTS are LABEL=HEX, joined by commas, of what zlib made of them; each but the first must be answered with 0. UID is
`-` to keep the agent's user; GROUPS are numbers joined by commas. The program finds NAME=VALUE in its environment and
nothing else. The connection stays open with it, and when it ends its leases do.

Imports nothing of vmferry, so that it is over in some milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import time
import zlib
from collections.abc import Sequence

_HEADER_BYTES = 32
_RESULT = struct.Struct("=24xi4x")
#: The daemon answers at once, unless its storage hangs: then the guest is better not started.
_LIMIT_S = 30.0
#: EAGAIN, EEXIST, SANLK_ACQUIRE_IDLIVE, _OWNED, _OTHER: another process has the lease, here or on a host that lives: or
#: had it a moment ago, since its daemon gives it back behind its end.
_ANOTHERS = frozenset({-11, -17, -243, -244, -245})
_PATIENCE_S = 5.0
_AGAIN_S = 0.02


def main(arguments: Sequence[str]) -> int:
    """Register, then become the program; returns only when that failed, with what to exit with."""
    where, requests, uid, groups, *rest = arguments
    split = rest.index("--")
    program, environment = rest[split + 1 :], dict(each.split("=", 1) for each in rest[:split])
    with contextlib.ExitStack() as stack:
        try:
            connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.settimeout(_LIMIT_S)
            connection.connect(where)
            for number, each in enumerate(requests.split(",")):
                label, _, message = each.partition("=")
                result = _ask(connection, zlib.decompress(bytes.fromhex(message)), is_answered=number > 0)
                if result < 0:
                    return _complain(f"sanlock refused {label} (error {result})")
        except OSError as error:
            return _complain(f"sanlock's daemon does not answer at {where}: {error.strerror or error}")
        connection.settimeout(None)
        connection.set_inheritable(True)
        if uid != "-":
            os.setgroups([int(group) for group in groups.split(",") if group])
            os.setgid(int(uid))
            os.setuid(int(uid))
        try:
            os.execve(program[0], program, environment)  # noqa: S606 - an argument list, made by the agent
        except OSError as error:
            return _complain(f"{program[0]} cannot be started: {error.strerror}")


def _ask(connection: socket.socket, request: bytes, *, is_answered: bool) -> int:
    """Return the result of a request, asked again for a moment while another process has what it wants."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        connection.sendall(request)
        result = _answer(connection) if is_answered else 0
        if result not in _ANOTHERS or time.monotonic() > until:
            return result
        time.sleep(_AGAIN_S)


def _answer(connection: socket.socket) -> int:
    """Return the result of a request."""
    header = b""
    while len(header) < _HEADER_BYTES:
        more = connection.recv(_HEADER_BYTES - len(header))
        if not more:
            raise OSError("it ended the connection")
        header += more
    result: int = _RESULT.unpack(header)[0]
    return result


def _complain(text: str) -> int:
    sys.stderr.write(f"{text}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
