"""Agents in nested hosts: one each, in one fleet, with guests that are run and asked there through the real commands.

    async with NestedFleet(lab.hosts) as fleet:
        await fleet.must("guest", "list", "--json")

Everything lies in the hosts' own memory: a host that loses its power has lost it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import tomli_w

from vmferry.core.errors import Broken, TimedOut
from vmferry.core.guest import Acceleration
from vmferry.core.pci import PciAddress
from vmferry.lab.commands import Ran, run_command
from vmferry.lab.enrolment import operator_environment
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.guests import build
from vmferry.lab.nested.host import NestedHost
from vmferry.lab.nested.identities import make_identities
from vmferry.lab.toolchain import QemuBinary, cache_dir, find_qemus

FOLDER = Path("/run/vmferry-lab")
#: What an agent's log says when it serves its fleet.
_UP = '"agent is up"'
_LOOK_EVERY_S = 0.5
LOG = FOLDER / "agent.log"
#: The nested hosts have one slow CPU each: a command takes seconds to start.
_COMMAND_TIMEOUT_S = 180.0
_READY_TIMEOUT_S = 120.0
#: An agent takes 20 s of its host's one emulated CPU to start, of which guests leave it a third.
_UP_WITHIN_S = 300.0
_VMFERRY = (sys.executable, "-m", "vmferry")
#: Asks, again after a while until there is an answer: a guest that boots empties its console's queue, and what was
#: asked before is lost. It loads nothing, which an emulated host would take seconds for.
_ASK = """
import glob, socket, sys, time
run, guest, question, prefix, limit_s, each_s, name = sys.argv[1:]
ends, (path, *_) = time.monotonic() + float(limit_s), glob.glob(f"{run}/**/{guest}/{name}", recursive=True)
while time.monotonic() < ends:
    with socket.socket(socket.AF_UNIX) as there:
        there.settimeout(float(each_s))
        try:
            there.connect(path)
            there.sendall(question.encode())
            for line in there.makefile("r", errors="replace"):
                if line.strip().startswith(prefix):
                    print(line.strip())
                    sys.exit()
        except TimeoutError:
            pass
sys.exit(f"no answer to {question!r} within {limit_s} s")
"""
_AGAIN_S = 10.0


class NestedFleet:
    """Agents in hosts that are up; the first host has the CA, and the operator is on this machine.

    Args:
        hosts: by name; they are somebody else's, and stay up.
        qemus: of each host; the newest on this machine by default.
        image_dirs: where guests' disks may be, beside the fleet's folder, whose file system knows no O_DIRECT.
        acceleration: of their guests: hosts that run on an emulated KVM are too slow to find that out.
        networks: the cards of each physical network, the same on all hosts.
    """

    def __init__(
        self,
        hosts: Mapping[str, NestedHost],
        qemus: Mapping[str, QemuBinary] | None = None,
        image_dirs: Sequence[Path] = (),
        acceleration: Acceleration = Acceleration.AUTO,
        networks: Mapping[str, Sequence[PciAddress]] | None = None,
    ) -> None:
        self._networks = dict(networks or {})
        self.hosts = dict(hosts)
        self._image_dirs = tuple(image_dirs)
        self._acceleration = acceleration
        first = next(iter(self.hosts.values()))
        # of this machine, within the lab's own: it is gone with the lab, whatever ends this program
        self._made = TemporaryDirectory(prefix="operator-", dir=first.directory)
        self._folder = Path(self._made.name)
        self._qemus = dict(qemus or {})
        self._micro: set[str] = set()  #: guests that are asked over their consoles

    @property
    def operator(self) -> Path:
        """Where the operator's identity is, on this machine."""
        return self._folder / "operator"

    async def __aenter__(self) -> Self:
        """Start the agents and make them a fleet; on failure nothing is left."""
        try:
            plans = [host.plan for host in self.hosts.values()]
            identities = await asyncio.to_thread(make_identities, plans, self.operator)
            await asyncio.gather(*(self._begin(name, identities[name]) for name in self.hosts))
            for name in self.hosts:
                await self._wait_up(name)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End agents and guests, and remove what they have written."""
        await self.close()

    async def close(self) -> None:
        """End everything that was started in hosts that are up; idempotent."""
        self._made.cleanup()
        for host in self.hosts.values():
            if host.is_up:
                # agents first, which might start another; neither pattern is what this command line itself has
                for words in ("[v]mferry-lab", "[q]emu-system"):
                    await host.shell(f"while pkill -9 -f '{words}'; do sleep 0.1; done")
                await host.must("rm", "-rf", str(FOLDER))

    async def cli(self, *arguments: str, timeout_s: float = _COMMAND_TIMEOUT_S) -> Ran:
        """Run the operator's command line, on this machine, and return what it did.

        Raises:
            TimedOut: it did not end in time.
        """
        env = {**os.environ, **operator_environment(self.operator)}
        try:
            return await run_command([*_VMFERRY, *arguments], env, timeout_s)
        except TimeoutError as error:
            raise TimedOut(f"`vmferry {' '.join(arguments)}` did not end within {timeout_s:.0f} s") from error

    async def must(self, *arguments: str, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
        """Run the operator's command line and return its standard output.

        Raises:
            Broken: its exit code was not 0.
        """
        ran = await self.cli(*arguments, timeout_s=timeout_s)
        if ran.exit_code:
            said = (ran.stderr or ran.stdout).strip()
            raise Broken(f"`vmferry {' '.join(arguments)}` ended with {ran.exit_code}: {said}")
        return ran.stdout

    async def run_guest(self, plan: GuestPlan, host: str) -> None:
        """Run a built-in guest on a host and wait until its workload works.

        Raises:
            Broken: the command refused.
            TimedOut: the workload does not work in time.
        """
        if plan.kind == "micro":
            self._micro.add(plan.name)
        image = await asyncio.to_thread(build, plan.kind, cache_dir())
        file = self._folder / f"{plan.name}.toml"
        file.write_text(plan.toml(image), "utf-8")
        await self.must("guest", "run", str(file), "--on", host)
        await self._ask_oracle(plan.name, host, _READY_TIMEOUT_S, _AGAIN_S)

    async def oracle(self, guest: str, host: str, timeout_s: float = 60.0) -> str:
        """Return what a guest on a host says about its memory: "oracle clean ..." or "oracle DIRTY ..."."""
        return await self._ask_oracle(guest, host, timeout_s, timeout_s)

    async def ask_shell(self, guest: str, host: str, command: str, answer: str, timeout_s: float = 60.0) -> str:
        """Return the first line that begins with `answer`, of what a command in a linux guest's shell prints."""
        return await self._ask(guest, host, f"{command}\n", answer, timeout_s, timeout_s, "console.sock")

    async def _ask_oracle(self, guest: str, host: str, timeout_s: float, each_s: float) -> str:
        question, socket = ("o", "console.sock") if guest in self._micro else ("oracle\n", "control.sock")
        return await self._ask(guest, host, question, "oracle", timeout_s, each_s, socket)

    async def _ask(
        self, guest: str, host: str, question: str, answer: str, timeout_s: float, each_s: float, socket: str
    ) -> str:
        asked = (guest, question, answer, str(timeout_s), str(each_s), socket)
        client = (sys.executable, "-IS", "-c", _ASK, str(FOLDER / "run"), *asked)
        return (await self.hosts[host].must(*client, timeout_s=timeout_s + 60)).strip()

    async def kill_agent(self, host: str) -> None:
        """Kill a host's agent, as nothing else can end it; its guests live on."""
        await self.hosts[host].shell("while pkill -9 -f '[v]mferry-lab/agent.toml'; do sleep 0.1; done")

    async def start_agent(self, host: str) -> None:
        """Start a host's agent anew, and wait until it serves.

        Raises:
            TimedOut: it does not, in time.
        """
        await self._start(host)
        await self._wait_up(host)

    async def log(self, host: str) -> str:
        """Return what a host's agent has written."""
        return await self.hosts[host].must("cat", str(LOG))

    async def _begin(self, name: str, identities: str) -> None:
        """Start an agent that is in the fleet already."""
        host = self.hosts[name]
        await host.shell(f"mkdir -m 711 {FOLDER} {FOLDER}/state {FOLDER}/run")
        await host.must("sh", "-euc", f"base64 -d | tar -xz -C {FOLDER}", text=identities)
        await host.shell(f"chmod 711 {FOLDER}")
        await host.must("tee", str(FOLDER / "agent.toml"), text=tomli_w.dumps(self._settings(name)))
        await self._start(name)

    async def _start(self, name: str) -> None:
        """Start an agent; its log begins anew."""
        agent = " ".join((*_VMFERRY, "agent", "--config", str(FOLDER / "agent.toml")))
        await self.hosts[name].shell(f"setsid {agent} </dev/null >{LOG} 2>&1 &")

    async def _wait_up(self, name: str) -> None:
        for _ in range(int(_UP_WITHIN_S / _LOOK_EVERY_S)):
            if _UP in await self.log(name):
                return
            await asyncio.sleep(_LOOK_EVERY_S)
        raise TimedOut(f"Agent of nested host {name} is not up; its log:\n{await self.log(name)}")

    def _settings(self, name: str) -> dict[str, object]:
        qemu = self._qemus.get(name) or find_qemus()[0]
        return {
            "name": name,
            "listen": "0.0.0.0",
            "advertise": self.hosts[name].plan.ip,
            "state_dir": str(FOLDER / "state"),
            "run_dir": str(FOLDER / "run"),
            "image_dirs": [*map(str, self._image_dirs), str(FOLDER), str(cache_dir())],
            "memory_reserve": "64MiB",
            "physical_networks": {name: list(map(str, cards)) for name, cards in self._networks.items()},
            "qemu": {
                "argv": list(qemu.argv),
                "env": qemu.env,
                "uids": "700000-700499",
                "acceleration": str(self._acceleration),
            },
        }
