"""Moves of a lab's libvirt domains under our policies: what tests, benches and the recorder of transcripts share."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vmferry.conductor.domain_move import DomainMove, Ended, Event
from vmferry.conductor.plan import Asked, Choice
from vmferry.core.capabilities import StreamWish
from vmferry.core.errors import Broken, TimedOut, VmferryError
from vmferry.core.units import MIB, Bytes
from vmferry.lab.channel import ask
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.guest_runs import READY_TIMEOUT_S
from vmferry.lab.guests import build
from vmferry.lab.hosts import Lab
from vmferry.lab.libvirt.daemon import LibvirtDaemon
from vmferry.lab.libvirt.domain import domain_xml
from vmferry.lab.toolchain import LibvirtBuild, cache_dir
from vmferry.lab.toolchain.qemu import INSTALLED
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.moves.moving import LibvirtMove
from vmferry.libvirt.moves.request import Wish, make_request
from vmferry.ports.domains import MovingDomain

CPU = "qemu64"
BEAT_PORT = 5507
#: In the clear: the namespaces are the fence.
PLAIN = StreamWish(encrypted=False)


@dataclass(frozen=True, slots=True)
class Moved:
    """How a move ended, and what watchers were told."""

    ended: Ended
    told: tuple[Event, ...]


@contextlib.asynccontextmanager
async def daemons_of(
    lab: Lab, build: LibvirtBuild | None, settings: str = ""
) -> AsyncIterator[dict[str, LibvirtDaemon]]:
    """Run a daemon on each host of a lab, with lines of libvirtd.conf; afterwards they and their guests are gone."""
    made = {name: LibvirtDaemon(lab, name, build, settings) for name in lab.hosts}
    try:
        await asyncio.gather(*(daemon.start() for daemon in made.values()))
        yield made
    finally:
        for daemon in made.values():
            daemon.stop()


@contextlib.asynccontextmanager
async def connected(daemons: Mapping[str, LibvirtDaemon]) -> AsyncIterator[dict[str, LibvirtConnection]]:
    """Connect to each daemon; afterwards no domain runs or is defined there."""
    made = {name: await LibvirtConnection.connect(daemon.socket_uri()) for name, daemon in daemons.items()}
    try:
        yield made
    finally:
        for name, connection in made.items():
            with contextlib.suppress(VmferryError):  # a daemon that a test has ended
                for domain in await connection.domains():
                    for order in ("destroy",) * domain.is_active + ("undefine",) * domain.is_persistent:
                        await daemons[name].must(order, domain.name)
            await connection.close()


async def write_domain(daemon: LibvirtDaemon, plan: GuestPlan) -> Path:
    """Write a guest's domain into a file for one host's daemon, and return the file."""
    image = await asyncio.to_thread(build, plan.kind, cache_dir())
    file = daemon.directory / f"{plan.name}.xml"
    file.write_text(domain_xml(plan, image, emulator=str(INSTALLED), cpu=CPU, beat_port=BEAT_PORT), "utf-8")
    return file


async def start_domain(daemon: LibvirtDaemon, plan: GuestPlan, *, is_persistent: bool = False) -> None:
    """Run a domain whose workload works.

    Raises:
        Broken: libvirt does not start it.
        TimedOut: its workload does not answer.
    """
    file = await write_domain(daemon, plan)
    await daemon.must("define" if is_persistent else "create", str(file))
    if is_persistent:
        await daemon.must("start", plan.name)
    await wait_ready(daemon.control)


async def wait_ready(socket: Path) -> None:
    """Wait until the guest's workload answers on its control channel.

    Raises:
        TimedOut: it does not.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            await ask(socket, "status\n", "ready", 10.0)
        except (TimedOut, Broken):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return


async def oracle_of(daemon: LibvirtDaemon) -> str:
    """Return what the guest says of its memory: `oracle clean ...` when every page is as it was written."""
    return await ask(daemon.control, "oracle\n", "oracle", 60.0)


@contextlib.asynccontextmanager
async def planned(
    daemons: Mapping[str, LibvirtDaemon],
    connections: Mapping[str, LibvirtConnection],
    pair: tuple[str, str],
    name: str,
    wish: Wish,
) -> AsyncIterator[LibvirtMove]:
    """Have a domain's move ready: a connection of its own, and what libvirt is told; one that is held is let run there.

    Raises:
        Broken: libvirt cannot be told that.
    """
    there = daemons[pair[1]]
    stream = there.uri.replace("qemu+tcp", "tcp").removesuffix("/system")
    versions = [await connection.version() for connection in connections.values()]
    request = make_request(replace(wish, stream_uri=stream), min(versions))
    if request.blockers:
        raise Broken("; ".join(blocker.what for blocker in request.blockers))
    carrier = await LibvirtConnection.connect(daemons[pair[0]].socket_uri())
    source = connections[pair[0]]
    try:
        async with source.listening(name) as heard:
            held_at = connections[pair[1]] if wish.held else None
            yield LibvirtMove(source, carrier, name, there.uri, request, heard, held_at)
    finally:
        await carrier.close()


async def steered(
    domain: MovingDomain, plan: GuestPlan, wish: Wish, policy: str, tell: Callable[[Event], object] | None = None
) -> Moved:
    """Move a domain under a policy."""
    told: list[Event] = []

    async def keep(event: Event) -> None:
        told.append(event)
        if tell is not None:
            tell(event)

    asked = Asked(Choice(policy), Bytes(plan.memory_mib * MIB), wish.bandwidth, None, postcopy=wish.postcopy)
    return Moved(await DomainMove(domain, asked, keep).run(), tuple(told))
