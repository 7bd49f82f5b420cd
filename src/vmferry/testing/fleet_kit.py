"""A fleet for tests: a CA, hosts and operators with real certificates; and an agent's server on loopback."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from aiohttp import web

from vmferry.agent.connection import DEFAULT_LIMITS, Limits, make_protocol
from vmferry.agent.fleet import Fleet
from vmferry.agent.gate import Gate
from vmferry.agent.http import BODY_TIME_LIMIT_S, HttpServer
from vmferry.agent.listener import Listener
from vmferry.agent.service_port import AgentService
from vmferry.api.client import Client, Endpoint
from vmferry.pki import certificates as certs
from vmferry.pki.authority import Authority, utc_now
from vmferry.pki.identity import IdentityDirectory
from vmferry.pki.membership import DEFAULT_LIFETIME_S, HostMember, Membership, OperatorMember, Role
from vmferry.pki.names import Identity
from vmferry.testing.fake_service import FakeService


@dataclass
class Served:
    """One agent's server on loopback."""

    name: str
    gate: Gate
    fleet: Fleet
    server: HttpServer
    listener: Listener
    endpoint: Endpoint

    def client(self, directory: IdentityDirectory, *, time_limit_s: float = 10.0) -> Client:
        """Return a client that asks as the identity in a directory."""
        return Client(self.endpoint, directory.client_context(), time_limit_s=time_limit_s)

    def protocol(self) -> web.Server:
        """Return the server's protocol, to listen with it again."""
        return make_protocol(self.server.handle)

    @property
    def member(self) -> HostMember:
        """The host, at the port that it really listens on."""
        return replace(self.gate.membership.host(self.name), port=self.listener.port)


class FleetKit:
    """A CA and identities in one directory.

    Args:
        directory: where everything goes.
        lifetime_s: of certificates.
        now: returns the time for the CA.
    """

    def __init__(
        self,
        directory: Path,
        *,
        lifetime_s: int = DEFAULT_LIFETIME_S,
        now: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        self.directory = directory
        self.authority = Authority.create(directory / "ca", lifetime_s=lifetime_s, now=now)

    def add_host(self, name: str, *, address: str = "127.0.0.1", port: int = 1) -> IdentityDirectory:
        """Add a host; its directory gets the newest fleet document, those made before keep theirs."""
        member = HostMember(name, address, port, certs.make_enrolment())
        return self._store(self.authority.membership().with_host(member), member.identity)

    def add_operator(self, name: str, role: Role = Role.OPERATE) -> IdentityDirectory:
        """Add an operator."""
        member = OperatorMember(name, role, certs.make_enrolment())
        return self._store(self.authority.membership().with_operator(member), member.identity)

    def change(self, change: Callable[[Membership], Membership]) -> Membership:
        """Publish a changed fleet document; no host is told."""
        self.authority.publish(change(self.authority.membership()))
        return self.authority.membership()

    def tell(self, *directories: IdentityDirectory) -> None:
        """Store the newest fleet document in these directories."""
        for directory in directories:
            directory.accept_membership(self.authority.signed_membership())

    def _store(self, membership: Membership, identity: Identity) -> IdentityDirectory:
        """Publish the document and store an identity."""
        signed = self.authority.publish(membership)
        key = certs.make_key()
        certificate = self.authority.issue(identity, certs.make_request(key), membership)
        directory = IdentityDirectory(self.directory / f"{identity.kind}-{identity.name}")
        directory.save(key, certificate, self.authority.certificate, signed)
        return directory


@dataclass
class World:
    """A small fleet: host-a is served with `service`; host-b, an operator and a reader may ask."""

    kit: FleetKit
    host_a: IdentityDirectory
    host_b: IdentityDirectory
    admin: IdentityDirectory
    reader: IdentityDirectory
    service: FakeService
    served: Served


@asynccontextmanager
async def serve_world(directory: Path) -> AsyncIterator[World]:
    """Make a small fleet in which everybody knows the newest document, until the block ends."""
    kit = FleetKit(directory)
    host_a, host_b = kit.add_host("host-a"), kit.add_host("host-b")
    admin, reader = kit.add_operator("admin"), kit.add_operator("reader", Role.READ)
    kit.tell(host_a, host_b, admin)
    service = FakeService("host-a")
    async with serve(host_a, service, directory / "no-ca", body_time_limit_s=0.5) as served:
        yield World(kit, host_a, host_b, admin, reader, service, served)


@asynccontextmanager
async def serve(
    directory: IdentityDirectory,
    service: AgentService,
    ca_directory: Path,
    *,
    now: Callable[[], float] | None = None,
    context: ssl.SSLContext | None = None,
    body_time_limit_s: float = BODY_TIME_LIMIT_S,
    limits: Limits = DEFAULT_LIMITS,
) -> AsyncIterator[Served]:
    """Serve an agent's API on a free loopback port until the block ends.

    Args:
        directory: the agent's identity.
        service: what the agent does.
        ca_directory: where its CA directory would be.
        now: returns Unix time for the gate.
        context: TLS; the identity's own when None.
        body_time_limit_s: how long a body may take.
        limits: what a connection and a member may take.
    """
    gate = Gate(directory) if now is None else Gate(directory, now=now)
    fleet = Fleet(gate, ca_directory)
    server = HttpServer(service, fleet, gate, body_time_limit_s=body_time_limit_s)
    listener = Listener("127.0.0.1", 0)
    try:
        await listener.serve(make_protocol(server.handle, limits), context or directory.server_context())
        identity = directory.identity()
        endpoint = Endpoint(identity.name, "127.0.0.1", listener.port, identity.server_name)
        yield Served(identity.name, gate, fleet, server, listener, endpoint)
    finally:
        await server.close(grace_s=1.0)
        await listener.close()
