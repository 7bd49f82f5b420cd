"""How hosts join and leave a fleet, through the real commands and agents that listen on loopback."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest

from vmferry.api import fleet_commands as commands
from vmferry.api.client import Client, Endpoint
from vmferry.core.errors import BadInput, Denied, NotFound, Refused, Unreachable
from vmferry.core.ids import HostName
from vmferry.pki import certificates as certs
from vmferry.pki.enrol import MOST_TRIES, Enrolment
from vmferry.pki.identity import IdentityDirectory
from vmferry.pki.membership import Role
from vmferry.testing.fleet_agents import FleetAgents


async def ask(agents: FleetAgents, name: str, method: str, path: str) -> dict[str, Any]:
    """Ask an agent as the operator."""
    directory = IdentityDirectory(agents.operator_dir)
    member = directory.membership().host(name)
    endpoint = Endpoint(name, member.address, member.port, member.identity.server_name)

    def run() -> dict[str, Any]:
        with Client(endpoint, directory.client_context(), time_limit_s=10) as client:
            return client.request(method, path)

    return await asyncio.to_thread(run)


async def test_two_hosts_join(agents: FleetAgents) -> None:
    """Two agents join by their codes without a restart, know each other, and answer the operator."""
    await agents.init()
    first, second = await agents.start("host-a"), await agents.start("host-b")
    added_a = await agents.add("host-a")
    added_b = await agents.add("host-b")
    assert (added_a.is_authority, added_b.is_authority) == (True, False)
    assert added_b.told.hosts == ("host-a",)
    assert added_b.told.untold == ()
    assert (added_a.silent, added_b.silent) == (None, None)
    for agent, other in ((first, "host-b"), (second, "host-a")):
        assert agent.peers is not None
        reply = await agent.peers.client(HostName(other)).hello()
        assert reply.name == other
        assert (await ask(agents, other, "GET", "/v1/host"))["name"] == other


async def test_it_answers_when_it_is_added(agents: FleetAgents, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever adds a host waits until its agent has begun to work; one that never does is told, and is a member."""
    await agents.init()
    agent = await agents.start("host-b")
    seen: list[str | None] = []
    ask_it = commands._ask

    def told(*arguments: Any) -> str | None:
        seen.append(ask_it(*arguments))
        return seen[-1]

    monkeypatch.setattr(commands, "_ask", told)
    add = commands.add_host
    added = await asyncio.to_thread(
        add, "host-b", agent.config.listen, agent.code, ca_dir=agents.ca_dir, identity_dir=agents.operator_dir,
        port=agent.port,
    )  # fmt: skip
    assert (added.silent, seen[-1]) == (None, None)
    assert (await ask(agents, "host-b", "GET", "/v1/host"))["name"] == "host-b"
    await agents.start("host-c")
    monkeypatch.setattr(commands, "_SERVES_WITHIN_S", 0.2)
    monkeypatch.setattr(commands, "_ask", lambda *_: "nobody answers")
    assert (await agents.add("host-c")).silent == "nobody answers"
    assert (await ask(agents, "host-c", "GET", "/v1/host"))["name"] == "host-c"


async def test_keys_are_private_and_stay(agents: FleetAgents) -> None:
    """A host's key exists on that host alone, every file is for its owner only, and nothing of the code is left."""
    await agents.init()
    agent = await agents.start("host-b")
    await agents.add("host-b")
    key = agent.identity.path.joinpath("identity.pem").read_text().partition("-----BEGIN PRIVATE KEY")[2]
    assert len(key) > 100
    holders = [
        path for path in agents.directory.rglob("*") if path.is_file() and key in path.read_text(errors="replace")
    ]
    assert holders == [agent.identity.path / "identity.pem"]
    for path in agents.directory.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert not (agent.config.state_dir / "enrolment").exists()


async def test_wrong_secret(agents: FleetAgents) -> None:
    """A wrong secret enrols nobody, leaves the fleet as it was, and after a few tries locks the agent."""
    await agents.init()
    agent = await agents.start("host-b")
    fingerprint, secret = certs.decode_code(agent.code)
    wrong = certs.encode_code(fingerprint, bytes(len(secret)))
    version = commands.list_hosts(agents.operator_dir).version
    for _ in range(MOST_TRIES):
        with pytest.raises(Denied, match="secret is wrong"):
            await agents.add("host-b", code=wrong)
    with pytest.raises(Denied, match="locked"):
        await agents.add("host-b")
    assert commands.list_hosts(agents.operator_dir).version == version
    old = agent.code
    await agent.stop()
    await agent.start()
    assert agent.code != old
    await agents.add("host-b")


async def test_another_agent_answers(agents: FleetAgents) -> None:
    """An agent that does not hold the code's key never sees the secret."""
    await agents.init()
    await agents.start("host-a")
    impostor = await agents.start("host-b")
    with pytest.raises(Denied, match="not the one that printed this code"):
        await agents.add("host-b", code=agents.agents["host-a"].code)
    assert not impostor.identity.exists()


async def test_code_survives_a_restart(tmp_path: Path) -> None:
    """An agent that restarts before its enrolment shows the same code."""
    assert Enrolment(tmp_path).code == Enrolment(tmp_path).code


@pytest.mark.parametrize("code", ["", "ABCDE", "0" * 40, "AAAAA-" * 9])
def test_no_code(code: str) -> None:
    """What is no code is refused before anybody is asked."""
    with pytest.raises(BadInput, match="enrolment code"):
        certs.decode_code(code)


def test_code_round_trip() -> None:
    """A code says what it was made of, however it is typed."""
    code = certs.encode_code(b"f" * 15, b"s" * 10)
    assert certs.decode_code(code.lower().replace("-", " ")) == (b"f" * 15, b"s" * 10)


async def test_nobody_answers(agents: FleetAgents) -> None:
    """A host that does not answer is Unreachable, and the fleet is as it was."""
    await agents.init()
    agent = await agents.start("host-b")
    await agent.stop()
    before = commands.list_hosts(agents.operator_dir)
    with pytest.raises(Unreachable):
        await agents.add("host-b")
    assert commands.list_hosts(agents.operator_dir) == before


async def test_name_is_taken(agents: FleetAgents) -> None:
    """A second host of the same name is refused."""
    await agents.init()
    await agents.start("host-b")
    await agents.add("host-b")
    with pytest.raises(BadInput, match="already"):
        await agents.add("host-b", code=certs.encode_code(bytes(15), bytes(10)))


async def test_configured_name_wins(agents: FleetAgents) -> None:
    """A host whose configuration names it is not enrolled under another name."""
    await agents.init()
    agent = await agents.start("host-b")
    with pytest.raises(BadInput, match="names it host-b"):
        await asyncio.to_thread(
            commands.add_host,
            "host-c",
            agent.config.listen,
            agent.code,
            ca_dir=agents.ca_dir,
            identity_dir=agents.operator_dir,
            port=agent.port,
        )
    await agents.add("host-b")


async def test_not_enrolled_is_said(agents: FleetAgents) -> None:
    """An operator of the fleet who asks an agent that is not enrolled is told Denied, nothing is answered."""
    await agents.init()
    agent = await agents.start("host-b")
    await agents.add("host-b")
    await agent.stop()
    for file in agent.identity.path.iterdir():
        file.unlink()
    await agent.start()
    with pytest.raises(Denied, match="is not host-b"):
        await ask(agents, "host-b", "GET", "/v1/host")


async def test_removed_host_gets_nothing(agents: FleetAgents) -> None:
    """A removed host is refused by all others, who were told; added again it is another one and works."""
    await agents.init()
    for name in ("host-a", "host-b"):
        await agents.start(name)
        await agents.add(name)
    removed_agent = agents.agents["host-b"]
    assert removed_agent.peers is not None
    client = removed_agent.peers.client(HostName("host-a"))
    await client.ping()
    agents.agents["host-a"].service.calls.clear()
    removed = await asyncio.to_thread(
        commands.remove_host, "host-b", ca_dir=agents.ca_dir, identity_dir=agents.operator_dir, force=True
    )
    assert set(removed.told.hosts) == {"host-a", "host-b"}
    with pytest.raises(Denied, match="not a member"):
        await client.ping()
    assert agents.agents["host-a"].service.calls == []
    await removed_agent.stop()
    for file in removed_agent.identity.path.iterdir():
        file.unlink()
    await removed_agent.start()
    await agents.add("host-b")
    assert removed_agent.peers is not None
    await removed_agent.peers.client(HostName("host-a")).ping()


async def test_untold_hosts_are_listed(agents: FleetAgents) -> None:
    """A host that could not be told is listed with the reason, and learns it by itself when it is back."""
    await agents.init()
    for name in ("host-a", "host-b"):
        await agents.start(name)
        await agents.add(name)
    sleeper = agents.agents["host-b"]
    await sleeper.stop()
    changed = await asyncio.to_thread(
        commands.add_operator,
        "late",
        Role.READ,
        ca_dir=agents.ca_dir,
        identity_dir=agents.operator_dir,
        out_dir=agents.directory / "late",
    )
    assert changed.told.hosts == ("host-a",)
    assert [name for name, _ in changed.told.untold] == ["host-b"]
    await sleeper.start()
    await sleeper.wait_working()
    await sleeper.wait_version(changed.told.version)


async def test_host_with_guests_is_kept(agents: FleetAgents) -> None:
    """A host that owns guests is removed only by force."""
    await agents.init()
    await agents.start("host-a")
    await agents.add("host-a")
    with pytest.raises(BadInput, match="web-7"):
        await asyncio.to_thread(commands.remove_host, "host-a", ca_dir=agents.ca_dir, identity_dir=agents.operator_dir)
    assert [host.name for host in commands.list_hosts(agents.operator_dir).hosts] == ["host-a"]


async def test_only_the_authority_renews(agents: FleetAgents) -> None:
    """An agent without the CA directory says who has it."""
    await agents.init()
    for name in ("host-a", "host-b"):
        await agents.start(name)
        await agents.add(name)
    first = agents.agents["host-a"]
    assert first.peers is not None
    with pytest.raises(Refused, match="does not have") as caught:
        await first.peers.client(HostName("host-b")).renew(certs.make_request(certs.make_key()))
    assert "host-a" in str(caught.value.fix)


def test_second_ca_is_refused(tmp_path: Path) -> None:
    """Neither an existing CA nor an existing identity is ever overwritten."""
    commands.init_ca(tmp_path / "ca", tmp_path / "me")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match="CA at"):
        commands.init_ca(tmp_path / "ca", tmp_path / "you")
    with pytest.raises(BadInput, match="identity at"):
        commands.init_ca(tmp_path / "ca2", tmp_path / "me")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_last_operator_is_kept(tmp_path: Path) -> None:
    """Somebody who may change things is always left."""
    commands.init_ca(tmp_path / "ca", tmp_path / "me")
    with pytest.raises(BadInput, match="last one"):
        commands.remove_operator("admin", ca_dir=tmp_path / "ca", identity_dir=tmp_path / "me")


def test_commands_without_a_ca(tmp_path: Path) -> None:
    """Where there is no CA directory the commands say so."""
    with pytest.raises(NotFound, match="CA key"):
        commands.remove_host("host-a", ca_dir=tmp_path, identity_dir=tmp_path)
