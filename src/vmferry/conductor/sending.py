"""How a source's QEMU is told to send: to an address, or over a connection that the agents made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from vmferry.conductor.rows import Request
from vmferry.core.errors import Broken
from vmferry.ports.hypervisor import GuestProcess
from vmferry.ports.peer import ReserveReply
from vmferry.ports.stream import Door, Pipelines, StreamConnection


async def send(
    process: GuestProcess,
    way: ReserveReply | None,
    request: Request,
    door: Door,
    pipelines: Pipelines,
    uid: Callable[[], int | None],
) -> None:
    """Have QEMU send; returns when it has accepted the order.

    Args:
        process: the guest's QEMU.
        way: where the stream goes.
        request: what was asked for.
        door: connects to the destination's agent.
        pipelines: commands through which the stream may go.
        uid: the user of the guest, as whom they run.

    Raises:
        Broken: there is no way, or it could not be taken.
    """
    if way is None:
        raise Broken(f"Hand-over {request.handover} has no stream set up")
    if way.ticket is None:
        await process.migrate(way.address, way.port)
        return
    with contextlib.ExitStack() as ours:
        end: StreamConnection = await door.dial(way.address, way.ticket, request.handover)
        ours.callback(end.close)
        if request.pipeline is not None:
            end = await pipelines.send(request.pipeline, end, uid(), request.handover)
            ours.callback(end.close)
        await process.migrate_over(end)
