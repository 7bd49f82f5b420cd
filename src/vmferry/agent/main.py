"""`vmferry agent`: from a configuration to an agent that answers, and its end. Guests outlive it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from vmferry.agent.config import AgentConfig, load_config
from vmferry.agent.connection import make_protocol
from vmferry.agent.enrol_http import EnrolServer
from vmferry.agent.fleet import Fleet
from vmferry.agent.gate import Gate
from vmferry.agent.http import HttpServer
from vmferry.agent.listener import Listener
from vmferry.agent.logs import set_up_logs
from vmferry.agent.peer_pool import PeerPool
from vmferry.agent.readiness import tell_ready
from vmferry.agent.service_port import AgentService
from vmferry.agent.state_lock import hold_state
from vmferry.agent.supervisor import Supervisor
from vmferry.agent.upkeep import Upkeep
from vmferry.core.errors import BadInput, Denied, VmferryError
from vmferry.core.ids import HostName
from vmferry.pki.authority import utc_now
from vmferry.pki.enrol import Enrolment
from vmferry.pki.identity import IdentityDirectory

#: Makes the agent's inside: configuration, this host's name, clients to other agents.
Build = Callable[[AgentConfig, HostName, PeerPool], Awaitable[AgentService]]


def main(config_path: Path | None, *, supervised: bool = True, debug: bool = False) -> int:
    """Run `vmferry agent` and return its exit code.

    Args:
        config_path: agent.toml; None: the default one, if it is there.
        supervised: start a worker and keep it running, instead of being the worker.
        debug: log more.

    Raises:
        BadInput: the configuration is wrong; nothing was started.
    """
    config = load_config(config_path)
    if not supervised:
        return run_agent(config, debug=debug)
    argv = [sys.executable, "-m", "vmferry", "agent", "--no-supervisor"]
    if config_path is not None:
        argv += ["--config", str(config_path)]
    if debug:
        argv.append("--debug")
    return Supervisor(argv, os.environ).run()


def run_agent(config: AgentConfig, *, debug: bool = False, build: Build | None = None) -> int:
    """Run the agent until SIGTERM or SIGINT and return its exit code.

    Raises:
        VmferryError: it cannot start: the state directory is in use, the port is taken, the disk is full ...
    """
    os.umask(0o077)  # also for QEMU's sockets and logs: everything of ours is for one user
    set_up_logs(debug=debug)
    with hold_state(config.state_dir):
        asyncio.run(_run(config, build or _wire))
    return 0


async def _wire(config: AgentConfig, name: HostName, peers: PeerPool) -> AgentService:
    """Make the real inside; imported late, since enrolment does not need it."""
    from vmferry.agent.wiring import Membership, build

    address = config.advertise or peers.address_of(name)
    return await build(config, Membership(name, address, peers.client, peers.address_of, peers.hosts))


def _settle_memory() -> None:
    """Keep the garbage collector off what lives as long as the agent.

    A full collection looks at every module and model: tens of milliseconds, now and then in the middle of a commit.
    """
    gc.collect()
    gc.freeze()


async def _run(config: AgentConfig, build: Build) -> None:
    """Work until a signal tells to end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve_until(config, build, stop, lambda _port: tell_ready())


async def serve_until(config: AgentConfig, build: Build, stop: asyncio.Event, ready: Callable[[int], None]) -> None:
    """Enrol if need be, then work, until told to end.

    Args:
        config: the configuration.
        build: makes the agent's inside.
        stop: set to end.
        ready: called with the port whenever the agent listens: for its enrolment, and for work.
    """
    listener = Listener(config.listen, config.port)
    try:
        if not IdentityDirectory(config.identity_dir).exists():
            await _enrol(config, listener, stop, ready)
        if not stop.is_set():
            await _work(config, listener, stop, build, ready)
    finally:
        await listener.close()


async def _enrol(config: AgentConfig, listener: Listener, stop: asyncio.Event, ready: Callable[[int], None]) -> None:
    """Show the code and wait until this host is enrolled, or the agent is told to end."""
    enrolment = Enrolment(config.state_dir / "enrolment")
    server = EnrolServer(enrolment, config, listener.port)
    await listener.serve(make_protocol(server.handle), enrolment.server_context())
    name, address = config.name or "NAME", config.advertise or _shown_address(config.listen)
    port = "" if listener.port == 7716 else f" --port {listener.port}"
    command = f"vmferry host add {name} {address}{port} --code {enrolment.code}"
    structlog.get_logger("vmferry.enrol").info("not enrolled", code_file=str(enrolment.code_file))
    sys.stderr.write(f"This host is not enrolled. Where the CA directory is, run:\n\n    {command}\n\n")
    sys.stderr.flush()
    ready(listener.port)
    await _first(server.finished.wait(), stop.wait())


async def _work(
    config: AgentConfig, listener: Listener, stop: asyncio.Event, build: Build, ready: Callable[[int], None]
) -> None:
    """Answer until told to end."""
    log = structlog.get_logger("vmferry.agent")
    directory = IdentityDirectory(config.identity_dir)
    name = HostName(directory.identity().name)
    if config.name not in {None, name}:
        raise BadInput(
            f"The configuration names this host {config.name}, it is enrolled as {name}",
            fix="correct `name` in agent.toml, or delete the identity directory and enrol again",
        )
    try:
        directory.check_valid(utc_now())
    except Denied as error:
        log.error(  # noqa: TRY400 - the traceback says nothing
            "certificate not valid; guests run on, but nobody can ask this agent", what=error.what, fix=error.fix
        )
    gate = Gate(directory)
    fleet, peers = Fleet(gate, config.authority_dir), PeerPool(gate)
    context = directory.server_context()
    service = await build(config, name, peers)
    server = HttpServer(service, fleet, gate)
    upkeep: asyncio.Task[None] | None = None
    try:
        await service.start()
        await listener.serve(make_protocol(server.handle), context)
        upkeep = asyncio.create_task(Upkeep(gate, fleet, peers, context).run())
        _settle_memory()
        log.info("agent is up", host=name, address=config.listen, port=listener.port)
        ready(listener.port)
        await _first(stop.wait(), _watch(upkeep))
        await service.settle()  # while peers can still ask: a commit has two sides
        log.info("agent ends; guests live on", host=name)
    finally:
        if upkeep is not None:
            upkeep.cancel()
            await asyncio.gather(upkeep, return_exceptions=True)
        server.end_streams()
        await listener.pause(grace_s=1.0)
        await server.close()
        await service.close()
        await peers.close()


async def _watch(task: asyncio.Task[None]) -> None:
    """Wait for a task that never ends by itself; what it died of is raised."""
    await asyncio.shield(task)


async def _first(*waits: object) -> None:
    """Wait for the first of several; the others are given up, what it raised is raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]  # type: ignore[call-overload]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(VmferryError):
            await asyncio.gather(*tasks, return_exceptions=True)


def _shown_address(listen: str) -> str:
    """Return the address for the printed command."""
    return "ADDRESS" if listen in {"0.0.0.0", "::"} else listen
