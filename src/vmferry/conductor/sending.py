"""How a source's QEMU is told to send: to an address, or over a connection that the agents made."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

from vmferry.conductor.rows import Request
from vmferry.core.capabilities import Transport
from vmferry.core.errors import Broken
from vmferry.ports.hypervisor import GuestProcess
from vmferry.ports.peer import ReserveReply
from vmferry.ports.stream import StreamConnection, StreamWays

#: Nothing of the stream passes the agents.
_QEMU_TO_QEMU = (Transport.TCP, Transport.RDMA)


async def send(
    process: GuestProcess,
    way: ReserveReply | None,
    request: Request,
    ways: StreamWays,
    uid: Callable[[], int | None],
) -> None:
    """Have QEMU send; returns when it has accepted the order.

    Args:
        process: the guest's QEMU.
        way: where the stream goes.
        request: what was asked for.
        ways: how a stream travels that the agents connect.
        uid: the user of the guest, as whom programs run that carry it.

    Raises:
        Broken: there is no way, or it could not be taken.
    """
    if way is None:
        raise Broken(f"Hand-over {request.handover} has no stream set up")
    if way.ticket is None and request.stream.transport not in _QEMU_TO_QEMU:
        raise Broken(
            f"The destination's agent listens for no stream by {request.pipeline or request.link}",
            fix="update it, or leave --link and --pipeline out",
            side="destination",
        )
    if way.ticket is None:
        await process.migrate(way.address, way.port, request.stream.transport)
        return
    dial = functools.partial(ways.door.dial, way.address, way.ticket, request.handover)
    if request.link is Transport.UNIX:
        await ways.relays.out_of(process.local_socket, dial, uid(), request.handover)
        await process.migrate_locally()
        return
    with contextlib.ExitStack() as ours:
        end: StreamConnection = await dial()
        ours.callback(end.close)
        if request.pipeline is not None:
            end = await ways.pipelines.send(request.pipeline, end, uid(), request.handover)
            ours.callback(end.close)
        await process.migrate_over(end)
