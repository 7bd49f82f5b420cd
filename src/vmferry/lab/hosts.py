"""A lab: hosts without hardware, each with a real agent, in network namespaces or (without root) on loopback.

    async with Lab() as lab:
        await lab.cli("host-a", "guest", "list", "--json")

Leaving the block ends every process of the lab and removes its namespaces and files, whatever happened inside.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import tomli_w

from vmferry.conductor.hold import VARIABLE as HOLD_VARIABLE
from vmferry.core.errors import Broken
from vmferry.core.units import BytesPerSecond
from vmferry.lab import enrolment
from vmferry.lab.agents import AgentProcess
from vmferry.lab.api import Api
from vmferry.lab.commands import Ran, run_command
from vmferry.lab.network import Network, namespaces_missing
from vmferry.lab.processes import MARK, Identity, find_lab_processes
from vmferry.lab.registry import Claim, claim, destroy
from vmferry.lab.toolchain import QemuBinary, cache_dir, find_qemus
from vmferry.qemu.run_dir import QEMU_LOG

#: One port for every agent: hosts have addresses of their own, also on loopback.
AGENT_PORT = 7716
HOSTS = ("host-a", "host-b")
#: User ids of each host's guests: hosts share the kernel, and their guests must not share a user.
FIRST_UID, UIDS_PER_HOST = 700_000, 500


@dataclass(frozen=True, slots=True)
class LabHost:
    """One host of a lab."""

    name: str
    address: str  #: of its agent
    directory: Path
    agent: AgentProcess
    api: Api
    qemu: QemuBinary

    @property
    def state_dir(self) -> Path:
        """Where the agent keeps its journal."""
        return self.directory / "state"

    @property
    def run_dir(self) -> Path:
        """Where the agent keeps sockets and logs of its guests."""
        return self.directory / "run"

    @property
    def local_dir(self) -> Path:
        """What the host sees as the lab's `local` directory, which has other content on each host."""
        return self.directory / "local"

    @property
    def hold_dir(self) -> Path:
        """Where files ask the agent to hold hand-overs in a state (vmferry.conductor.hold)."""
        return self.directory / "hold"


class Lab:
    """Two hosts with an agent each, one operator, one fleet.

    Args:
        qemus: the QEMU of each host; the newest on this machine by default.
        link: limit of the management link; None: none.
        settings: more keys of the agents' configuration files, by host.
        namespaces: hosts in network namespaces; None: when that works here.
        local_dirs: each host has a directory of its own at the path `local`; needs root.
    """

    def __init__(
        self,
        *,
        qemus: Mapping[str, QemuBinary] | None = None,
        link: BytesPerSecond | None = None,
        settings: Mapping[str, Mapping[str, object]] | None = None,
        namespaces: bool | None = None,
        local_dirs: bool = False,
    ) -> None:
        self._qemus = dict(qemus or {})
        self._link = link
        self._settings = dict(settings or {})
        self._namespaces = namespaces_missing() is None if namespaces is None else namespaces
        self._local_dirs = local_dirs
        self._claim: Claim | None = None
        self.network: Network | None = None
        self.hosts: dict[str, LabHost] = {}

    async def __aenter__(self) -> Self:
        """Build everything and wait until every agent answers; on failure nothing is left."""
        self._claim = claim()
        try:
            await self._build()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Remove everything."""
        self.close()

    def close(self) -> None:
        """End every process of the lab, remove its namespaces and files; idempotent, and not to be interrupted."""
        if self._claim is not None:
            destroy(self._claim)
            self._claim = None
        for host in self.hosts.values():
            host.agent.reap()

    @property
    def directory(self) -> Path:
        """The lab's directory; guest files and disks of a test go here."""
        return self._claimed.directory

    def logs(self) -> Iterator[tuple[str, Path]]:
        """Yield what can be read of each host's name and log: its agent's, and those of the QEMUs that it has now."""
        for host in self.hosts.values():
            yield host.name, host.agent.log
            yield from ((host.name, log) for log in host.run_dir.rglob(QEMU_LOG))

    @property
    def local(self) -> Path:
        """The path of the directory that each host has for itself (`local_dirs`)."""
        return self.directory / "local"

    @property
    def operator(self) -> Path:
        """The operator's identity: certificate and key of who may do everything."""
        return self.directory / "operator"

    def inside(self, host: str) -> list[str]:
        """Return the argument prefix that runs a command inside a host or the fabric; empty without namespaces."""
        return self.network.inside(host) if self.network else []

    def environment(self) -> dict[str, str]:
        """Return the environment of every process of the lab: its mark, and the operator's identity."""
        return {**os.environ, MARK: self._claimed.id, **enrolment.operator_environment(self.operator)}

    def command(self, host: str, *arguments: str) -> list[str]:
        """Return the command line that runs `vmferry` on a host."""
        return [*self.inside(host), sys.executable, "-m", "vmferry", *arguments]

    async def cli(self, host: str, *arguments: str, timeout_s: float = 120.0) -> Ran:
        """Run the real command line on a host and return what it printed; a cancelled call ends the command.

        Raises:
            TimeoutError: it did not end in time.
        """
        return await self.run(self.command(host, *arguments), timeout_s=timeout_s)

    async def run(self, argv: Sequence[str], timeout_s: float = 120.0) -> Ran:
        """Run any command as part of the lab."""
        return await run_command(argv, self.environment(), timeout_s)

    async def must(self, host: str, *arguments: str, timeout_s: float = 120.0) -> str:
        """Run the command line on a host and return its standard output.

        Raises:
            Broken: its exit code was not 0.
        """
        ran = await self.cli(host, *arguments, timeout_s=timeout_s)
        if ran.exit_code:
            said = (ran.stderr or ran.stdout).strip()
            raise Broken(f"`vmferry {' '.join(arguments)}` on {host} ended with {ran.exit_code}: {said}")
        return ran.stdout

    async def restart(self, host: str) -> None:
        """Start an agent that was killed or stopped, and wait until it answers."""
        self.hosts[host].agent.start()
        await self.hosts[host].api.wait_answer()

    def processes_of(self, host: str) -> list[Identity]:
        """Return the processes of one host: agent, QEMUs, and whatever else runs there."""
        known = self.hosts[host]
        if self.network:
            return find_lab_processes("-", [self.network.namespace(host)])
        agents = [process for process in (known.agent.supervisor, known.agent.worker) if process]
        others = [process for process in find_lab_processes("-", directory=known.directory) if process not in agents]
        return [*agents, *others]

    @property
    def _claimed(self) -> Claim:
        if self._claim is None:
            raise Broken("The lab is closed")
        return self._claim

    async def _build(self) -> None:
        if self._namespaces:
            self.network = Network(self._claimed, HOSTS)
            self.network.create()
            self.network.limit(self._link)
        newest = find_qemus()
        if not newest:
            raise Broken("No QEMU on this machine starts", fix="run `./run setup`")
        for index, name in enumerate(HOSTS):
            self.hosts[name] = self._plan_host(index, name, self._qemus.get(name, newest[0]))
        await enrolment.enrol(self)  # starts the agents
        for host in self.hosts.values():
            await self._wait_answer(host)

    async def _wait_answer(self, host: LabHost) -> None:
        try:
            await host.api.wait_answer()
        except Broken as error:
            raise Broken(f"{error}; its log ends with:\n{host.agent.tail()}") from error

    def _plan_host(self, index: int, name: str, qemu: QemuBinary) -> LabHost:
        """Make the host's directories and configuration; nothing runs yet."""
        directory = self.directory / name
        for part in (directory, *(directory / name for name in ("state", "run", "hold", "local"))):
            part.mkdir(mode=0o711)
        address = self.network.management_address(name) if self.network else f"127.0.0.{1 + index}"
        config = directory / "agent.toml"
        config.write_text(tomli_w.dumps(self._agent_settings(index, name, address, qemu)), "utf-8")
        environment = {**self.environment(), HOLD_VARIABLE: str(directory / "hold")}
        command = self.command(name, "agent", "--config", str(config))
        if self._local_dirs:
            self.local.mkdir(mode=0o711, exist_ok=True)
            command = _with_mount(directory / "local", self.local, command)
        agent = AgentProcess(command, environment, directory / "agent.log")
        namespace = self.network.namespace(name) if self.network else None
        return LabHost(name, address, directory, agent, Api(name, self.operator, namespace), qemu)

    def _agent_settings(self, index: int, name: str, address: str, qemu: QemuBinary) -> dict[str, object]:
        directory = self.directory / name
        first = FIRST_UID + index * UIDS_PER_HOST
        return {
            "name": name,
            "listen": address,
            "advertise": address,
            "port": AGENT_PORT,
            "state_dir": str(directory / "state"),
            "run_dir": str(directory / "run"),
            "image_dirs": [str(self.directory), str(cache_dir())],
            "qemu": {"argv": list(qemu.argv), "env": qemu.env, "uids": f"{first}-{first + UIDS_PER_HOST - 1}"},
            **self._settings.get(name, {}),
        }


def _with_mount(what: Path, where: Path, command: Sequence[str]) -> list[str]:
    """Return the command line that runs a command with a directory mounted, which nobody else sees."""
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(what), str(where), *command]
