"""`vmferry check` and `migrate` of a libvirt domain: steered from this process, since its host has no agent."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmferry.cli.domain_source import Seen, find_doubts, open_moves, reaching
from vmferry.cli.following import EXIT_CODES, output_of
from vmferry.cli.libvirt_hosts import LibvirtHost
from vmferry.cli.libvirt_records import MoveRecord, forget, steering
from vmferry.cli.output import INTERRUPTED, say, waiting_for
from vmferry.core.errors import BadInput, Blocker, Denied, NotFound, Refused, VmferryError
from vmferry.core.migration import MigrationStatus
from vmferry.core.progress import Finished, Guarantee, Outcome, Report
from vmferry.core.units import Bytes, Milliseconds

if TYPE_CHECKING:
    from vmferry.conductor.domain_move import Ended
    from vmferry.conductor.plan import Asked
    from vmferry.core.capabilities import StreamWish
    from vmferry.libvirt.adapter import LibvirtConnection
    from vmferry.libvirt.copies import Copies
    from vmferry.libvirt.locks import Fence
    from vmferry.libvirt.moves.diagnosis import Diagnosis
    from vmferry.libvirt.moves.request import Request

#: Options that a move by libvirt cannot heed, as the API has them.
_NOT_LIBVIRTS = {
    "postcopy_after": "--postcopy-after",
    "time_limit_s": "--time-limit",
}
_SENTENCE = "libvirt commits the move: vmferry steers it, and cannot take it back once libvirt has finished"
#: What it costs that this process is between the daemons (docs/libvirt.md).
_DIRECT = (
    "; this process stands between the two daemons: if it dies before the stop, the domain runs on at the source, and"
    " during the stop it may stay paused there"
)
#: What keeps a domain from running on both hosts that no lock keeps from it, and what if nothing does.
_HELD = (
    "; no lock keeps it from running on both hosts, so it is held at its arrival until libvirt has ended the source's"
    " process, for 0.2 s more of pause, and longer with much memory (--libvirt held=no: without)"
)
_TWICE = (
    "; no lock keeps it from running on both hosts: if the destination's libvirtd or the link dies as the move"
    " finishes, libvirt may run both (docs/libvirt-faults.md)"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A domain, where it goes, and what was found of that."""

    source: LibvirtHost
    destination: LibvirtHost
    asked: Asked
    request: Request
    direct: Request  #: of the flow through this process
    flow: str | None  #: the one that was asked for; None: whichever works
    copies: Copies
    fence: Fence
    held: bool
    is_bounded: bool  #: QEMU brakes by itself, within the goal
    blockers: tuple[Blocker, ...]
    unseen: tuple[str, ...]
    acceleration: str

    @property
    def guarantee(self) -> Guarantee:
        """What is promised."""
        from vmferry.libvirt.moves.tuning import DIRECT

        sentence = _SENTENCE + _DIRECT * (self.flow == DIRECT)
        if self.held:
            sentence += _HELD
        elif not self.fence.keeps_one:
            sentence += _TWICE
        return Guarantee("libvirt", "libvirt's Finish", self.fence.text, sentence)


def check(hosts: Mapping[str, LibvirtHost], guest: str, destination: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return what an agent's check would say, and what could not be seen; touches nothing.

    Raises:
        BadInput: an option is none for libvirt's guests.
        NotFound: no libvirt host of the list runs it.
        VmferryError: a daemon does not answer.
    """

    async def ask() -> dict[str, Any]:
        async with reaching(hosts, guest, destination) as (seen, connections):
            plan = await _plan(hosts, seen, destination, connections, guest, options)
        promised = None if plan.blockers else dataclasses.asdict(plan.guarantee)
        told = (*plan.request.left_out, *(f"not seen: {sentence}" for sentence in plan.unseen))
        blockers = [_row(blocker) for blocker in plan.blockers]
        return {"source": seen.source, "blockers": blockers, "guarantee": promised, "left_out": told}

    with waiting_for("libvirt"):
        return asyncio.run(ask())


def migrate(
    hosts: Mapping[str, LibvirtHost], guest: str, destination: str, options: dict[str, Any], *, as_json: bool
) -> int:
    """Move a domain and show it; return the exit code of its outcome. Ctrl-C gives the move up; raises as `check`."""
    try:
        return asyncio.run(_migrate(hosts, guest, destination, options, as_json=as_json))
    except KeyboardInterrupt:
        say(
            f"\ninterrupted: if libvirt had begun to move {guest}, it was to give that up, which it cannot in"
            f" post-copy or at the very end; {guest} may run on {destination}: `vmferry recover {guest}` tells where it"
            " runs"
        )
        return INTERRUPTED


async def _migrate(
    hosts: Mapping[str, LibvirtHost], guest: str, destination: str, options: dict[str, Any], *, as_json: bool
) -> int:
    began = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        seen, connections = await stack.enter_async_context(reaching(hosts, guest, destination))
        plan = await _plan(hosts, seen, destination, connections, guest, options)
        view = {"guest": guest, "source": seen.source, "destination": destination}
        show, screen = output_of(view, as_json=as_json)
        with screen:
            if plan.blockers:
                finished = Finished(_since(began), Outcome.BLOCKED, seen.source, None, None, plan.blockers, None)
            else:
                finished = await _carry_out(stack, plan, guest, options, connections, began, show)
            show(_line(finished))
    return EXIT_CODES[finished.outcome]


async def _carry_out(
    stack: contextlib.AsyncExitStack,
    plan: Plan,
    guest: str,
    options: dict[str, Any],
    connections: tuple[LibvirtConnection, LibvirtConnection],
    began: float,
    show: Callable[[dict[str, Any]], object],
) -> Finished:
    """Have a domain moved and return how that ended; what is half done then is ended, or told."""
    from vmferry.cli.domain_terms import images_for, say_left
    from vmferry.conductor.domain_move import DomainMove
    from vmferry.libvirt.moves.flows import EitherFlow
    from vmferry.libvirt.moves.moving import LibvirtMove

    source, there = connections
    say(f"libvirt moves {guest}; Ctrl-C has the move given up, if that is possible still")
    was_defined = (await there.standing(guest)).is_defined
    record = MoveRecord(
        guest,
        plan.source.name,
        plan.destination.name,
        options,
        plan.request.flags,
        plan.request.parameters,
        was_defined,
        time.time(),
        plan.flow,
        plan.held,
        tuple(image.where for image in plan.copies.images),
    )
    for left in open_moves(guest):  # by somebody who steered one while this one was being planned
        raise Refused(left.what, fix=left.fix)
    stack.enter_context(steering(record))
    making = images_for(connections, plan.copies.images, guest, say, was_defined_there=was_defined)
    try:
        images = await stack.enter_async_context(making)
        carriers = [await _opened(stack, uri) for uri in (plan.source.uri, plan.destination.uri)]
        carrier = EitherFlow(carriers[0], carriers[1], plan.direct, plan.flow, say)
        heard = await stack.enter_async_context(source.listening(guest))
    except BaseException:
        forget(guest)  # nothing was asked: a record without a move would stand in the way of the next one
        raise
    held_at = there if plan.held else None
    domain = LibvirtMove(source, carrier, guest, plan.destination.peer_uri, plan.request, heard, held_at)

    async def tell(event: Any) -> None:
        show(_line(event))

    try:
        ended = await DomainMove(domain, plan.asked, tell, bounded=plan.is_bounded).run()
    except asyncio.CancelledError:
        await _tidy_interrupted(record, plan, connections)
        raise
    finished = await _finished(plan, record, ended, connections, _since(began))
    if finished.outcome is Outcome.MOVED:
        forget(guest)
        images.keep()
        say_left(plan.copies, plan.source.name)
    return finished


async def _tidy_interrupted(
    record: MoveRecord, plan: Plan, connections: tuple[LibvirtConnection, LibvirtConnection]
) -> None:
    """End what an interrupted move has left half done, and tell where the domain is; another Ctrl-C ends the waiting.

    What is left without it at the destination is found by `recover`: the record stays.
    """
    from vmferry.cli.domain_recovery import tidy

    tidying = asyncio.create_task(tidy(record, (plan.source, plan.destination), connections))
    found = (await asyncio.shield(tidying)).diagnosis
    say(f"\n{record.guest}: {found.found}" + (f"; {found.fix}" if found.fix else ""))


async def _opened(stack: contextlib.AsyncExitStack, uri: str) -> LibvirtConnection:
    """Return a connection on which nothing else is asked while a move lasts."""
    from vmferry.libvirt.adapter import LibvirtConnection

    connection = await LibvirtConnection.connect(uri)
    stack.push_async_callback(connection.close)
    return connection


async def _plan(
    hosts: Mapping[str, LibvirtHost],
    seen: Seen,
    destination: str,
    connections: tuple[LibvirtConnection, LibvirtConnection],
    guest: str,
    options: dict[str, Any],
) -> Plan:
    """Return what the move would be."""
    from vmferry.cli.domain_terms import brake_of, find_copies, is_held, parse_terms, put_there
    from vmferry.libvirt.asking import ask_case
    from vmferry.libvirt.checks import find_blockers
    from vmferry.libvirt.locks import fence_of
    from vmferry.libvirt.moves.request import Wish, make_request
    from vmferry.libvirt.moves.tuning import DIRECT
    from vmferry.libvirt.tree import parse
    from vmferry.libvirt.uri import stream_uri

    if wrong := [word for key, word in _NOT_LIBVIRTS.items() if options.get(key)]:
        raise BadInput(f"{', '.join(wrong)} cannot be had of libvirt's guests yet", fix="leave it out")
    terms = parse_terms(options)
    names = seen.source, destination
    source, there = connections
    domain = await source.domain(guest)
    is_there = names[0] == names[1] and domain.is_active
    same = (Blocker("host.same", f"{guest} runs there already", "name another host"),) if is_there else ()
    case = await ask_case(guest, source, there, names[1], terms.renaming.apply)
    verdict = find_blockers(case)
    live = await source.domain_xml(guest)
    copies = await find_copies(terms, guest, parse(live), case.domain, connections, names[1])
    versions = [await connection.version() for connection in connections]
    postcopy = bool(options.get("postcopy"))
    stream, bandwidth = _stream(options), options.get("max_bandwidth")
    here_and_there = hosts[names[0]], hosts[names[1]]
    declared = here_and_there[0].lock_manager, here_and_there[1].lock_manager
    fence = fence_of(names, declared, case.domain, copied=bool(copies.images))
    held = is_held(terms, fence, seen.standings[names[0]], postcopy=postcopy)
    asked = asked_of(options, Bytes(int(case.text("memory") or 0) * 1024))  # of a live domain always in KiB
    brake = brake_of(terms, asked)
    wish = Wish(
        stream,
        bandwidth,
        postcopy=postcopy,
        auto_converge=brake.is_on,
        brake=brake.begins_with,
        disks=copies.targets,
        held=held,
        is_persistent=domain.is_persistent,
        stream_uri=stream_uri(hosts[names[1]].peer_uri),
        tuning=terms.tuning,
    )
    wish = await put_there(wish, terms, guest, source)
    request, direct = (
        make_request(replace(wish, tuning=replace(wish.tuning, flow=flow)), min(versions))
        for flow in (wish.tuning.flow, DIRECT)
    )
    idle = terms.renaming.idle(guest, live)
    found = (
        *await _only_reads(source, guest),
        *verdict.blockers,
        *idle,
        *copies.blockers,
        *fence.blockers,
        *request.blockers,
    )
    peer = here_and_there[1].peer_uri
    reached = f"whether libvirt on {names[0]} reaches {peer}; if not, this process stands between the two daemons"
    return Plan(
        *here_and_there,
        asked,
        request,
        direct,
        wish.tuning.flow,
        copies,
        fence,
        held,
        brake.begins_with > 0,
        (*find_doubts(guest, seen), *(same or found)),
        (*verdict.unseen, *copies.unseen, *(() if wish.tuning.flow else (reached,))),
        "TCG" if case.domain.attributes.get("type") == "qemu" else "KVM",
    )


def asked_of(options: Mapping[str, Any], ram: Bytes) -> Asked:
    """Return what was asked for, as a policy takes it.

    Raises:
        BadInput: it makes no sense.
    """
    from vmferry.conductor.plan import Asked, Choice, check_asked

    choice = Choice(
        **({"policy": options["policy"]} if options.get("policy") else {}),
        max_gap_ms=options.get("max_gap_ms"),
        deadline_ms=options.get("deadline_ms"),
        at_deadline=options.get("at_deadline"),
    )
    asked = Asked(
        choice,
        ram,
        options.get("max_bandwidth"),
        options.get("downtime_limit_ms"),
        postcopy=bool(options.get("postcopy")),
        stream=_stream(options),
    )
    check_asked(asked)
    return asked


async def _only_reads(source: LibvirtConnection, guest: str) -> tuple[Blocker, ...]:
    """Return a blocker where the source's daemon lets this user only read: it answers all other questions."""
    from vmferry.libvirt.facts import XmlKind

    try:
        await source.domain_xml(guest, XmlKind.MIGRATABLE)
    except Denied as error:
        fix = f"{error.fix}: `vmferry host add` with an address that may do more"
        return (Blocker("libvirt.read-only", error.what, fix),)
    return ()


def _stream(options: Mapping[str, Any]) -> StreamWish:
    from vmferry.core.capabilities import Compression, Encryption, StreamWish, Transport

    return StreamWish(
        Transport(options.get("link") or Transport.TCP),
        options.get("channels"),
        Compression(options.get("compression") or Compression.NONE),
        not options.get("plain"),
        options.get("pipeline"),
        Encryption(options.get("encryption") or Encryption.PSK),
    )


async def _finished(
    plan: Plan,
    record: MoveRecord,
    ended: Ended,
    connections: tuple[LibvirtConnection, LibvirtConnection],
    at_ms: Milliseconds,
) -> Finished:
    """Return how it ended, by what both daemons say, not by who was asked to do what; half done things are ended."""
    from vmferry.cli.domain_recovery import tidy
    from vmferry.libvirt.moves.diagnosis import Verdict

    guest = record.guest
    has = [await _has_process(connection, guest) for connection in connections]
    found = None
    if ended.failure is not None or has != [False, True]:
        found = (await tidy(record, (plan.source, plan.destination), connections)).diagnosis
    if found is None or (found.verdict is Verdict.MOVED and ended.failure is None):
        report = await _report(plan, guest, ended, connections[1], at_ms)
        return Finished(at_ms, Outcome.MOVED, plan.destination.name, None, None, (), report)
    return _not_moved(plan, guest, ended, found, at_ms)


def _not_moved(plan: Plan, guest: str, ended: Ended, found: Diagnosis, at_ms: Milliseconds) -> Finished:
    """Return the end of a move that failed: the source's only where what both daemons say proves it."""
    from vmferry.libvirt.moves.diagnosis import Side, Verdict

    why = ended.reason or "libvirt has finished"
    if found.verdict is Verdict.STAYED:
        outcome = Outcome.CANCELLED if ended.gave_up else Outcome.ABORTED
        fix = None if ended.failure is None or ended.gave_up else ended.failure.fix
        return Finished(at_ms, outcome, plan.source.name, why, fix, (), None)
    outcome = Outcome.LOST if found.verdict is Verdict.LOST else Outcome.HELD
    off = "; it may have arrived and shut itself down" if found.verdict is Verdict.OFF else ""
    names = {Side.SOURCE: plan.source.name, Side.DESTINATION: plan.destination.name}
    owner = None if found.owner is None else names[found.owner]
    where = f"{plan.source.name} is the source, {plan.destination.name} the destination"
    fix = (
        found.fix
        or f"`vmferry recover {guest}` tells what runs where, and ends what is half done; start nothing before"
    )
    return Finished(at_ms, outcome, owner, f"{why}; {found.found} ({where}){off}", fix, (), None)


async def _has_process(connection: LibvirtConnection, guest: str) -> bool | None:
    """Tell whether a domain has a process there; one that was paused moves paused. None: the daemon does not say."""
    try:
        return (await connection.domain(guest)).is_active
    except NotFound:
        return False
    except VmferryError:
        return None


async def _report(plan: Plan, guest: str, ended: Ended, there: LibvirtConnection, total_ms: Milliseconds) -> Report:
    """Return what is known of a move that arrived: libvirt's figures; nothing was measured from outside."""
    last = ended.last
    with contextlib.suppress(VmferryError):
        told = await there.last_job(guest)
        if told.status is MigrationStatus.COMPLETED:  # after post-copy the destination knows none
            last = told
    rate = None if last is None or not last.total_ms else round(last.transferred_bytes * 1000 / last.total_ms)
    return Report(
        handover="",
        guest=guest,
        source=plan.source.name,
        destination=plan.destination.name,
        outcome=Outcome.MOVED,
        reason=None,
        guarantee=plan.guarantee.sentence,
        acceleration=plan.acceleration,
        encrypted=plan.asked.stream.encrypted,
        total_ms=total_ms,
        rounds=None if last is None else last.rounds,
        transferred_bytes=None if last is None else last.transferred_bytes,
        ram_bytes=None if last is None else last.total_bytes,
        bandwidth=rate,  # type: ignore[arg-type]  # bytes/s
        downtime_limit_ms=ended.limit_ms,
        downtime_ms=None if last is None else last.downtime_ms,
        guest_gap=None,
        in_guest_stall_ms=None,
        network_outage=None,
        commit_ms=None,
        policy=plan.asked.choice.policy,
        channels=plan.asked.stream.channels,
        compression=str(plan.asked.stream.compression),
        encryption="x509" if plan.asked.stream.encrypted else None,
    )


def _row(blocker: Blocker) -> dict[str, str]:
    diff = getattr(blocker, "diff", "")
    return {"code": blocker.code, "what": blocker.what, "fix": f"{blocker.fix}\n{diff}".rstrip()}


def _line(event: Any) -> dict[str, Any]:
    row: dict[str, Any] = dataclasses.asdict(event)
    return row


def _since(began: float) -> Milliseconds:
    return Milliseconds((time.monotonic() - began) * 1000)
