"""A lab that stays until it is told to go: nested hosts with agents, for who wants to try things by hand.

    vmferry lab up [--hosts N] [--sriov] | show | shell HOST [COMMAND ...] | down

A process of its own keeps it, and answers at a socket that only its user can reach; nothing of the lab outlives that
process. The agents are reached from this machine: VMFERRY_CONFIG names the operator that may ask them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vmferry.cli.console import LEAVE, raw_terminal
from vmferry.cli.output import INTERRUPTED
from vmferry.core.errors import BadInput, Broken, NotFound, TimedOut, VmferryError
from vmferry.core.guest import Acceleration
from vmferry.lab.nested import NestedFleet, NestedLab, nfs
from vmferry.lab.nested.lab import MOST_HOSTS
from vmferry.lab.nested.sriov import BRIDGE, SriovHost
from vmferry.lab.processes import Identity, identify, is_alive
from vmferry.lab.registry import base_directory, sweep
from vmferry.lab.toolchain import find_qemu

NETWORK = "fabric"
#: One folder of all hosts: the first one's, by NFS.
SHARED = Path("/srv/shared")
_QEMU = (10, 0)
_UP_WITHIN_S, _DOWN_WITHIN_S = 300.0, 30.0
_COMMAND_TIMEOUT_S = 600.0
_LOOK_EVERY_S = 0.2


def directory() -> Path:
    """Return where the kept lab has its socket, its log, and what it tells of itself."""
    return base_directory().parent / "vmferry-lab-kept"


# -- asked by people --------------------------------------------------------------------------------------------------


def up(*, count: int, sriov: bool) -> None:
    """Start the lab and wait until its agents serve.

    Raises:
        BadInput: there is one.
        Broken: it ended by itself; what it said last is told.
        TimedOut: it is not up in time.
    """
    here = directory()
    if _keeper() is not None:
        raise BadInput("There is a lab already", fix="`vmferry lab show`, or `vmferry lab down` first")
    sweep()
    here.mkdir(mode=0o700, exist_ok=True)
    for name in ("lab.json", "lab.sock"):
        (here / name).unlink(missing_ok=True)
    words = [sys.executable, "-m", "vmferry.lab.kept", "keep", "--hosts", str(count), *(["--sriov"] if sriov else [])]
    with (here / "lab.log").open("wb") as log:
        keeper = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    identity = identify(keeper.pid)
    if identity is not None:
        (here / "keeper.json").write_text(json.dumps(asdict(identity)), "utf-8")
    hosts = "A nested host is" if count == 1 else f"{count} nested hosts are"
    print(f"{hosts} started; that takes a minute or two without hardware virtualisation.", flush=True)
    try:
        _wait_up(here, keeper)
    except BaseException:  # Ctrl-C, too
        down()
        raise
    show()


def _wait_up(here: Path, keeper: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + _UP_WITHIN_S
    while not (here / "lab.json").exists():
        if keeper.poll() is not None:
            raise Broken(f"The lab ended by itself; its log ends with:\n{_tail(here / 'lab.log')}")
        if time.monotonic() > ends:
            told = _tail(here / "lab.log")
            raise TimedOut(f"The lab is not up within {_UP_WITHIN_S:.0f} s; its log ends with:\n{told}")
        time.sleep(_LOOK_EVERY_S)


def show() -> None:
    """Say what there is and how to use it; raises NotFound: there is no lab."""
    told = _told()
    print(f"Hosts: {', '.join(told['hosts'])}. Ask their agents from this machine:")
    print(f"    export VMFERRY_CONFIG={told['operator']}")
    for line in told["hints"]:
        print(f"    {line}")


def shell(host: str, command: list[str]) -> int:
    """Run a command in a host and return its exit code, or join a shell there when there is none.

    Raises:
        NotFound: there is no lab, or no such host.
        Broken: the host has ended.
    """
    told = _told()
    if host not in told["hosts"]:
        raise NotFound(f"The lab has no host {host}; it has {', '.join(told['hosts'])}")
    if not command:
        return _join(Path(told["hosts"][host]))
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(str(directory() / "lab.sock"))
        there.sendall(json.dumps({"host": host, "argv": command}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(there.makefile("rb").readline())
    if "error" in answer:
        raise Broken(str(answer["error"]))
    sys.stdout.write(answer["stdout"])
    sys.stderr.write(answer["stderr"])
    return int(answer["exit_code"])


def down() -> None:
    """End the lab, and wait until nothing of it is left. Idempotent."""
    keeper = _keeper()
    if keeper is not None:
        os.kill(keeper.pid, signal.SIGTERM)
        ends = time.monotonic() + _DOWN_WITHIN_S
        while is_alive(keeper):
            if time.monotonic() > ends:
                os.kill(keeper.pid, signal.SIGKILL)
            time.sleep(_LOOK_EVERY_S)
    sweep()
    for path in directory().glob("*"):
        path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        directory().rmdir()


def _keeper() -> Identity | None:
    """Return the process that keeps a lab, while it lives."""
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        keeper = Identity(**json.loads((directory() / "keeper.json").read_text("utf-8")))
        return keeper if is_alive(keeper) else None
    return None


def _told() -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError):
        if _keeper() is not None:
            told: dict[str, Any] = json.loads((directory() / "lab.json").read_text("utf-8"))
            return told
    raise NotFound("There is no lab", fix="`vmferry lab up`, with --sriov for cards that make virtual functions")


def _tail(path: Path) -> str:
    return "\n".join(path.read_text("utf-8", "replace").splitlines()[-8:])


def _join(console: Path) -> int:
    """Join this terminal and a host's shell until Ctrl-] is pressed or the host ends."""
    print(f"a shell on {console.parent.name}; Ctrl-] leaves it", flush=True)
    with socket.socket(socket.AF_UNIX) as there, raw_terminal():
        there.connect(str(console))
        there.sendall(b"\n")
        while True:
            readable, _, _ = select.select([there, sys.stdin], [], [])
            if there in readable:
                if not (data := there.recv(65536)):
                    return 1
                os.write(sys.stdout.fileno(), data)
            if sys.stdin in readable:
                keys = os.read(sys.stdin.fileno(), 4096)
                if not keys or LEAVE in keys:
                    return 0
                there.sendall(keys)


# -- the process that keeps it ----------------------------------------------------------------------------------------


async def keep(*, count: int, sriov: bool) -> None:
    """Have a lab, answer for it, and take it down on SIGTERM."""
    ended = asyncio.Event()
    for signalled in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signalled, ended.set)
    qemu = find_qemu(*_QEMU)
    cards = 1 if sriov else 0
    async with NestedLab(count=count, packages=nfs.PACKAGES, qemu=qemu, cards=cards, shells=True) as lab:
        await _share(lab)
        with_cards = [host for host in lab.hosts.values() if isinstance(host, SriovHost)]
        for number, host in enumerate(with_cards, 1):
            await host.make_bridge(f"10.78.0.{number}/24")
        networks = {NETWORK: with_cards[0].cards[:1]} if cards else {}
        acceleration = Acceleration.KVM if sriov else Acceleration.AUTO
        qemus = dict.fromkeys(lab.hosts, qemu)
        async with NestedFleet(lab.hosts, qemus, (SHARED,), acceleration, networks) as fleet:
            server = await asyncio.start_unix_server(_answers(lab), directory() / "lab.sock")
            _tell(lab, fleet, sriov=sriov)
            await ended.wait()
            server.close()


async def _share(lab: NestedLab) -> None:
    """Give all hosts one folder, which the first one serves."""
    server = next(iter(lab.hosts.values()))
    await asyncio.gather(*(nfs.prepare(host) for host in lab.hosts.values()))
    await nfs.serve(server)
    await asyncio.gather(*(nfs.mount(host, server, str(SHARED)) for host in lab.hosts.values()))


def _answers(lab: NestedLab) -> Any:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            asked = json.loads(await reader.readline())
            try:
                ran = await lab.hosts[asked["host"]].run(*asked["argv"], timeout_s=_COMMAND_TIMEOUT_S)
                did: dict[str, Any] = {"exit_code": ran.exit_code, "stdout": ran.stdout, "stderr": ran.stderr}
            except VmferryError as error:
                did = {"error": str(error)}
            writer.write(json.dumps(did).encode() + b"\n")
            await writer.drain()

    return answer


def _tell(lab: NestedLab, fleet: NestedFleet, *, sriov: bool) -> None:
    shared = f"vmferry lab shell host-a ls {SHARED}        # disks of guests: one folder of all hosts (NFS)"
    hints = ["vmferry host list", "vmferry lab shell host-a", shared, "vmferry lab down"]
    if sriov:
        card = next(host.cards[0] for host in lab.hosts.values() if isinstance(host, SriovHost))
        hints[1:1] = [f"vmferry vf create host-a {card} 2        # and host-b; guests: physical_network = {NETWORK!r},"]
        hints[2:2] = [f"                                                # bridge = {BRIDGE!r} (docs/devices.md)"]
    hosts = {name: str(host.shell_socket) for name, host in lab.hosts.items()}
    told = {"hosts": hosts, "operator": str(fleet.operator), "hints": hints}
    draft = directory() / "lab.json.new"
    draft.write_text(json.dumps(told), "utf-8")
    draft.rename(directory() / "lab.json")


def main(arguments: list[str] | None = None) -> int:
    """Do what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="vmferry lab")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("up", "keep"):
        begun = commands.add_parser(name)
        begun.add_argument("--sriov", action="store_true")
        begun.add_argument("--hosts", type=int, default=2, choices=range(1, MOST_HOSTS + 1))
    for name in ("show", "down"):
        commands.add_parser(name)
    joined = commands.add_parser("shell")
    joined.add_argument("host")
    joined.add_argument("argv", nargs=argparse.REMAINDER)
    asked = parser.parse_args(arguments)
    try:
        if asked.command == "keep":
            asyncio.run(keep(count=asked.hosts, sriov=asked.sriov))
        elif asked.command == "shell":
            return shell(asked.host, asked.argv)
        elif asked.command == "up":
            up(count=asked.hosts, sriov=asked.sriov)
        else:
            {"show": show, "down": down}[asked.command]()
    except VmferryError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
