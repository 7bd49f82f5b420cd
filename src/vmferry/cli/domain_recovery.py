"""`vmferry recover`, `cancel` and `watch` of a libvirt domain's move, from any process, whoever began it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmferry.cli.following import EXIT_CODES, output_of
from vmferry.cli.libvirt_hosts import LibvirtHost
from vmferry.cli.libvirt_records import MoveRecord, check_hosts, find_record, forget, holding, is_steered
from vmferry.cli.output import INTERRUPTED, say
from vmferry.core.errors import GuestBusy, NotFound, VmferryError
from vmferry.core.progress import Finished, Outcome
from vmferry.core.units import Bytes, Milliseconds

if TYPE_CHECKING:
    from vmferry.libvirt.adapter import LibvirtConnection
    from vmferry.libvirt.moves.diagnosis import Diagnosis, Verdict
    from vmferry.libvirt.moves.recovery import Case, Recovered
    from vmferry.libvirt.moves.standing import Standing

_READ_EVERY_S = 0.2
#: libvirt has answered that a move failed: what it still does then is done in a moment.
_TIDY_WITHIN_S = 5.0
#: After an order to give a move up: libvirt cancels QEMU's migration and tidies up.
_GIVEN_UP_WITHIN_S = 30.0


@dataclass(slots=True)
class _Steering:
    """What this process does to a move that somebody else began."""

    is_under_way: bool = False
    failures: list[str] = field(default_factory=list)  #: a sentence each


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
    Ctrl-C gives such a job up; what came of that is said, and the interrupt passed on.
    """
    steering = _Steering()

    async def work() -> dict[str, Any] | None:
        with _hold(guest) as is_held:  # before it is read: what is read then stands
            async with _scene(hosts, guest) as scene:
                if scene is None:
                    return None
                if is_held is None or (scene.record is not None and not is_held):
                    found, standings = await _look(scene)
                    return _finding(scene, found, standings, ("nothing: another vmferry steers it",))
                return await _recover(scene, steering, is_held=is_held)

    try:
        return asyncio.run(work())
    except KeyboardInterrupt:
        say(f"\n{_interrupted(hosts, guest, is_steered=steering.is_under_way)}")
        raise


def cancel(hosts: Mapping[str, LibvirtHost], guest: str) -> dict[str, Any] | None:
    """Give a domain's move up and return what both daemons say afterwards; None: no host of libvirt's moves it.

    Raises:
        Refused: it cannot be given up any more (post-copy), or libvirt is past that.
    """

    async def work() -> dict[str, Any] | None:
        from vmferry.libvirt.moves.diagnosis import Verdict

        async with _scene(hosts, guest) as scene:
            if scene is None or scene.source is None:
                return None
            found, standings = await _look(scene)
            if found.verdict is not Verdict.MOVING:
                return None
            await scene.source.abort(guest)
            deadline = time.monotonic() + _GIVEN_UP_WITHIN_S
            while True:
                await asyncio.sleep(_READ_EVERY_S)
                found, standings = await _look(scene)
                if found.verdict is not Verdict.MOVING or time.monotonic() > deadline:
                    told = _finding(scene, found, standings, (_given_up(found.verdict),))
                    return told if is_steered(guest) else _with_images(scene, found, told)

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
    if record is not None:
        check_hosts(record, hosts)
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
            held=record.held,
        )
    source, there = (made.get(name) for name in names)
    case = Case(guest, source, there, names, move, (silences.get(names[0], ""), silences.get(names[1], "")))
    return Scene(case, record, hosts, source)


@contextlib.contextmanager
def _hold(guest: str) -> Iterator[bool | None]:
    """Hold the record of a move; yield whether there is one, or None where another process has it."""
    with contextlib.ExitStack() as stack:
        is_held: bool | None = None
        with contextlib.suppress(GuestBusy):
            is_held = stack.enter_context(holding(guest))
        yield is_held


async def _look(scene: Scene) -> tuple[Diagnosis, tuple[Standing, Standing]]:
    from vmferry.libvirt.moves.recovery import look

    return await look(scene.case)


async def _recover(scene: Scene, steering: _Steering, *, is_held: bool) -> dict[str, Any]:
    """Do what may be done.

    Args:
        scene: of the move.
        steering: told when this begins to steer it, and how that ended.
        is_held: its record is this process's, so that it may be forgotten.
    """
    from vmferry.libvirt.moves.recovery import recover

    can = scene.record is not None and scene.source is not None
    await _hasten(scene)
    ended = await recover(
        scene.case,
        steer=(lambda: _steer(scene, steering)) if can else None,
        repair=(lambda: _repair(scene)) if can and scene.record and "POSTCOPY" in scene.record.flags else None,
    )
    if is_held:
        _forget_if_certain(scene.case, ended)
    return _ended(scene, ended, tuple(steering.failures))


async def _hasten(scene: Scene) -> None:
    """Let the pages of a guest that has left follow as they can: whoever began that slowly may have died then.

    Only of a move of this operator's: another one's limit is his.
    """
    from vmferry.libvirt.moves.moving import RunningMove
    from vmferry.libvirt.moves.request import Request
    from vmferry.libvirt.moves.standing import Job, Run

    source, record, guest = scene.source, scene.record, scene.case.domain
    if source is None or record is None:
        return
    with contextlib.suppress(VmferryError):  # its last page has come meanwhile, or the daemon does not answer
        here = await source.standing(guest)
        if (here.run, here.job) == (Run.LEFT, Job.OUT):
            request = Request(parameters=record.parameters, preempts=True)
            await RunningMove(source, source, guest, scene.hosts[1].peer_uri, request).set_following(None)


def _given_up(verdict: Verdict) -> str:
    """Return what came of an order to give a move up."""
    from vmferry.libvirt.moves.diagnosis import Verdict

    asked = "libvirt was told to give the move up"
    return {
        Verdict.STAYED: "given up",
        Verdict.MOVED: f"{asked}, but the domain has arrived",
        Verdict.MOVING: f"{asked}, and is still at it: `vmferry watch` shows it",
    }.get(verdict, asked)


def _interrupted(hosts: Mapping[str, LibvirtHost], guest: str, *, is_steered: bool) -> str:
    """Return what Ctrl-C has done to a domain's move, by what both daemons say now."""
    if not is_steered:
        return f"interrupted: libvirt goes on with what it was told; `vmferry recover {guest}` tells where {guest} runs"

    async def work() -> str:
        async with _scene(hosts, guest) as scene:
            if scene is None:
                return f"no host has {guest}"
            found, standings = await _look(scene)
            told = _finding(scene, found, standings, (_given_up(found.verdict),))
            rest = f"; `vmferry recover {guest}` ends what is half done" if found.acts else ""
            return f"{told['done']}; {told['found']}; owner {told['owner'] or 'not known'}{rest}"

    try:
        return f"move of {guest}: {asyncio.run(work())}"
    except (VmferryError, KeyboardInterrupt) as error:
        why = error.what if isinstance(error, VmferryError) else "interrupted"
        told = f"libvirt was told to give the move of {guest} up; what came of it is not known ({why})"
        return f"{told}; `vmferry recover {guest}` tells where it runs"


def _forget_if_certain(case: Case, ended: Recovered) -> None:
    """Forget what is known of a move whose end is known too, and of which nothing is left."""
    from vmferry.libvirt.moves.diagnosis import Verdict

    certain = ended.diagnosis.verdict in (Verdict.MOVED, Verdict.STAYED, Verdict.OFF)
    if certain and ended.failed is None and not ended.diagnosis.acts:
        forget(case.domain)


async def _steer(scene: Scene, steering: _Steering) -> None:
    """Apply the policy of the record to the job that runs; cancelled, it has the move given up.

    Raises:
        VmferryError: the domain did not arrive, or nobody steers it any more.
    """
    from vmferry.cli.domain_moves import asked_of
    from vmferry.cli.domain_terms import brake_of, parse_terms
    from vmferry.conductor.domain_move import DomainMove
    from vmferry.libvirt.moves.moving import RunningMove
    from vmferry.libvirt.moves.request import Request

    source, record, guest = scene.source, scene.record, scene.case.domain
    if source is None or record is None:
        return
    policy = record.options.get("policy") or "vmferry"
    say(f"libvirt moves {guest} and nobody steers it: policy {policy} goes on; Ctrl-C gives the move up")
    ram = (await source.job(guest)).total_bytes
    async with source.listening(guest) as heard:
        domain = RunningMove(source, source, guest, scene.hosts[1].peer_uri, Request(), heard)

        async def tell(_event: object) -> None:
            """Show nothing: `vmferry watch` does."""

        asked = asked_of(record.options, Bytes(ram))
        is_bounded = brake_of(parse_terms(record.options), asked).begins_with > 0
        move = DomainMove(domain, asked, tell, bounded=is_bounded)
        steering.is_under_way = True  # one that is interrupted stays so
        ended = await move.run()
        steering.is_under_way = False
    if ended.failure is not None:
        steering.failures.append(f"steered from {scene.hosts[0].name}, and it did not arrive: {ended.reason}")
        raise ended.failure


async def _repair(scene: Scene) -> None:
    """Have libvirt resume a post-copy that broke, by the flow that was asked for.

    Raises:
        VmferryError: it did not come to its end.
    """
    from vmferry.libvirt.adapter import LibvirtConnection
    from vmferry.libvirt.moves.flows import EitherFlow
    from vmferry.libvirt.moves.request import Request

    record = scene.record
    if record is None:
        return
    say(f"post-copy of {scene.case.domain} broke; libvirt is told to resume it")
    flags = (*record.flags, "POSTCOPY_RESUME")
    request = Request(flags, record.parameters)
    direct = Request(tuple(flag for flag in flags if flag != "PEER2PEER"), record.parameters)
    async with contextlib.AsyncExitStack() as stack:
        carriers = []
        for host in scene.hosts:
            carriers.append(await LibvirtConnection.connect(host.uri))
            stack.push_async_callback(carriers[-1].close)
        carrier = EitherFlow(carriers[0], carriers[1], direct, record.flow, say, resumes=True)
        await carrier.move(scene.case.domain, scene.hosts[1].peer_uri, request)


async def _watch(scene: Scene, *, as_json: bool) -> int | None:
    """Show readings while libvirt moves it, then how it ended."""
    from vmferry.core.rounds import RoundTracker
    from vmferry.libvirt.moves.diagnosis import Verdict
    from vmferry.libvirt.moves.moving import wait_news

    source, guest = scene.source, scene.case.domain
    found, standings = await _look(scene)
    if source is None or found.verdict is not Verdict.MOVING:
        return None
    show, screen = output_of(scene.view, as_json=as_json)
    began, tracker = time.monotonic(), RoundTracker(Milliseconds(300.0))
    with screen:
        async with source.listening(guest) as heard:
            before = None  # the daemons are asked one after the other: an end is seen twice
            while found.verdict is Verdict.MOVING or standings != before:
                before = standings
                with contextlib.suppress(VmferryError):  # it has just ended: the next look says how
                    for event in tracker.feed(await source.job(guest), _since(began)):
                        show(dataclasses.asdict(event))
                await wait_news(heard, _READ_EVERY_S)
                found, standings = await _look(scene)
        finished = _finished(scene, found, standings, _since(began))
        show(dataclasses.asdict(finished))
    return EXIT_CODES[finished.outcome]


def _finished(scene: Scene, found: Diagnosis, standings: tuple[Standing, Standing], at_ms: Milliseconds) -> Finished:
    """Return how a move that was watched ended; a domain that is off is not lost: nothing says that it died."""
    from vmferry.libvirt.moves.diagnosis import Verdict

    outcome = {
        Verdict.MOVED: Outcome.MOVED,
        Verdict.STAYED: Outcome.ABORTED,
        Verdict.LOST: Outcome.LOST,
    }.get(found.verdict, Outcome.HELD)
    owner = None if found.owner is None else scene.case.name(found.owner)
    fix = found.fix or (f"vmferry recover {scene.case.domain}" if found.acts else None)
    off = "; it may have arrived and shut itself down" if found.verdict is Verdict.OFF else ""
    return Finished(at_ms, outcome, owner, f"{_sentence(scene, found, standings)}{off}", fix, (), None)


def _ended(scene: Scene, ended: Recovered, steered: tuple[str, ...]) -> dict[str, Any]:
    done = (*steered, *ended.done)
    if ended.failed is not None:
        done = (*done, f"then failed: {ended.failed}")
    return _with_images(scene, ended.diagnosis, _finding(scene, ended.diagnosis, ended.standings, done))


def _sentence(scene: Scene, found: Diagnosis, standings: tuple[Standing, Standing]) -> str:
    """Return what was found, and libvirt's own words beside it."""
    said = (f"{name} says {standing.says}" for name, standing in zip(scene.case.names, standings, strict=True))
    return f"{found.found} ({'; '.join(said)})"


def _with_images(scene: Scene, found: Diagnosis, told: dict[str, Any]) -> dict[str, Any]:
    """Return a finding that names the images made for a copy, unless the domain has or may yet get them."""
    from vmferry.libvirt.moves.diagnosis import Verdict

    images = () if scene.record is None else scene.record.images
    if not images or found.verdict in (Verdict.MOVED, Verdict.MOVING):
        return told
    there, guest = scene.hosts[1].name, scene.case.domain
    when = "" if found.verdict is Verdict.STAYED else f"once it is certain that {guest} does not need them: "
    fix = (
        f"copies of its disks may be left on {there} ({', '.join(images)}), and vmferry removes them no more: {when}"
        f"`virsh vol-delete VOLUME --pool POOL` on {there}"
    )
    return {**told, "fix": fix if found.fix is None else f"{found.fix}; {fix}"}


def _finding(
    scene: Scene, found: Diagnosis, standings: tuple[Standing, Standing], done: tuple[str, ...]
) -> dict[str, Any]:
    """Return a finding with an agent's words, and libvirt's own beside them."""
    return {
        "guest": scene.case.domain,
        "host": " and ".join(scene.case.names),
        "found": _sentence(scene, found, standings),
        "done": "; ".join(done) or "nothing",
        "owner": None if found.owner is None else scene.case.name(found.owner),
        "verdict": str(found.verdict),
        "fix": found.fix,
    }


def _since(began: float) -> Milliseconds:
    return Milliseconds((time.monotonic() - began) * 1000)
