"""An agent that is told to end lets commits end first, and answers its peers meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from vmferry.agent.peer_client import PeerClient
from vmferry.core.errors import Denied
from vmferry.core.ids import HostName
from vmferry.testing.fleet_agents import FleetAgents


async def wait_known(peer: PeerClient) -> None:
    """Wait until the agent has the fleet document that names who asks."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(Denied):
                await peer.ping()
                return
            await asyncio.sleep(0.01)


async def test_a_commit_ends_before_the_agent(tmp_path: Path) -> None:
    """After SIGTERM the agent answers until no guest stands still for a hand-over; only then does it let go."""
    async with FleetAgents(tmp_path) as fleet:
        await fleet.init()
        for name in ("host-a", "host-b"):
            await fleet.start(name)
            await fleet.add(name)
        ending, other = fleet.agents["host-a"], fleet.agents["host-b"]
        assert other.peers is not None
        peer = other.peers.client(HostName("host-a"))
        await wait_known(peer)
        ending.service.calls.clear()
        ending.service.settled = asyncio.Event()
        stop = asyncio.create_task(ending.stop())
        async with asyncio.timeout(20):
            while ("settle",) not in ending.service.calls:  # noqa: ASYNC110 - the fake's record is what is watched
                await asyncio.sleep(0.01)
        assert (await peer.ping()).sent_ns > 0
        assert not stop.done()
        ending.service.settled.set()
        await stop
        assert [call[0] for call in ending.service.calls] == ["settle", "ping", "close"]
