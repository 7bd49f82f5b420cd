"""What `recover`, `cancel` and `watch` do to a move that runs or broke, and what they say of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_domain_ends import PLAN
from typer.testing import CliRunner

from vmferry.cli import domain_moves
from vmferry.cli.domain_source import Seen
from vmferry.cli.libvirt_hosts import add_host, load_hosts
from vmferry.cli.libvirt_records import MoveRecord, find_record, is_steered, steering
from vmferry.cli.main import app
from vmferry.core.errors import Broken, Refused
from vmferry.core.ids import GuestUuid
from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.units import MIB, Bytes
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.copies.images import Copies, Image, Size
from vmferry.libvirt.moves import recovery
from vmferry.libvirt.moves.request import Request
from vmferry.libvirt.moves.standing import ABSENT, Job, Run, Standing

UUID = GuestUuid("6695eb01-f6a4-8304-79aa-97f2502e193f")
RECORD = MoveRecord("web-7", "host-a", "host-b", {"plain": True}, ("LIVE", "PEER2PEER"))
SAMPLE = MigrationSample(MigrationStatus.ACTIVE, total_bytes=Bytes(256 * MIB), remaining_bytes=Bytes(128 * MIB))


def at(run: Run, job: Job = Job.NONE, says: str = "") -> Standing:
    """Return one as a daemon would say it."""
    return Standing(run, job, UUID, is_persistent=True, says=says or run.value)


LEAVES, STAYS, ARRIVES = at(Run.RUNS, Job.OUT), at(Run.RUNS), at(Run.STANDS, Job.IN)
OFF = at(Run.OFF, says="shutoff (shutdown)")


@dataclass
class World:
    """Two daemons, and what changes when."""

    source: Standing
    destination: Standing
    after: tuple[Standing, Standing] = (STAYS, ABSENT)  #: an order, or the move's end
    on_job: Callable[[int], None] = lambda _: None  #: gets which reading it is
    on_standing: dict[str, tuple[Standing, Standing]] = field(default_factory=dict)  #: comes with a domain's first look
    refuses: tuple[str, ...] = ()  #: why a move fails, one for each that does
    jobs: int = 0
    orders: list[str] = field(default_factory=list)
    moves: list[tuple[object, Request]] = field(default_factory=list)

    def end(self) -> None:
        """Have the move end."""
        self.source, self.destination = self.after


class Daemon:
    """A connection to one of them."""

    def __init__(self, world: World, side: str) -> None:
        self.world, self.side = world, side

    async def standing(self, name: str) -> Standing:
        """Tell how it stands now."""
        if name in self.world.on_standing:
            self.world.source, self.world.destination = self.world.on_standing.pop(name)
        return self.world.source if self.side == "source" else self.world.destination

    async def job(self, _: str) -> MigrationSample:
        """Tell how far the move is."""
        self.world.jobs += 1
        self.world.on_job(self.world.jobs)
        return SAMPLE

    @contextlib.asynccontextmanager
    async def listening(self, _: str) -> AsyncIterator[asyncio.Queue[Any]]:
        """Tell nothing."""
        yield asyncio.Queue()

    async def abort(self, _: str) -> None:
        """Give it up."""
        self.world.orders.append("abort")
        self.world.end()

    async def move(self, _: str, destination: object, request: Request) -> None:
        """Move it."""
        self.world.moves.append((getattr(destination, "side", destination), request))
        if len(self.world.moves) <= len(self.world.refuses):
            raise Broken(self.world.refuses[len(self.world.moves) - 1])
        self.world.end()

    async def set_downtime_limit(self, *_: object) -> None:
        """Take it."""

    async def set_bandwidth(self, *_: object) -> None:
        """Take it."""

    async def close(self) -> None:
        """Do nothing."""


Begin = Callable[[World], World]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt: a shell has its background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """An operator with two hosts, on which the world is."""
    monkeypatch.setenv("VMFERRY_CONFIG", str(tmp_path / "vmferry"))
    monkeypatch.setattr(recovery, "_MOMENT_S", 0.0)
    for name in ("host-a", "host-b"):
        add_host(name, f"qemu+tcp://{name}/system", None)

    def into(world: World) -> World:
        async def connect(uri: str) -> Daemon:
            return Daemon(world, "source" if "host-a" in uri else "destination")

        monkeypatch.setattr(LibvirtConnection, "connect", connect)
        return world

    return into


def keep(record: MoveRecord) -> None:
    """Leave the record of a move that nobody steers."""
    with steering(record):
        pass


def run(*words: str) -> tuple[int, str]:
    """Run a command; returns its exit code and what it printed."""
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_ctrl_c_gives_a_move_up_and_says_so(begin: Begin) -> None:
    """Before it begins, and afterwards by what both daemons say; the record is for whoever recovers again."""
    world = begin(World(LEAVES, ARRIVES))
    world.on_job = lambda number: signal.raise_signal(signal.SIGINT) if number == 3 else None
    keep(RECORD)
    code, said = run("recover", "web-7")
    assert (code, world.orders) == (130, ["abort"])
    assert "policy vmferry goes on; Ctrl-C gives the move up" in said
    assert "move of web-7: given up; it runs at the source" in said
    assert "owner host-a" in said
    assert find_record("web-7") == RECORD
    assert not is_steered("web-7")


def test_ctrl_c_that_comes_too_late_says_so(begin: Begin) -> None:
    """It has arrived meanwhile."""
    world = begin(World(LEAVES, ARRIVES, (ABSENT, STAYS)))
    world.on_job = lambda number: signal.raise_signal(signal.SIGINT) if number == 3 else None
    keep(RECORD)
    code, said = run("recover", "web-7")
    assert code == 130
    assert "libvirt was told to give the move up, but the domain has arrived; it runs at the destination" in said
    assert ": given up" not in said


def test_ctrl_c_does_not_hide_what_was_done_before(begin: Begin) -> None:
    """Of several moves the first is over, and told once."""
    world = begin(World(at(Run.OFF), STAYS))
    keep(replace(RECORD, guest="db-1"))

    def read(number: int) -> None:
        if number == 3:
            signal.raise_signal(signal.SIGINT)

    world.on_job, world.on_standing = read, {"web-7": (LEAVES, ARRIVES)}
    keep(RECORD)
    code, said = run("recover")
    assert code == 130
    assert "db-1 (host-a and host-b): it is at the destination" in said
    assert "move of web-7: given up" in said


def test_a_steering_that_failed_is_not_called_an_end(begin: Begin) -> None:
    """Its reason is told beside what came of it."""
    world = begin(World(LEAVES, ARRIVES))
    world.on_job = lambda number: world.end() if number == 3 else None
    keep(RECORD)
    code, said = run("recover", "web-7", "--json")
    (finding,) = json.loads(said.splitlines()[-1])["findings"]
    assert (code, finding["owner"]) == (0, "host-a")
    assert finding["done"].startswith("steered from host-a, and it did not arrive: ")
    assert "ended without arriving" in finding["done"]
    assert "to its end" not in finding["done"]


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ((STAYS, ABSENT), "move of web-7: given up; it runs at the source"),
        ((ABSENT, STAYS), "libvirt was told to give the move up, but the domain has arrived; it runs at"),
        ((LEAVES, ARRIVES), "libvirt was told to give the move up, and is still at it"),
        ((OFF, OFF), "libvirt was told to give the move up; it has a process on neither host"),
    ],
)
def test_given_up_is_what_was_given_up(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, after: tuple[Standing, Standing], told: str
) -> None:
    """The order may come too late, or do nothing in time."""
    monkeypatch.setattr("vmferry.cli.domain_recovery._GIVEN_UP_WITHIN_S", 0.0)
    begin(World(LEAVES, ARRIVES, after))
    keep(RECORD)
    code, said = run("cancel", "web-7")
    assert code == 0
    assert told in said
    assert ("given up;" in said) == (after == (STAYS, ABSENT))


def test_a_guest_that_shut_itself_down_is_not_lost(begin: Begin) -> None:
    """Nobody says that it died: what both daemons say is told, and a person looks."""
    world = begin(World(LEAVES, ARRIVES, (ABSENT, OFF)))
    world.on_job = lambda number: world.end() if number == 2 else None
    keep(RECORD)
    code, said = run("watch", "web-7", "--json")
    last = json.loads(said.splitlines()[-1])
    assert (code, last["outcome"]) == (9, "held")
    assert "host-b says shutoff (shutdown)); it may have arrived and shut itself down" in last["reason"]


@pytest.mark.parametrize("command", ["recover", "cancel"])
def test_images_that_nobody_removes_are_named(begin: Begin, command: str) -> None:
    """A process that was killed left them at the destination."""
    begin(World(LEAVES if command == "cancel" else STAYS, ABSENT))
    keep(replace(RECORD, images=("web-7.qcow2 in pool default",)))
    said = json.loads(run(command, "web-7", "--json")[1])
    found = said if command == "cancel" else said["findings"][0]
    assert "may be left on host-b (web-7.qcow2 in pool default)" in found["fix"]
    assert "virsh vol-delete VOLUME --pool POOL" in found["fix"]


def test_images_of_a_domain_that_is_there_are_not_named(begin: Begin) -> None:
    """It runs on them."""
    begin(World(ABSENT, STAYS))
    keep(replace(RECORD, images=("web-7.qcow2 in pool default",)))
    assert "web-7.qcow2" not in run("recover", "web-7")[1]


UNREACHED = "unable to connect to server at 'host-b:16509': Connection refused"


@pytest.mark.parametrize(
    ("flow", "refuses", "ways"),
    [
        ("direct", (), ["destination"]),
        ("p2p", (), ["qemu+tcp://host-b/system"]),
        (None, (), ["qemu+tcp://host-b/system"]),
        (None, (UNREACHED,), ["qemu+tcp://host-b/system", "destination"]),
    ],
)
def test_a_postcopy_that_broke_is_resumed_by_its_own_flow(
    begin: Begin, flow: str | None, refuses: tuple[str, ...], ways: list[str]
) -> None:
    """From daemon to daemon with a flag for that, through this process without it."""
    split = at(Run.SPLIT)
    world = begin(World(split, split, (ABSENT, STAYS), refuses=refuses))
    between = () if flow == "direct" else ("PEER2PEER",)
    parameters = {"migrate_disks": ("vda",), "destination_xml": "<domain/>"}
    keep(replace(RECORD, flags=("LIVE", "POSTCOPY", *between), parameters=parameters, flow=flow))
    code, said = run("recover", "web-7")
    assert (code, "post-copy from host-a resumed" in said) == (0, True), said
    assert [way for way, _ in world.moves] == ways
    for way, request in world.moves:
        assert set(request.flags) == {"LIVE", "POSTCOPY", "POSTCOPY_RESUME"} | (
            set() if way == "destination" else {"PEER2PEER"}
        )
        assert request.parameters == {"migrate_disks": ("vda",)}


async def test_migrate_keeps_what_recover_needs(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow, and the images before the first of them is made; of a move that libvirt was never asked for nothing."""
    world = begin(World(STAYS, ABSENT))
    image = Image("vda", "default", "web-7.qcow2", "qcow2", Size(Bytes(1), Bytes(1)))
    plan = replace(PLAN, flow="direct", copies=Copies((image,)))
    kept: list[MoveRecord | None] = []

    @contextlib.asynccontextmanager
    async def reaching(*_: object) -> AsyncIterator[Any]:
        yield (
            Seen("host-a", {"host-a": STAYS, "host-b": ABSENT}),
            (Daemon(world, "source"), Daemon(world, "destination")),
        )

    async def planned(*_: object) -> Any:
        return plan

    @contextlib.asynccontextmanager
    async def images_for(*_: object, **__: object) -> AsyncIterator[Any]:
        assert is_steered("web-7")
        kept.append(find_record("web-7"))
        raise Refused("no room")
        yield

    monkeypatch.setattr(domain_moves, "reaching", reaching)
    monkeypatch.setattr(domain_moves, "_plan", planned)
    monkeypatch.setattr("vmferry.cli.domain_terms.images_for", images_for)
    with pytest.raises(Refused, match="no room"):
        await domain_moves._migrate(load_hosts(), "web-7", "host-b", {}, as_json=True)
    (record,) = kept
    assert record is not None
    assert (record.flow, record.images) == ("direct", ("web-7.qcow2 in pool default",))
    assert find_record("web-7") is None
