"""`PeerPool`: one open client per other agent, following the fleet document and this agent's own certificate."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable

from vmferry.agent.gate import Gate
from vmferry.agent.peer_client import PeerClient
from vmferry.core.errors import Denied
from vmferry.core.ids import HostName
from vmferry.pki.authority import utc_now


class PeerPool:
    """Clients to other agents.

    Args:
        gate: the agent's gate, which holds the newest fleet document and knows the agent's identity.
        now: returns the time.
    """

    def __init__(self, gate: Gate, *, now: Callable[[], dt.datetime] = utc_now) -> None:
        self._gate = gate
        self._now = now
        self._context = gate.directory.client_context()
        self._valid_until = gate.directory.certificate().not_valid_after_utc
        self._clients: dict[HostName, PeerClient] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def hosts(self) -> list[str]:
        """Return the names of all hosts of the fleet."""
        return [member.name for member in self._gate.membership.hosts]

    def address_of(self, host: HostName) -> str:
        """Return the address under which other hosts reach a host.

        Raises:
            NotFound: it is not in the fleet document.
        """
        return self._gate.membership.host(host).address

    def client(self, host: HostName) -> PeerClient:
        """Return the client to a host as the fleet document has it now.

        Raises:
            NotFound: it is not in the document (any more).
        """
        member = self._gate.membership.host(host)
        known = self._clients.get(host)
        if known is not None and known.member == member:
            return known
        if known is not None:
            self._close_later(known)
        client = PeerClient(member, self._context, check_identity=self._check_identity)
        self._clients[host] = client
        return client

    def take_certificate(self) -> None:
        """Use the renewed certificate for new connections."""
        self._gate.directory.reload(self._context)
        self._valid_until = self._gate.directory.certificate().not_valid_after_utc

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        clients, self._clients = list(self._clients.values()), {}
        await asyncio.gather(*(client.close() for client in clients), *self._closing)

    def _close_later(self, client: PeerClient) -> None:
        """Close a client that is replaced."""
        task = asyncio.get_running_loop().create_task(client.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _check_identity(self) -> None:
        """Hold that this agent's own certificate is valid now: TLS alone would only say that the peer hung up."""
        if self._now() > self._valid_until:
            raise Denied(
                f"This agent's own certificate expired on {self._valid_until:%F %R} UTC",
                fix="remove this host from the fleet, delete its identity directory, restart the agent, add it again",
            )
