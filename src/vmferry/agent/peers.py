"""Other hosts' agents as the conductor sees them: `PeerClient`'s words turned into the port's, clients kept open."""

from __future__ import annotations

import time
from collections.abc import Callable

from vmferry.agent.peer_client import PeerClient
from vmferry.api import models as m
from vmferry.core.guest import FrozenGuest
from vmferry.core.host import GuestProbe, HostFacts
from vmferry.core.ids import Epoch, HandoverId, HostName
from vmferry.core.migratable import plugging_s
from vmferry.core.units import Milliseconds, Nanoseconds
from vmferry.ports.peer import (
    ClockSample,
    CommitReply,
    PeerStatus,
    RejoinReply,
    ReserveReply,
    ReserveRequest,
    Seen,
    Verdict,
)

#: How long the destination may take to start the guest before it answers "on the way" and is asked again.
_COMMIT_LIMIT_S = 8.0


class RemotePeer:
    """One other host's agent; looked up anew at each call, so that a changed address counts at once.

    Args:
        host: its name.
        client: returns the open client to it; raises NotFound for a host that is not in the fleet.
    """

    def __init__(self, host: HostName, client: Callable[[HostName], PeerClient]) -> None:
        self._host = host
        self._client_of = client

    @property
    def _client(self) -> PeerClient:
        return self._client_of(self._host)

    async def hello(self) -> HostFacts:
        """Ask who is there and what the host offers."""
        return (await self._client.hello(time_limit_s=10.0)).facts

    async def probe(self, guest: FrozenGuest) -> GuestProbe:
        """Ask what stands against a guest coming there."""
        return await self._client.probe(guest, time_limit_s=25.0)

    async def reserve(self, request: ReserveRequest) -> ReserveReply:
        """Have everything held and QEMU listening."""
        body = m.ReserveRequest(
            guest=request.guest,
            epoch=request.epoch,
            running=request.running,
            source=request.source,
            setup=request.setup,
            link=request.link,
            pipeline=request.pipeline,
            copies=request.copies,
            migratable=request.migratable,
        )
        limit_s = 55.0 + plugging_s(request.migratable, request.guest.spec.memory_bytes)
        reply = await self._client.reserve(request.handover, body, time_limit_s=limit_s)
        return ReserveReply(reply.address, reply.port, reply.ticket, reply.disk_port)

    async def wait_loaded(self, handover: HandoverId, limit_ms: Milliseconds) -> PeerStatus:
        """Wait until the destination is loaded, has failed or is gone."""
        reply = await self._client.wait_loaded(handover, int(limit_ms))
        return PeerStatus(reply.state, reply.qemu_alive, reply.run_state, reply.migration_status, reply.error)

    async def commit(self, handover: HandoverId, epoch: Epoch, *, running: bool) -> CommitReply:
        """Hand the token over."""
        body = m.CommitRequest(epoch=epoch, running=running)
        reply = await self._client.commit(handover, body, time_limit_s=_COMMIT_LIMIT_S + 2)
        stamp = None if reply.resumed_at_ns is None else Nanoseconds(reply.resumed_at_ns)
        return CommitReply(reply.state, reply.epoch, stamp, reply.detail, tuple(reply.parts_ms.items()))

    async def rejoin(self, handover: HandoverId, *, source_alive: bool) -> RejoinReply:
        """Tell that a post-copy's stream is broken here."""
        reply = await self._client.rejoin(handover, m.RejoinRequest(source_alive=source_alive), time_limit_s=10.0)
        return RejoinReply(reply.state, reply.address, reply.port, reply.detail)

    async def announce(self, handover: HandoverId) -> None:
        """Have a guest that runs there announced again."""
        await self._client.announce(handover, time_limit_s=3.0)

    async def discard(self, handover: HandoverId) -> None:
        """Have the arrival undone."""
        await self._client.discard(handover, time_limit_s=3.0)

    async def status(self, handover: HandoverId) -> PeerStatus:
        """Ask how an arrival stands."""
        reply = await self._client.status(handover)
        return PeerStatus(reply.state, reply.qemu_alive, reply.run_state, reply.migration_status, reply.error)

    async def verdict(self, handover: HandoverId) -> Verdict:
        """Ask the source who owns the guest."""
        return Verdict((await self._client.verdict(handover, time_limit_s=5.0)).verdict)

    async def ping(self) -> ClockSample:
        """Measure the clock once."""
        sent = time.monotonic_ns()
        reply = await self._client.ping()
        received = time.monotonic_ns()
        theirs = (reply.received_ns + reply.sent_ns) // 2
        return ClockSample(Nanoseconds(sent), Nanoseconds(theirs), Nanoseconds(received))

    async def beats(self, handover: HandoverId, start_ns: Nanoseconds, end_ns: Nanoseconds) -> Seen:
        """Return the guest's beats in a window, and its longest stall."""
        reply = await self._client.beats(handover, start_ns, end_ns)
        stall = None if reply.in_guest_stall_ms is None else Milliseconds(reply.in_guest_stall_ms)
        return Seen(reply.stamps_ns, complete=not reply.truncated, in_guest_stall_ms=stall)
