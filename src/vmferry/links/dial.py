"""The source's end of a connection between two agents."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket

from vmferry.core.errors import Refused, TimedOut, Unreachable, VmferryError
from vmferry.core.ids import HandoverId
from vmferry.links import preamble
from vmferry.links.exact import read_exactly, write
from vmferry.ports.stream import Ticket

#: For connecting and for what both sides say; QEMU there takes the connection in a few ms.
TIME_LIMIT_S = 10.0


async def dial(address: str, ticket: Ticket, handover: HandoverId) -> socket.socket:
    """Return a connection that QEMU at the destination has already; on failure nothing is left open.

    Raises:
        Unreachable: nobody answers there, or the connection broke.
        TimedOut: it takes longer than 10 s.
        Refused: the ticket is not good there (any more), or who answers does not know it.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    where = f"Stream port {ticket.port} of the agent at {address}"
    with contextlib.ExitStack() as failed:
        connection = failed.enter_context(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        try:
            async with asyncio.timeout(TIME_LIMIT_S):
                await asyncio.get_running_loop().sock_connect(connection, (address, ticket.port))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await _introduce(connection, ticket, handover)
                # QEMU's own connections have it not: it sends a page's header and the page in pieces
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        except (OSError, Refused) as error:
            raise _fault(where, error) from error
        failed.pop_all()
    return connection


def _fault(where: str, error: OSError | Refused) -> VmferryError:
    """Return what is wrong, in our words."""
    if isinstance(error, Refused):
        return Refused(f"{where}: {error.what}", side="destination", fix="find out who listens there")
    if isinstance(error, TimeoutError):
        return TimedOut(f"{where} did not take the stream in {TIME_LIMIT_S:.0f} s", side="destination", retry=True)
    if isinstance(error, ConnectionResetError):
        return Refused(
            f"{where} closed the connection: it does not expect this hand-over (any more), or too many come there",
            side="destination",
            fix="try again; its log says why",
            retry=True,
        )
    return Unreachable(
        f"{where} cannot be reached: {error.strerror or error}",
        side="destination",
        fix="let the agents reach each other on migration.stream_port, or move with --link tcp",
    )


async def _introduce(connection: socket.socket, ticket: Ticket, handover: HandoverId) -> None:
    mine = secrets.token_bytes(preamble.NONCE_BYTES)
    await write(connection, preamble.greeting(handover, mine))
    answered = await read_exactly(connection, preamble.ANSWER_BYTES)
    nonces = preamble.check_answer(ticket.secret, handover, mine, answered)
    await write(connection, preamble.proof(ticket.secret, handover, nonces))
    if await read_exactly(connection, len(preamble.ACCEPTED)) != preamble.ACCEPTED:
        raise Refused("the answer is none of ours")
