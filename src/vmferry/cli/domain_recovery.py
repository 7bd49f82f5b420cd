"""`vmferry recover`, `cancel` and `watch` of a libvirt domain's move, from any process, whoever began it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmferry.cli.following import EXIT_CODES, output_of
from vmferry.cli.libvirt_hosts import LibvirtHost
from vmferry.cli.libvirt_records import MoveRecord, find_record, forget, is_steered, steering
from vmferry.cli.output import INTERRUPTED, say
from vmferry.core.errors import BadInput, NotFound, VmferryError
from vmferry.core.progress import Finished, Outcome
from vmferry.core.units import Bytes, Milliseconds

if TYPE_CHECKING:
    from vmferry.libvirt.adapter import LibvirtConnection
    from vmferry.libvirt.moves.diagnosis import Diagnosis
    from vmferry.libvirt.moves.recovery import Case, Recovered
    from vmferry.libvirt.moves.standing import Standing

_READ_EVERY_S = 0.2
#: libvirt has answered that a move failed: what it still does then is done in a moment.
_TIDY_WITHIN_S = 5.0
#: After an order to give a move up: libvirt cancels QEMU's migration and tidies up.
_GIVEN_UP_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A domain, the two hosts of its move and what is known of it."""

    case: Case
    record: MoveRecord | None
    hosts: tuple[LibvirtHost, LibvirtHost]
    source: LibvirtConnection | None

    @property
    def view(self) -> dict[str, str]:
        """What a watch shows at the top."""
        return {"guest": self.case.domain, "source": self.hosts[0].name, "destination": self.hosts[1].name}


def recover(hosts: Mapping[str, LibvirtHost], guest: str) -> dict[str, Any] | None:
    """Find out what became of a domain's move and end what is half done; return a finding as an agent's is.

    A job that runs and that nobody steers gets its policy again, until its end. None: no host of libvirt's has it.
    """

    async def work() -> dict[str, Any] | None:
        async with _scene(hosts, guest) as scene:
            return None if scene is None else await _recover(scene)

    return asyncio.run(work())


def cancel(hosts: Mapping[str, LibvirtHost], guest: str) -> dict[str, Any] | None:
    """Give a domain's move up and return what both daemons say afterwards; None: no host of libvirt's moves it.

    Raises:
        Refused: it cannot be given up any more (post-copy), or libvirt is past that.
    """

    async def work() -> dict[str, Any] | None:
        from vmferry.libvirt.moves.diagnosis import Verdict
        from vmferry.libvirt.moves.recovery import look

        async with _scene(hosts, guest) as scene:
            if scene is None or scene.source is None:
                return None
            found, standings = await look(scene.case)
            if found.verdict is not Verdict.MOVING:
                return None
            await scene.source.abort(guest)
            deadline = time.monotonic() + _GIVEN_UP_WITHIN_S
            while True:
                await asyncio.sleep(_READ_EVERY_S)
                found, standings = await look(scene.case)
                if found.verdict is not Verdict.MOVING or time.monotonic() > deadline:
                    return _finding(scene, found, standings, ("given up",))

    return asyncio.run(work())


def watch(hosts: Mapping[str, LibvirtHost], guest: str, *, as_json: bool) -> int | None:
    """Show a domain's move until its end; return the exit code of its outcome. None: no host of libvirt's moves it.

    Ctrl-C only stops showing it.
    """

    async def work() -> int | None:
        async with _scene(hosts, guest) as scene:
            return None if scene is None else await _watch(scene, as_json=as_json)

    try:
        return asyncio.run(work())
    except KeyboardInterrupt:
        say(f"\ndetached: libvirt goes on; `vmferry watch {guest}` shows it again, `vmferry cancel {guest}` ends it")
        return INTERRUPTED


async def tidy(
    record: MoveRecord,
    hosts: tuple[LibvirtHost, LibvirtHost],
    connections: tuple[LibvirtConnection, LibvirtConnection],
) -> Recovered:
    """Remove what a move that failed has left at the destination; its record goes when nothing is left to do.

    libvirt defines the domain there before it lets it run, and forgets that definition when it fails after that.
    Returns what became of the domain.
    """
    from vmferry.libvirt.moves.recovery import recover

    made = {host.name: connection for host, connection in zip(hosts, connections, strict=True)}
    case = _made(record.guest, record, hosts, made, {}).case
    ended = await recover(case, patience_s=_TIDY_WITHIN_S)
    _forget_if_certain(case, ended)
    return ended


# -- inside -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _scene(hosts: Mapping[str, LibvirtHost], guest: str) -> AsyncIterator[Scene | None]:
    """Yield what is known of a domain's move; None when neither a record nor a host knows the domain."""
    from vmferry.libvirt.adapter import LibvirtConnection

    record = find_record(guest)
    if record is not None and (gone := [name for name in (record.source, record.destination) if name not in hosts]):
        raise BadInput(
            f"{guest} was to move from {record.source} to {record.destination}; {', '.join(gone)} is not known here",
            fix="add it again: vmferry host add NAME --libvirt URI",
        )
    names = list(hosts) if record is None else [record.source, record.destination]
    made: dict[str, LibvirtConnection] = {}
    silences: dict[str, str] = {}
    async with contextlib.AsyncExitStack() as stack:
        for name in names:
            try:
                made[name] = await LibvirtConnection.connect(hosts[name].uri)
            except VmferryError as error:
                silences[name] = str(error)
                continue
            stack.push_async_callback(made[name].close)
        sides = (record.source, record.destination) if record is not None else await _sides(made, silences, guest)
        yield None if sides is None else _made(guest, record, (hosts[sides[0]], hosts[sides[1]]), made, silences)


async def _sides(
    made: Mapping[str, LibvirtConnection], silences: Mapping[str, str], guest: str
) -> tuple[str, str] | None:
    """Return which two hosts a move without a record is between, the one that it leaves first; None: nobody has it.

    Raises:
        NotFound: that cannot be told.
    """
    from vmferry.libvirt.moves.standing import Job, Run

    found = {name: await connection.standing(guest) for name, connection in made.items()}
    have = [name for name, standing in found.items() if standing.run is not Run.ABSENT]
    if not have:
        return None
    leaving = [name for name in have if found[name].job is Job.OUT or found[name].run in (Run.LEFT, Run.STANDS)]
    others = [name for name in (*have, *silences, *found) if name not in leaving[:1]]
    if len(have) > 2 or not others:
        raise NotFound(
            f"between which hosts {guest} moved is not known: {', '.join(have)} have it",
            fix="look at it on each of them (virsh domstate --reason)",
        )
    return (leaving[0], others[0]) if leaving else (have[0], next(name for name in others if name != have[0]))


def _made(
    guest: str,
    record: MoveRecord | None,
    hosts: tuple[LibvirtHost, LibvirtHost],
    made: Mapping[str, LibvirtConnection],
    silences: Mapping[str, str],
) -> Scene:
    from vmferry.libvirt.moves.diagnosis import Move
    from vmferry.libvirt.moves.recovery import Case

    names = hosts[0].name, hosts[1].name
    move = Move()
    if record is not None:
        flags = record.flags
        move = Move(
            persists="PERSIST_DEST" in flags,
            undefines="UNDEFINE_SOURCE" in flags,
            was_defined_there=record.was_defined_there,
            sides_known=True,
        )
    source, there = (made.get(name) for name in names)
    case = Case(guest, source, there, names, move, (silences.get(names[0], ""), silences.get(names[1], "")))
    return Scene(case, record, hosts, source)


async def _recover(scene: Scene) -> dict[str, Any]:
    from vmferry.libvirt.moves.recovery import look, recover

    guest = scene.case.domain
    if is_steered(guest):
        found, standings = await look(scene.case)
        return _finding(scene, found, standings, ("nothing: another vmferry steers it",))
    with contextlib.ExitStack() as stack:
        if scene.record is not None:
            stack.enter_context(steering(scene.record))
        can = scene.record is not None and scene.source is not None
        ended = await recover(
            scene.case,
            steer=(lambda: _steer(scene)) if can else None,
            repair=(lambda: _repair(scene)) if can and scene.record and "POSTCOPY" in scene.record.flags else None,
        )
        _forget_if_certain(scene.case, ended)
    return _ended(scene, ended)


def _forget_if_certain(case: Case, ended: Recovered) -> None:
    """Forget what is known of a move whose end is known too, and of which nothing is left."""
    from vmferry.libvirt.moves.diagnosis import Verdict

    certain = ended.diagnosis.verdict in (Verdict.MOVED, Verdict.STAYED, Verdict.OFF)
    if certain and ended.failed is None and not ended.diagnosis.acts:
        forget(case.domain)


async def _steer(scene: Scene) -> None:
    """Apply the policy of the record to the job that runs, and show it."""
    from vmferry.cli.domain_moves import asked_of
    from vmferry.conductor.domain_move import DomainMove
    from vmferry.libvirt.moves.moving import RunningMove
    from vmferry.libvirt.moves.request import Request

    source, record, guest = scene.source, scene.record, scene.case.domain
    if source is None or record is None:
        return
    say(f"libvirt moves {guest} and nobody steers it: policy {record.options.get('policy') or 'vmferry'} goes on")
    ram = (await source.job(guest)).total_bytes
    async with source.listening(guest) as heard:
        domain = RunningMove(source, source, guest, scene.hosts[1].peer_uri, Request(), heard)

        async def tell(_event: object) -> None:
            """Show nothing: `vmferry watch` does."""

        await DomainMove(domain, asked_of(record.options, Bytes(ram)), tell).run()


async def _repair(scene: Scene) -> None:
    """Have libvirt resume a post-copy that broke, as it was asked for.

    Raises:
        VmferryError: it did not come to its end.
    """
    from vmferry.libvirt.adapter import LibvirtConnection
    from vmferry.libvirt.moves.request import Request

    record = scene.record
    if record is None:
        return
    say(f"post-copy of {scene.case.domain} broke; libvirt is told to resume it")
    request = Request((*record.flags, "POSTCOPY_RESUME"), record.parameters)
    carrier = await LibvirtConnection.connect(scene.hosts[0].uri)
    try:
        await carrier.move(scene.case.domain, scene.hosts[1].peer_uri, request)
    finally:
        await carrier.close()


async def _watch(scene: Scene, *, as_json: bool) -> int | None:
    """Show readings while libvirt moves it, then how it ended."""
    from vmferry.core.rounds import RoundTracker
    from vmferry.libvirt.moves.diagnosis import Verdict
    from vmferry.libvirt.moves.moving import wait_news
    from vmferry.libvirt.moves.recovery import look

    source, guest = scene.source, scene.case.domain
    found, _ = await look(scene.case)
    if source is None or found.verdict is not Verdict.MOVING:
        return None
    show, screen = output_of(scene.view, as_json=as_json)
    began, tracker = time.monotonic(), RoundTracker(Milliseconds(300.0))
    with screen:
        async with source.listening(guest) as heard:
            while found.verdict is Verdict.MOVING:
                with contextlib.suppress(VmferryError):  # it has just ended: the next look says how
                    for event in tracker.feed(await source.job(guest), _since(began)):
                        show(dataclasses.asdict(event))
                await wait_news(heard, _READ_EVERY_S)
                found, _ = await look(scene.case)
        finished = _finished(scene, found, _since(began))
        show(dataclasses.asdict(finished))
    return EXIT_CODES[finished.outcome]


def _finished(scene: Scene, found: Diagnosis, at_ms: Milliseconds) -> Finished:
    from vmferry.libvirt.moves.diagnosis import Verdict

    outcome = {
        Verdict.MOVED: Outcome.MOVED,
        Verdict.STAYED: Outcome.ABORTED,
        Verdict.OFF: Outcome.LOST,
        Verdict.LOST: Outcome.LOST,
    }.get(found.verdict, Outcome.HELD)
    owner = None if found.owner is None else scene.case.name(found.owner)
    fix = found.fix or (f"vmferry recover {scene.case.domain}" if found.acts else None)
    return Finished(at_ms, outcome, owner, found.found, fix, (), None)


def _ended(scene: Scene, ended: Recovered) -> dict[str, Any]:
    done = ended.done if ended.failed is None else (*ended.done, f"then failed: {ended.failed}")
    return _finding(scene, ended.diagnosis, ended.standings, done)


def _finding(
    scene: Scene, found: Diagnosis, standings: tuple[Standing, Standing], done: tuple[str, ...]
) -> dict[str, Any]:
    """Return a finding with an agent's words, and libvirt's own beside them."""
    names = scene.case.names
    said = "; ".join(f"{name} says {standing.says}" for name, standing in zip(names, standings, strict=True))
    return {
        "guest": scene.case.domain,
        "host": " and ".join(names),
        "found": f"{found.found} ({said})",
        "done": "; ".join(done) or "nothing",
        "owner": None if found.owner is None else scene.case.name(found.owner),
        "verdict": str(found.verdict),
        "fix": found.fix,
    }


def _since(began: float) -> Milliseconds:
    return Milliseconds((time.monotonic() - began) * 1000)
