"""A domain that stands still, with real libvirts: one that was paused before it moves, and one that a policy pauses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from tests.libvirt.versions import IDS, VERSIONS, find_or_skip

from vmferry.core.convergence import nova
from vmferry.core.progress import PolicyOrdered
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.hosts import Lab
from vmferry.lab.libvirt import LibvirtDaemon, libvirt_missing
from vmferry.lab.libvirt.moves import PLAIN, connected, daemons_of, oracle_of, planned, start_domain, steered
from vmferry.lab.scenarios import wait_until
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.facts import DomainState
from vmferry.libvirt.moves.request import Wish

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(libvirt_missing() is not None, reason=str(libvirt_missing())),
]
CALM = GuestPlan("linux", memory_mib=192, working_set_mib=32, rate=20)
#: Writes faster than the link takes: it moves only if it is stopped.
HASTY = replace(CALM, memory_mib=256, working_set_mib=96, rate=150)
LINK = Wish(PLAIN, bandwidth=BytesPerSecond(119 * MIB))
NARROW = replace(LINK, bandwidth=BytesPerSecond(30 * MIB))
Daemons = dict[str, LibvirtDaemon]
Connections = dict[str, LibvirtConnection]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab() -> AsyncIterator[Lab]:
    """Two hosts, 1 Gbit/s apart."""
    async with Lab(link=BytesPerSecond(119 * MIB)) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=VERSIONS, ids=IDS)
async def hosts(lab: Lab, request: pytest.FixtureRequest) -> AsyncIterator[Daemons]:
    """A daemon on each."""
    async with daemons_of(lab, find_or_skip(request.param)) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def connections(hosts: Daemons) -> AsyncIterator[Connections]:
    """One to each daemon; no domain is left afterwards."""
    async with connected(hosts) as made:
        yield made


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nova's time-out come after 2 s (of at least 2 GiB), and not after 1600."""
    monkeypatch.setattr(nova, "TIMEOUT_S_PER_GIB", 1)


async def test_a_paused_domain_moves_and_is_paused_there(hosts: Daemons, connections: Connections) -> None:
    """There and back, and when it goes on its memory is whole."""
    await start_domain(hosts["host-a"], CALM)
    await connections["host-a"].suspend(CALM.name)
    for pair in (("host-a", "host-b"), ("host-b", "host-a")):
        async with planned(hosts, connections, pair, CALM.name, LINK) as domain:
            ended = (await steered(domain, CALM, LINK, "vmferry")).ended
        assert ended.failure is None, ended.reason
        assert (await connections[pair[1]].domain(CALM.name)).state is DomainState.PAUSED
        assert await connections[pair[0]].domains() == ()
    await connections["host-a"].resume(CALM.name)
    assert (await oracle_of(hosts["host-a"])).startswith("oracle clean")


@pytest.mark.long
@pytest.mark.usefixtures("hurry")
async def test_a_domain_that_a_policy_pauses_runs_at_the_destination(hosts: Daemons, connections: Connections) -> None:
    """It outruns the link, is stopped, and so arrives; libvirt lets it run there, whole."""
    await start_domain(hosts["host-a"], HASTY)
    async with planned(hosts, connections, ("host-a", "host-b"), HASTY.name, NARROW) as domain:
        moved = await steered(domain, HASTY, NARROW, "nova-force-complete")
    orders = [event.order for event in moved.told if isinstance(event, PolicyOrdered)]
    assert orders[-1] == "pause the guest"
    assert moved.ended.failure is None, moved.ended.reason
    assert (await connections["host-b"].domain(HASTY.name)).state is DomainState.RUNNING
    assert await connections["host-a"].domains() == ()
    assert (await oracle_of(hosts["host-b"])).startswith("oracle clean")


@pytest.mark.long
@pytest.mark.usefixtures("hurry")
async def test_a_domain_that_was_paused_in_vain_runs_again(hosts: Daemons, connections: Connections) -> None:
    """The move is given up after a policy has paused it: it runs where it was."""
    await start_domain(hosts["host-a"], HASTY)
    slow = replace(NARROW, bandwidth=BytesPerSecond(4 * MIB))
    async with planned(hosts, connections, ("host-a", "host-b"), HASTY.name, slow) as domain:
        moving = asyncio.create_task(steered(domain, HASTY, slow, "nova-force-complete"))

        async def it_stands_still() -> bool:
            return (await connections["host-a"].domain(HASTY.name)).state is DomainState.PAUSED

        await wait_until(it_stands_still, "the policy has paused it")
        await connections["host-a"].abort(HASTY.name)
        ended = (await moving).ended
    assert "canceled by client" in str(ended.reason)
    assert (await connections["host-a"].domain(HASTY.name)).state is DomainState.RUNNING
    assert await connections["host-b"].domains() == ()
    assert (await oracle_of(hosts["host-a"])).startswith("oracle clean")
