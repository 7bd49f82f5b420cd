"""Who may ask what: every kind of certificate at every kind of route."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from vmferry.agent.peer_client import PeerClient
from vmferry.api.client import Client
from vmferry.api.routes import ROUTES, Access, Route
from vmferry.core.errors import Denied, VmferryError
from vmferry.pki.identity import IdentityDirectory
from vmferry.pki.membership import Role
from vmferry.testing.fake_service import FakeService
from vmferry.testing.fleet_kit import FleetKit, World, serve


async def ask(client: Client, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask in a thread, since the client is synchronous, and close."""

    def run() -> dict[str, Any]:
        with client:
            return client.request(method, path, body)

    return await asyncio.to_thread(run)


def concrete(route: Route) -> str:
    """Return a path of a route."""
    return route.path.replace("{name}", "web-7").replace("{handover}", "h1")


ALLOWED = {
    Access.READ: {"admin", "reader"},
    Access.OPERATE: {"admin"},
    Access.PEER: {"host_b"},
    Access.MEMBER: {"admin", "reader", "host_b"},
}


@pytest.mark.parametrize("who", ["admin", "reader", "host_b"])
async def test_matrix(world: World, who: str) -> None:
    """At every route exactly the members that its access names get past the gate; nobody else reaches the service."""
    with world.served.client(getattr(world, who)) as client:
        for route in ROUTES:
            world.service.calls.clear()
            error: VmferryError | None = None
            try:
                await asyncio.to_thread(client.request, route.method, concrete(route), {"no-such-key": 1})
            except VmferryError as caught:
                error = caught
            denied = isinstance(error, Denied)
            assert denied == (who not in ALLOWED[route.access]), (route, error)
            if denied:
                assert world.service.calls == [], route


async def test_no_certificate(world: World) -> None:
    """Without a certificate nothing is answered, and the client says so."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(world.host_a.path / "ca.pem")
    with pytest.raises(Denied, match="refuses our certificate"):
        await ask(Client(world.served.endpoint, context), "GET", "/v1/host")
    assert world.service.calls == []


async def test_wrong_ca(world: World) -> None:
    """A certificate of another CA is refused, whatever identity it claims."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(world.host_a.path / "ca.pem")
    trustme.CA().issue_cert(world.admin.identity().server_name).configure_cert(context)
    with pytest.raises(Denied, match="refuses our certificate"):
        await ask(Client(world.served.endpoint, context), "GET", "/v1/host")
    assert world.service.calls == []


async def test_wrong_ca_of_peer_client(world: World, tmp_path: Path) -> None:
    """A peer of another fleet is told Denied, not that nobody answers."""
    stranger = FleetKit(tmp_path / "other").add_host("host-b")
    context = stranger.client_context()
    context.load_verify_locations(world.host_a.path / "ca.pem")
    peer = PeerClient(world.served.member, context)
    with pytest.raises(Denied, match="refuses our certificate"):
        await peer.ping()
    await peer.close()


async def test_other_fleet_is_not_believed(world: World, tmp_path: Path) -> None:
    """A client of another fleet does not talk to an agent that its CA did not sign."""
    stranger = FleetKit(tmp_path / "other").add_operator("admin")
    with pytest.raises(Denied, match="is not host-a"):
        await ask(world.served.client(stranger), "GET", "/v1/host")
    peer = PeerClient(world.served.member, stranger.client_context())
    with pytest.raises(Denied, match="is not host-a"):
        await peer.ping()
    await peer.close()


async def test_expired_certificate(tmp_path: Path) -> None:
    """An expired certificate is refused during the handshake, and the client says what to do."""
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=10)
    kit = FleetKit(tmp_path)
    host_a = kit.add_host("host-a")
    kit.change(lambda membership: replace(membership, version=membership.version + 1, lifetime_s=86400))
    kit.authority = replace(kit.authority, now=lambda: long_ago)
    expired = kit.add_operator("late")
    kit.tell(host_a)
    service = FakeService("host-a")
    async with serve(host_a, service, tmp_path / "none") as served:
        with pytest.raises(Denied, match="refuses our certificate") as caught:
            await ask(served.client(expired), "GET", "/v1/host")
    assert "expired" in str(caught.value.fix)
    assert service.calls == []
    with pytest.raises(Denied, match="expired on"):
        expired.check_valid(dt.datetime.now(dt.UTC))


async def test_certificate_that_expires_on_an_open_connection(tmp_path: Path) -> None:
    """A certificate that expires while its connection stays open gets nothing from then on."""
    kit = FleetKit(tmp_path)
    host_a, admin = kit.add_host("host-a"), kit.add_operator("admin")
    kit.tell(host_a)
    clock = [0.0]
    async with serve(host_a, FakeService("host-a"), tmp_path / "none", now=lambda: clock[0]) as served:
        with served.client(admin) as client:
            await asyncio.to_thread(client.request, "GET", "/v1/host")
            clock[0] = admin.certificate().not_valid_after_utc.timestamp() + 1
            with pytest.raises(Denied, match="expired"):
                await asyncio.to_thread(client.request, "GET", "/v1/host")


async def test_removed_host_gets_nothing(world: World) -> None:
    """From the moment the document arrives a removed host gets nothing, not even on its open connection."""
    peer = PeerClient(world.served.member, world.host_b.client_context())
    await peer.ping()
    removed = world.kit.change(lambda membership: membership.without_host("host-b"))
    document = world.kit.authority.signed_membership()
    body = {"document": document.document, "signature": document.signature}
    await ask(world.served.client(world.admin), "PUT", "/v1/membership", body)
    for call in (peer.ping(), peer.hello(), peer.membership()):
        with pytest.raises(Denied, match="host-b is not a member"):
            await call
    await peer.close()
    assert world.served.gate.membership == removed


async def test_host_added_again_is_another_one(world: World) -> None:
    """The old certificate of a host that was removed and added again stays worthless; the new one works."""
    world.kit.change(lambda membership: membership.without_host("host-b"))
    old = PeerClient(world.served.member, world.host_b.client_context())
    await old.ping()
    world.kit.directory /= "again"
    again = world.kit.add_host("host-b")
    world.served.gate.accept_membership(world.kit.authority.signed_membership())
    new = PeerClient(world.served.member, again.client_context())
    with pytest.raises(Denied):
        await old.ping()
    await new.ping()
    await old.close()
    await new.close()


async def test_former_host_is_not_believed(world: World) -> None:
    """A client that knows a host's new enrolment does not talk to who shows the old one."""
    member = world.served.member
    peer = PeerClient(replace(member, enrolment="0" * 16), world.host_b.client_context())
    with pytest.raises(Denied, match="is not host-a"):
        await peer.ping()
    await peer.close()
    assert world.service.calls == []


async def test_role_is_the_documents(world: World) -> None:
    """A role that was taken away in the document is gone with the same certificate."""
    admin = world.kit.authority.membership().operator("admin")
    changed = replace(admin, role=Role.READ)
    world.kit.change(lambda membership: membership.without_operator("admin").with_operator(changed))
    world.served.gate.accept_membership(world.kit.authority.signed_membership())
    with pytest.raises(Denied, match="has the role read"):
        await ask(world.served.client(world.admin), "POST", "/v1/guests/web-7/pause")


async def test_rolled_back_document_is_refused(world: World) -> None:
    """An older document, correctly signed, is refused and changes nothing."""
    old = world.kit.authority.signed_membership()
    newer = world.kit.change(lambda membership: membership.without_host("host-b"))
    world.served.gate.accept_membership(world.kit.authority.signed_membership())
    with pytest.raises(Denied, match="older than"):
        await ask(
            world.served.client(world.admin),
            "PUT",
            "/v1/membership",
            {"document": old.document, "signature": old.signature},
        )
    assert world.served.gate.membership == newer
    assert IdentityDirectory(world.host_a.path).membership() == newer
