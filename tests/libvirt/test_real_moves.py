"""Domains of two real libvirt daemons move under our policies; libvirt carries the move out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from tests.libvirt.versions import IDS, VERSIONS, find_or_skip

from vmferry.conductor.domain_move import Ended, Event
from vmferry.core.errors import NotFound, Unreachable
from vmferry.core.migration import MigrationStatus
from vmferry.core.progress import PolicyOrdered
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.lab.commands import end
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.hosts import Lab
from vmferry.lab.libvirt import LibvirtDaemon, libvirt_missing
from vmferry.lab.libvirt.moves import (
    PLAIN,
    connected,
    daemons_of,
    oracle_of,
    planned,
    start_domain,
    steered,
)
from vmferry.lab.scenarios import wait_until
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.facts import DomainState
from vmferry.libvirt.moves.happenings import Happening, JobEnded, Lost, RoundBegan, Turn, Turned
from vmferry.libvirt.moves.request import Wish

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(libvirt_missing() is not None, reason=str(libvirt_missing())),
]
LINK = BytesPerSecond(119 * MIB)
PLAN = GuestPlan("linux", memory_mib=256, working_set_mib=64, rate=20)
WISH = Wish(PLAIN, bandwidth=LINK)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab() -> AsyncIterator[Lab]:
    """Two hosts, 1 Gbit/s apart."""
    async with Lab(link=LINK) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=VERSIONS, ids=IDS)
async def hosts(lab: Lab, request: pytest.FixtureRequest) -> AsyncIterator[dict[str, LibvirtDaemon]]:
    """A daemon on each."""
    async with daemons_of(lab, find_or_skip(request.param)) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def connections(hosts: dict[str, LibvirtDaemon]) -> AsyncIterator[dict[str, LibvirtConnection]]:
    """One to each daemon; no domain is left afterwards."""
    async with connected(hosts) as made:
        yield made


async def started(hosts: dict[str, LibvirtDaemon], plan: GuestPlan) -> None:
    """Run a domain on host-a whose workload works."""
    await start_domain(hosts["host-a"], plan)


async def moved(
    hosts: dict[str, LibvirtDaemon],
    connections: dict[str, LibvirtConnection],
    pair: tuple[str, str],
    wish: Wish = WISH,
    policy: str = "vmferry",
) -> tuple[Ended, tuple[Event, ...]]:
    """Move the domain; returns how that ended, and what watchers were told."""
    async with planned(hosts, connections, pair, PLAN.name, wish) as domain:
        found = await steered(domain, PLAN, wish, policy)
    return found.ended, found.told


async def assert_whole(daemon: LibvirtDaemon) -> None:
    """The domain's memory is as it wrote it."""
    assert (await oracle_of(daemon)).startswith("oracle clean")


async def test_there_and_back_under_load(
    hosts: dict[str, LibvirtDaemon], connections: dict[str, LibvirtConnection]
) -> None:
    """It runs on one host alone, whole, and libvirt's figures of the move are a reading like any other."""
    await started(hosts, PLAN)
    for pair in (("host-a", "host-b"), ("host-b", "host-a")):
        ended, told = await moved(hosts, connections, pair)
        assert ended.failure is None, ended.reason
        assert [event for event in told if isinstance(event, PolicyOrdered)]
        assert (await connections[pair[1]].domain(PLAN.name)).state is DomainState.RUNNING
        with pytest.raises(NotFound):
            await connections[pair[0]].domain(PLAN.name)
        await assert_whole(hosts[pair[1]])
        last = await connections[pair[1]].last_job(PLAN.name)
        assert last.status is MigrationStatus.COMPLETED
        assert last.total_bytes > PLAN.memory_mib * MIB
        assert last.transferred_bytes > PLAN.working_set_mib * MIB
        assert last.downtime_ms is not None
        assert ended.trace is not None


@pytest.mark.long
async def test_a_domain_that_outruns_the_link_leaves_by_postcopy(
    hosts: dict[str, LibvirtDaemon], connections: dict[str, LibvirtConnection]
) -> None:
    """Our policy begins it over libvirt; without it the same policy gives up, and the domain stays and runs."""
    await started(hosts, replace(PLAN, memory_mib=384, working_set_mib=192, rate=150))
    slow = replace(WISH, bandwidth=BytesPerSecond(30 * MIB))
    asked = replace(slow, postcopy=True)
    ended, told = await moved(hosts, connections, ("host-a", "host-b"), asked)
    assert ended.failure is None, ended.reason
    assert any("post-copy" in event.order for event in told if isinstance(event, PolicyOrdered))
    await assert_whole(hosts["host-b"])


@pytest.mark.long
async def test_a_move_that_is_given_up_costs_nothing(
    hosts: dict[str, LibvirtDaemon], connections: dict[str, LibvirtConnection]
) -> None:
    """Ctrl-C in the middle: the domain runs where it was, no half of one is left there, and it can move afterwards."""
    await started(hosts, PLAN)
    slow = replace(WISH, bandwidth=BytesPerSecond(8 * MIB))
    running = asyncio.create_task(moved(hosts, connections, ("host-a", "host-b"), slow))

    async def it_sends() -> bool:
        return (await connections["host-a"].job(PLAN.name)).status is MigrationStatus.ACTIVE

    await wait_until(it_sends, "memory is sent")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await connections["host-a"].domain(PLAN.name)).state is DomainState.RUNNING
    assert await connections["host-b"].domains() == ()
    await assert_whole(hosts["host-a"])
    ended, _ = await moved(hosts, connections, ("host-a", "host-b"))
    assert ended.failure is None, ended.reason
    await assert_whole(hosts["host-b"])


async def test_the_daemon_tells_rounds_and_the_end(
    hosts: dict[str, LibvirtDaemon], connections: dict[str, LibvirtConnection]
) -> None:
    """Each round once and in turn, the guest's stop, and the job's end with libvirt's last figures."""
    await started(hosts, PLAN)
    async with connections["host-a"].listening(PLAN.name) as heard:
        ended, _ = await moved(hosts, connections, ("host-a", "host-b"))
        assert ended.failure is None, ended.reason
        told: list[Happening] = []
        async with asyncio.timeout(60):
            while not any(isinstance(one, JobEnded) for one in told):
                told.append(await heard.get())
    rounds = [one.round for one in told if isinstance(one, RoundBegan)]
    assert rounds == list(range(1, len(rounds) + 1)), told
    assert len(rounds) >= 2
    assert [one.sample.status for one in told if isinstance(one, JobEnded)] == [MigrationStatus.COMPLETED]
    turns = [one.turn for one in told if isinstance(one, Turned)]
    assert turns.index(Turn.SUSPENDED) < turns.index(Turn.STOPPED), turns


async def test_a_daemon_that_stands_still_is_found(hosts: dict[str, LibvirtDaemon]) -> None:
    """Keepalive ends a call that waits for it long before its own limit, and whoever listens is told."""
    await started(hosts, PLAN)
    daemon = hosts["host-a"]
    connection = await LibvirtConnection.connect(daemon.socket_uri())
    try:
        async with connection.listening(PLAN.name) as heard:
            os.kill(daemon.pid, signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(Unreachable):
                await connection.domains()
            assert time.monotonic() - began < 15
            async with asyncio.timeout(60):
                assert isinstance(await heard.get(), Lost)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
        await connection.close()
    await daemon.must("destroy", PLAN.name)


@pytest.mark.long
async def test_by_the_command(hosts: dict[str, LibvirtDaemon], connections: dict[str, LibvirtConnection]) -> None:
    """Hosts get names, the check says what libvirt promises, and the move shows its rounds and libvirt's figures."""
    await started(hosts, PLAN)
    lab = hosts["host-a"].lab
    for name, daemon in (("lv-a", hosts["host-a"]), ("lv-b", hosts["host-b"])):
        await lab.must("host-a", "host", "add", name, "--libvirt", daemon.socket_uri(), "--peer-uri", daemon.uri)
    encrypted = await lab.cli("host-a", "check", PLAN.name, "lv-b")
    assert (encrypted.exit_code, "libvirt.encryption" in encrypted.stdout) == (3, True), encrypted
    checked = await lab.must("host-a", "check", PLAN.name, "lv-b", "--plain")
    assert "web-7 can move from lv-a to lv-b" in checked
    assert "commit_owner    libvirt" in checked
    moved_ = await lab.must("host-a", "migrate", PLAN.name, "lv-b", "--plain", "--bandwidth", "100MiB/s")
    assert "web-7 runs on lv-b" in moved_
    assert "round 1:" in moved_
    assert "libvirt commits the move" in moved_
    await assert_whole(hosts["host-b"])
    again = await lab.cli("host-a", "migrate", PLAN.name, "lv-b", "--plain")
    assert (again.exit_code, "host.same" in again.stdout) == (3, True), again
    nobody = await lab.cli("host-a", "migrate", "web-8", "lv-b", "--plain")
    assert "no libvirt host runs a domain web-8" in nobody.stderr


async def told_by(command: asyncio.subprocess.Process, until: str | None = None) -> list[dict[str, Any]]:
    """Return the events that a command tells from now on, up to the first of a kind or to its end."""
    assert command.stdout is not None
    events = []
    async with asyncio.timeout(60):
        async for line in command.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == until:
                break
    return events


async def test_from_other_processes(hosts: dict[str, LibvirtDaemon], connections: dict[str, LibvirtConnection]) -> None:
    """A move whose command was killed is watched and given up from others; the domain runs on where it was."""
    await started(hosts, PLAN)
    lab = hosts["host-a"].lab
    for name, daemon in (("lv-a", hosts["host-a"]), ("lv-b", hosts["host-b"])):
        await lab.must("host-a", "host", "add", name, "--libvirt", daemon.socket_uri(), "--peer-uri", daemon.uri)
    words = ("migrate", PLAN.name, "lv-b", "--plain", "--bandwidth", "8MiB/s")
    command = await asyncio.create_subprocess_exec(
        *lab.command("host-a", *words), env=lab.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    async def it_sends() -> bool:
        return (await connections["host-a"].job(PLAN.name)).status is MigrationStatus.ACTIVE

    try:
        await wait_until(it_sends, "memory is sent")
        told = await lab.must("host-a", "recover", PLAN.name)
        assert "nothing: another vmferry steers it" in told
    finally:
        command.kill()
        await command.wait()
    watching = await asyncio.create_subprocess_exec(
        *lab.command("host-a", "watch", PLAN.name, "--json"), env=lab.environment(), stdout=subprocess.PIPE
    )
    try:
        lines = await told_by(watching, until="progress")
        assert [line["event"] for line in lines][-1:] == ["progress"], lines
        given_up = await lab.must("host-a", "cancel", PLAN.name)
        assert "given up; it runs at the source" in given_up
        assert "owner lv-a" in given_up
        lines = await told_by(watching)
    finally:
        await end(watching)
    ended = (lines[-1]["event"], lines[-1]["outcome"], lines[-1]["owner"])
    assert ended == ("finished", "aborted", "lv-a"), lines[-1]
    assert await connections["host-b"].domains() == ()
    await assert_whole(hosts["host-a"])
    assert "owner: lv-a" in await lab.must("host-a", "recover", PLAN.name)
