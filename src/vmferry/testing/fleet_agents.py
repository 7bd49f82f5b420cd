"""Agents from enrolment to work in this process, each with a `FakeService` inside; for tests of fleets."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from vmferry.agent.config import AgentConfig, MigrationConfig
from vmferry.agent.main import serve_until
from vmferry.agent.peer_pool import PeerPool
from vmferry.agent.service_port import AgentService
from vmferry.api import fleet_commands as commands
from vmferry.core.ids import HostName
from vmferry.pki.identity import IdentityDirectory
from vmferry.testing.fake_service import FakeService

T = TypeVar("T")


class RunningAgent:
    """One agent.

    Args:
        name: of its host; also its directory's.
        directory: where its state is.
        address: loopback address.
    """

    def __init__(self, name: str, directory: Path, address: str) -> None:
        self.config = AgentConfig(
            name=name,
            listen=address,
            port=0,
            state_dir=directory / "state",
            run_dir=directory / "run",
            migration=MigrationConfig(stream_port=0),
        )
        self.identity = IdentityDirectory(self.config.identity_dir)
        self.service = FakeService(name)
        self.peers: PeerPool | None = None
        self.port = 0
        self._stop = asyncio.Event()
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def code(self) -> str:
        """The code that it shows now."""
        return (self.config.state_dir / "enrolment" / "code").read_text().strip()

    async def start(self) -> None:
        """Start it and wait until it listens (for its enrolment, or for work)."""
        self._stop, self._ready = asyncio.Event(), asyncio.Event()
        config = self.config.model_copy(update={"port": self.port})
        self._task = asyncio.create_task(serve_until(config, self._build, self._stop, self._on_ready))
        await self._wait(self._ready)

    async def wait_working(self) -> None:
        """Wait until it answers as a member."""
        while self.peers is None or not self._ready.is_set():
            self._ready.clear()
            await self._wait(self._ready)

    async def wait_version(self, version: int) -> None:
        """Wait until it has stored this version of the fleet document."""
        async with asyncio.timeout(60):
            while self.identity.membership().version != version:  # noqa: ASYNC110 - a file is what is watched
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """End it politely. Idempotent."""
        self._stop.set()
        if self._task is not None:
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self.peers = None

    async def _wait(self, event: asyncio.Event) -> None:
        """Wait for an event, or for the agent's death."""
        if self._task is None:
            raise RuntimeError("the agent was not started")
        wait = asyncio.create_task(event.wait())
        await asyncio.wait((wait, self._task), return_when=asyncio.FIRST_COMPLETED, timeout=60)
        wait.cancel()
        if self._task.done():
            self._task.result()
        if not event.is_set():
            raise RuntimeError(f"agent {self.config.name} did not come up")

    def _on_ready(self, port: int) -> None:
        """Note that it listens."""
        self.port = port
        self._ready.set()

    async def _build(self, _config: AgentConfig, _name: HostName, peers: PeerPool) -> AgentService:
        """Return the fake inside."""
        self.peers = peers
        return self.service


class FleetAgents:
    """A fleet whose hosts are enrolled through the real commands.

    Args:
        directory: where everything goes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.operator_dir = directory / "operator"
        self.agents: dict[str, RunningAgent] = {}

    @property
    def ca_dir(self) -> Path:
        """The CA directory, on host-a."""
        return self.directory / "host-a" / "state" / "ca"

    async def init(self, *, lifetime_s: int = 90 * 86400) -> None:
        """Make the CA."""
        await asyncio.to_thread(commands.init_ca, self.ca_dir, self.operator_dir, lifetime_s=lifetime_s)

    async def start(self, name: str) -> RunningAgent:
        """Start an agent that is not enrolled."""
        agent = RunningAgent(name, self.directory / name, f"127.0.0.{1 + len(self.agents)}")
        self.agents[name] = agent
        await agent.start()
        return agent

    async def add(self, name: str, *, code: str | None = None) -> commands.AddedHost:
        """Enrol a started agent and wait until it works."""
        agent = self.agents[name]
        added = await asyncio.to_thread(
            commands.add_host,
            name,
            agent.config.listen,
            agent.code if code is None else code,
            ca_dir=self.ca_dir,
            identity_dir=self.operator_dir,
            port=agent.port,
        )
        await agent.wait_working()
        return added

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """End all agents."""
        await asyncio.gather(*(agent.stop() for agent in self.agents.values()))
