"""Certificates renew themselves; time is given, nothing waits for it."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from vmferry.agent.peer_pool import PeerPool
from vmferry.agent.upkeep import Upkeep
from vmferry.api import fleet_commands as commands
from vmferry.core.errors import Denied
from vmferry.core.ids import HostName
from vmferry.pki import certificates as certs
from vmferry.pki.authority import Authority, utc_now
from vmferry.pki.identity import IdentityDirectory
from vmferry.pki.membership import Membership
from vmferry.testing.fake_service import FakeService
from vmferry.testing.fleet_agents import FleetAgents
from vmferry.testing.fleet_kit import FleetKit, Served, serve

HOUR = dt.timedelta(hours=1)


def shown_certificate(served: Served, directory: IdentityDirectory) -> bytes:
    """Return the certificate (DER) that a server shows on a new connection."""
    client = served.client(directory)
    seen: list[bytes] = []
    client._check_peer = seen.append
    with client:
        client.request("GET", "/v1/membership")
    return seen[0]


@pytest.mark.parametrize(("passed", "due"), [(0.0, False), (0.66, False), (0.67, True), (1.5, True)])
def test_due_after_two_thirds(tmp_path: Path, passed: float, due: bool) -> None:
    """A certificate is renewed when two thirds of its lifetime are over, not before."""
    start = utc_now()
    kit = FleetKit(tmp_path, lifetime_s=3600, now=lambda: start)
    certificate = kit.add_host("host-a").certificate()
    assert certs.needs_renewal(certificate, start + passed * HOUR) == due


async def test_renewal_at_another_host(tmp_path: Path) -> None:
    """An agent renews at the authority host with a new key, and serves and asks with it without a restart."""
    kit = FleetKit(tmp_path, lifetime_s=3600)
    host_a, host_b, admin = kit.add_host("host-a"), kit.add_host("host-b"), kit.add_operator("admin")
    clock = [utc_now()]
    async with (
        serve(host_a, FakeService("host-a"), kit.directory / "ca") as first,
        serve(host_b, FakeService("host-b"), tmp_path / "none", context=(context := host_b.server_context())) as second,
    ):
        locate(kit, first, second)
        kit.tell(admin)
        for served in (first, second):
            served.gate.accept_membership(kit.authority.signed_membership())
        pool = PeerPool(second.gate, now=lambda: clock[0])
        upkeep = Upkeep(second.gate, second.fleet, pool, context, now=lambda: clock[0])
        before, shown = host_b.path.joinpath("identity.pem").read_bytes(), await in_thread(second, admin)
        await upkeep.run_once()
        assert host_b.path.joinpath("identity.pem").read_bytes() == before
        clock[0] += 0.7 * HOUR
        await upkeep.run_once()
        after = host_b.certificate()
        assert host_b.path.joinpath("identity.pem").read_bytes() != before
        assert host_b.identity() == certs.read_identity(after)
        again = await in_thread(second, admin)
        assert again != shown
        assert certs.certificate_fingerprint(again) != certs.certificate_fingerprint(shown)
        await pool.close()
        await pool.client(HostName("host-a")).ping()  # over a new connection, with the new certificate
        await pool.close()


async def in_thread(served: Served, directory: IdentityDirectory) -> bytes:
    """Ask in a thread."""
    return await asyncio.to_thread(shown_certificate, served, directory)


def locate(kit: FleetKit, authority: Served, *others: Served) -> None:
    """Publish where the hosts really listen, and which has the CA."""

    def change(membership: Membership) -> Membership:
        ports = {served.name: served.listener.port for served in (authority, *others)}
        hosts = tuple(replace(host, port=ports.get(host.name, host.port)) for host in membership.hosts)
        return replace(membership, version=membership.version + 1, authority=authority.name, hosts=hosts)

    kit.change(change)


async def test_renewal_at_oneself(tmp_path: Path) -> None:
    """The authority host renews its own certificate."""
    kit = FleetKit(tmp_path, lifetime_s=3600)
    host_a = kit.add_host("host-a")
    context = host_a.server_context()
    async with serve(host_a, FakeService("host-a"), kit.directory / "ca", context=context) as served:
        locate(kit, served)
        before = host_a.certificate()
        pool = PeerPool(served.gate)
        await Upkeep(served.gate, served.fleet, pool, context, now=lambda: utc_now() + 0.7 * HOUR).run_once()
        assert host_a.certificate().serial_number != before.serial_number
        assert host_a.membership().authority == "host-a"
        await pool.close()


async def test_failed_renewal_keeps_the_old(tmp_path: Path) -> None:
    """When the authority host does not answer, the old certificate stays and the agent goes on."""
    kit = FleetKit(tmp_path, lifetime_s=3600)
    host_a, host_b = kit.add_host("host-a"), kit.add_host("host-b")
    async with serve(host_a, FakeService("host-a"), tmp_path / "none") as gone:
        pass
    async with serve(host_b, FakeService("host-b"), tmp_path / "none") as served:
        locate(kit, gone, served)
        served.gate.accept_membership(kit.authority.signed_membership())
        before = host_b.path.joinpath("identity.pem").read_bytes()
        pool = PeerPool(served.gate)
        context = host_b.server_context()
        await Upkeep(served.gate, served.fleet, pool, context, now=lambda: utc_now() + 0.7 * HOUR).run_once()
        assert host_b.path.joinpath("identity.pem").read_bytes() == before
        await pool.close()


async def test_own_expired_certificate_is_said(tmp_path: Path) -> None:
    """An agent whose own certificate has expired says so, instead of that the other one hung up."""
    kit = FleetKit(tmp_path, lifetime_s=3600)
    host_a = kit.add_host("host-a")
    async with serve(host_a, FakeService("host-a"), tmp_path / "none") as served:
        locate(kit, served)
        served.gate.accept_membership(kit.authority.signed_membership())
        pool = PeerPool(served.gate, now=lambda: utc_now() + 2 * HOUR)
        with pytest.raises(Denied, match="own certificate expired"):
            await pool.client(HostName("host-a")).ping()
        await pool.close()


async def test_operator_renews(agents: FleetAgents) -> None:
    """An operator's certificate is renewed when less than a third is left, and only then."""
    await agents.init(lifetime_s=3600)
    await agents.start("host-a")
    await agents.add("host-a")
    assert await asyncio.to_thread(commands.renew_operator, agents.operator_dir) is False
    directory = IdentityDirectory(agents.operator_dir)
    authority = Authority.open(agents.ca_dir, now=lambda: utc_now() - 0.8 * HOUR)
    key = certs.make_key()
    old = authority.issue(directory.identity(), certs.make_request(key), directory.membership())
    directory.replace_certificate(key, old)
    assert await asyncio.to_thread(commands.renew_operator, agents.operator_dir) is True
    assert directory.certificate().not_valid_after_utc > old.not_valid_after_utc
    assert directory.identity().name == "admin"


async def test_removed_member_does_not_renew(tmp_path: Path) -> None:
    """Who was removed gets no new certificate, even where the new document has not been taken in yet."""
    kit = FleetKit(tmp_path)
    host_a, host_b = kit.add_host("host-a"), kit.add_host("host-b")
    kit.tell(host_a, host_b)
    async with serve(host_a, FakeService("host-a"), kit.directory / "ca") as served:
        kit.change(lambda membership: membership.without_host("host-b"))
        body = {"request": certs.make_request(certs.make_key())}
        with served.client(host_b) as client, pytest.raises(Denied, match="not a member"):
            await asyncio.to_thread(client.request, "POST", "/v1/ca/renew", body)


def test_foreign_certificate_is_not_taken(tmp_path: Path) -> None:
    """A certificate of another CA, or for another key, never replaces the own one."""
    kit, other = FleetKit(tmp_path / "one"), FleetKit(tmp_path / "two")
    host = kit.add_host("host-a")
    before = host.path.joinpath("identity.pem").read_bytes()
    foreign = other.add_host("host-a").certificate()
    key = certs.make_key()
    with pytest.raises(Denied, match="not signed by"):
        host.replace_certificate(key, foreign)
    own = kit.authority.issue(host.identity(), certs.make_request(key), kit.authority.membership())
    with pytest.raises(Denied, match="another key"):
        host.replace_certificate(certs.make_key(), own)
    assert host.path.joinpath("identity.pem").read_bytes() == before
    assert isinstance(host.client_context(), ssl.SSLContext)
