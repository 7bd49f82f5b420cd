"""Leases of sanlock, by real daemons: one host's process at a time has a lease, and says so to whoever asks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vmferry.core.errors import Broken, Refused, TimedOut
from vmferry.core.guest import BiosBoot, Disk, GuestSpec
from vmferry.core.ids import GuestName
from vmferry.core.units import MIB, Bytes
from vmferry.disks.sanlock import wire
from vmferry.disks.sanlock.daemon import Daemon
from vmferry.disks.sanlock.leases import UNREADY, SanlockLeases, Settings, lease_name
from vmferry.lab.sanlock import IO_TIMEOUT_S, LOCKSPACE, SanlockDaemons

IMAGES = ("/srv/nfs/web-7.qcow2", "/srv/nfs/web-7-data.raw")
SPEC = GuestSpec(
    GuestName("web-7"), Bytes(64 * MIB), BiosBoot(), disks=(*map(Disk, IMAGES), Disk("/srv/local/scratch.raw"))
)
#: Guests whose host is lost: nobody else waits for their leases.
LATE, DYING, KILLED, LOST = (
    replace(SPEC, disks=(Disk(f"/srv/nfs/{name}.raw"),)) for name in ("late", "dying", "killed", "lost")
)
#: More than one request can name.
MANY = replace(SPEC, disks=tuple(Disk(f"/srv/nfs/many-{number}.raw") for number in range(11)))
#: 8 I/O time-outs of silence, and the 60 s of a watchdog.
DEAD_AFTER_S = 8 * IO_TIMEOUT_S + 60


@pytest.fixture
def ended() -> Iterator[ExitStack]:
    """What is to be done at a test's end, however it ends."""
    with ExitStack() as stack:
        yield stack


@dataclass
class TwoHosts:
    """host-a and host-b, and their daemons."""

    daemons: SanlockDaemons
    a: SanlockLeases
    b: SanlockLeases


def leases_of(daemons: SanlockDaemons, host: str, host_id: int, **changes: object) -> SanlockLeases:
    """Return what a host's agent would have."""
    settings = Settings(LOCKSPACE, host_id, daemons.leases, ("/srv/nfs",))
    return SanlockLeases(replace(settings, **changes), Daemon(daemons.socket(host)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def daemons() -> Iterator[SanlockDaemons]:
    """Two hosts' daemons, in one lockspace."""
    with SanlockDaemons() as made:
        made.start("host-a", 1)
        made.start("host-b", 2)
        asyncio.run(_see_each_other(leases_of(made, "host-a", 1), leases_of(made, "host-b", 2)))
        yield made


async def _see_each_other(*hosts: SanlockLeases) -> None:
    """Wait until each was watched for long enough by the other."""

    async def seen() -> bool:
        facts = [await host.facts() for host in hosts]
        return all(each is not None and len(each.alive) == len(hosts) for each in facts)

    await until(seen, 60.0)


@pytest.fixture
def hosts(daemons: SanlockDaemons) -> TwoHosts:
    """Both hosts."""
    return TwoHosts(daemons, leases_of(daemons, "host-a", 1), leases_of(daemons, "host-b", 2))


@contextmanager
def process(through: Sequence[str], *, uid: int | None = None) -> Iterator[int]:
    """Run a program in the place of QEMU, started as the agent does it, and return its number once it runs."""
    who = ["-", ""] if uid is None else [str(uid), "5,6"]
    command = [*through, *who, "NAME=a value", "--", "/bin/sleep", "1000"] if through else ["/bin/sleep", "1000"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        while child.poll() is None and Path(f"/proc/{child.pid}/comm").read_text().strip() != "sleep":
            time.sleep(0.001)
        if child.poll() is not None:
            assert child.stderr is not None
            raise AssertionError(child.stderr.read().decode())
        yield child.pid
    finally:
        child.kill()
        child.communicate()


async def until(holds: Callable[[], Awaitable[bool]], limit_s: float) -> float:
    """Wait until something holds, and return how many seconds that took."""
    begun = time.monotonic()
    while not await holds():
        assert time.monotonic() - begun < limit_s
        await asyncio.sleep(0.05)
    return time.monotonic() - begun


async def can_take(leases: SanlockLeases, pid: int, spec: GuestSpec = SPEC) -> bool:
    """Take leases; tell whether that was possible."""
    try:
        await leases.take(spec, pid)
    except Refused:
        return False
    return True


def test_a_name_is_the_paths() -> None:
    """One path has one name on all hosts, however it is written, and another path another; sanlock can take it."""
    assert lease_name("/srv/./nfs//a.raw") == lease_name("/srv/nfs/x/../a.raw") != lease_name("/srv/nfs/b.raw")
    assert len(lease_name("/srv/nfs/" + "a" * 300)) <= wire.LONGEST_NAME


async def test_a_process_begins_with_its_leases(hosts: TwoHosts) -> None:
    """Before it is the program it has them all; images elsewhere have none; another host is told who has them."""
    with process(await hosts.a.starting(SPEC, taking=True)) as here:
        assert await hosts.a.missing(SPEC, here) == ()
        environment = Path(f"/proc/{here}/environ").read_bytes()
        assert f"p {here} web-7" in hosts.daemons.status("host-a")
        with process(await hosts.b.starting(SPEC, taking=False)) as there:
            assert await hosts.b.missing(SPEC, there) == IMAGES
            with pytest.raises(Refused, match="web-7.qcow2 is leased by host id 1 of lockspace vmferry, which is ali"):
                await hosts.b.take(SPEC, there)
            assert await hosts.b.missing(SPEC, there) == IMAGES
    assert environment == b"NAME=a value\0"


async def test_a_second_process_does_not_begin(hosts: TwoHosts) -> None:
    """What cannot have its leases never becomes the program, and says why; on the same host, too."""
    with process(await hosts.a.starting(SPEC, taking=True)):
        for leases, code in ((hosts.b, -243), (hosts.a, -17)):
            begun = await leases.starting(SPEC, taking=True)
            refused = pytest.raises(AssertionError, match=rf"sanlock refused a lease of its disks \(error {code}\)")
            with refused as raised, process(begun):
                pass
            assert "host id 1" in str(await leases.why_refused(SPEC, str(raised.value)))
        assert await hosts.b.why_refused(SPEC, "kernel header is too old") is None
        assert "host id 1 of lockspace vmferry, which is this host" in str(await hosts.a.why_not(SPEC))


async def test_the_next_process_waits_for_the_last_one(hosts: TwoHosts) -> None:
    """A guest that is stopped and started again at once has its leases again: its daemon is a moment behind."""
    for _ in range(10):
        with process(await hosts.a.starting(MANY, taking=True)) as here:
            assert await hosts.a.missing(MANY, here) == ()


async def test_leases_go_from_host_to_host(hosts: TwoHosts) -> None:
    """Given back here they can be taken there at once, and the other way round; twice is once."""
    with (
        process(await hosts.a.starting(MANY, taking=True)) as here,
        process(await hosts.b.starting(MANY, taking=False)) as there,
    ):
        for _ in range(2):
            await hosts.a.give(here)
            await hosts.a.give(here)
            await hosts.b.take(MANY, there)
            await hosts.b.take(MANY, there)
            assert (await hosts.b.missing(MANY, there), len(await hosts.a.missing(MANY, here))) == ((), 11)
            with pytest.raises(Refused, match="host id 2"):
                await hosts.a.take(MANY, here)
            await hosts.b.give(there)
            await hosts.a.take(MANY, here)


async def test_all_or_none(hosts: TwoHosts) -> None:
    """When the last of many leases is another's, the first ones that were taken are given back."""
    last = replace(MANY, disks=MANY.disks[-1:])
    with (
        process(await hosts.a.starting(last, taking=True)),
        process(await hosts.b.starting(MANY, taking=False)) as there,
    ):
        with pytest.raises(Refused, match="many-10.raw is leased by host id 1"):
            await hosts.b.take(MANY, there)
        assert len(await hosts.b.missing(MANY, there)) == 11


async def test_leases_end_with_their_process(hosts: TwoHosts) -> None:
    """A process that is killed has none any more, long before those of a silent host end, whoever watched it."""
    with process(await hosts.b.starting(SPEC, taking=False)) as there:
        with process(await hosts.a.starting(SPEC, taking=True)) as here:
            pass
        await until(lambda: can_take(hosts.b, there), DEAD_AFTER_S / 2)
        assert await hosts.a.is_registered(here) is False
        await hosts.a.give(here)


@pytest.mark.root
async def test_the_user_is_changed_behind_the_registration(hosts: TwoHosts) -> None:
    """The daemon's socket needs the agent's rights; the program has its own user and groups and no others."""
    with process(await hosts.a.starting(SPEC, taking=True), uid=12345) as here:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{here}/status").read_text().splitlines())
        assert status["Uid"].split() == status["Gid"].split() == ["12345"] * 4
        assert status["Groups"].split() == ["5", "6"]
        assert status["CapEff"].strip() == "0" * 16


async def test_the_program_can_order_nothing(hosts: TwoHosts) -> None:
    """A guest that has broken out of its QEMU finds a connection over which the daemon takes no orders."""
    begun = await hosts.a.starting(SPEC, taking=True)
    shutdown = "import os,struct; os.write(3, struct.pack('=6IiI', 0x04282010, 1, 4, 0, 32, 0, 1, 0))"
    child = subprocess.Popen(  # noqa: ASYNC220 - over at once
        [*begun, "-", "", "--", sys.executable, "-c", f"{shutdown}; os.read(0, 1)"], stdin=-1
    )
    try:
        await until(lambda: hosts.a.is_registered(child.pid), 60.0)
        await asyncio.sleep(0.3)
        assert await hosts.a.missing(SPEC, child.pid) == ()
    finally:
        child.kill()
        child.communicate()


async def test_a_process_from_before_can_have_none(hosts: TwoHosts) -> None:
    """A QEMU that was started without is told apart, with what to do about it."""
    with process(()) as here:
        assert await hosts.a.missing(SPEC, here) == IMAGES
        assert await hosts.a.is_registered(here) is False
        with pytest.raises(Refused, match="not started with leases of its disks; start it anew: `vmferry guest stop"):
            await hosts.a.take(SPEC, here)


async def test_a_guest_without_leased_images_is_started_as_ever(hosts: TwoHosts) -> None:
    """Images elsewhere, and none at all, need neither lockspace nor daemon."""
    away = leases_of(hosts.daemons, "host-c", 3)
    bare = replace(SPEC, disks=(Disk("/srv/local/scratch.raw"), Disk("/srv/nfs/golden.raw", read_only=True)))
    assert await away.starting(bare, taking=True) == ()
    assert await away.missing(bare, os.getpid()) == ()


async def test_each_host_sees_the_other(hosts: TwoHosts) -> None:
    """Both say the same pair of lives, by which a check knows that they mean one lockspace."""
    here, there = await hosts.a.facts(), await hosts.b.facts()
    assert here is not None
    assert there is not None
    assert set(here.alive) == set(there.alive) == {here.itself, there.itself}
    assert (here.problem, here.watchdog, here.host_id) == (None, False, 1)


async def test_no_daemon_is_told_with_what_to_do(hosts: TwoHosts) -> None:
    """Without a daemon a host says so in its facts, and refuses what needs a lease."""
    away = leases_of(hosts.daemons, "host-c", 3)
    facts = await away.facts()
    assert facts is not None
    assert facts.problem is not None
    assert facts.problem.code == UNREADY
    assert "No such file or directory" in facts.problem.what
    assert "systemctl start" in facts.problem.fix
    with pytest.raises(Broken, match="sanlock's daemon does not answer at"):
        await away.starting(SPEC, taking=True)


async def test_a_daemon_that_hangs_is_not_waited_for(hosts: TwoHosts, ended: ExitStack) -> None:
    """One that takes questions and answers none is told apart; nobody takes silence for having no lease."""
    hosts.daemons.listen("host-g")
    ended.callback(hosts.daemons.kill, "host-g")
    settings = Settings(LOCKSPACE, 7, hosts.daemons.leases, ("/srv/nfs",))
    hanging = SanlockLeases(settings, Daemon(hosts.daemons.socket("host-g"), quick_s=0.2))
    hosts.daemons.freeze("host-g")
    facts = await hanging.facts()
    assert facts is not None
    assert facts.problem is not None
    assert "has not answered within 0.2 s" in facts.problem.what
    for asking in (hanging.give(os.getpid()), hanging.missing(SPEC, os.getpid()), hanging.starting(SPEC, taking=True)):
        with pytest.raises(TimedOut, match="has not answered"):
            await asking


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", wire.HEADER.pack(1, 1, 9, 0, 32, 0, 0, 0)]
)
async def test_who_does_not_speak_like_sanlock_is_no_daemon(tmp_path: Path, answer: bytes) -> None:
    """Nothing at all, another protocol or a header of somebody else's: broken, and nothing is concluded from it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    socket = tmp_path / "sanlock.sock"
    async with await asyncio.start_unix_server(serve, socket):
        strange = SanlockLeases(Settings(LOCKSPACE, 1, tmp_path, ("/srv",)), Daemon(socket))
        for asking in (strange.give(1), strange.is_registered(1), strange.missing(SPEC, 1)):
            with pytest.raises(Broken, match="sanlock's daemon does not answer"):
                await asking


async def test_an_error_is_not_taken_for_having_no_lease(tmp_path: Path) -> None:
    """A daemon that cannot say which leases a process has has not said that it has none."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(wire.HEADER.pack(wire.MAGIC, wire.PROTOCOL, wire.Command.INQUIRE, 0, 32, 0, -12, 0))
        writer.close()

    socket = tmp_path / "sanlock.sock"
    async with await asyncio.start_unix_server(serve, socket):
        failing = SanlockLeases(Settings(LOCKSPACE, 1, tmp_path, ("/srv",)), Daemon(socket))
        with pytest.raises(Broken, match="does not say which leases process 1 has"):
            await failing.give(1)


async def test_no_lockspace_is_told_with_how_to_make_it(hosts: TwoHosts, tmp_path: Path) -> None:
    """A directory without a lockspace is named, with the command that makes one; nothing is made there."""
    away = leases_of(hosts.daemons, "host-a", 1, lockspace="other", directory=tmp_path)
    with pytest.raises(Refused, match=f"sanlock direct init -s other:0:{tmp_path}/lockspace:0"):
        await away.starting(SPEC, taking=True)
    assert list(tmp_path.iterdir()) == []


async def test_a_lockspace_is_joined_when_it_is_needed(hosts: TwoHosts, daemons: SanlockDaemons) -> None:
    """A daemon that has just started joins on the agent's word, and until then the host says that it waits."""
    daemons.listen("host-c")
    try:
        late = leases_of(daemons, "host-c", 3)
        facts = await late.facts()
        assert facts is not None
        assert facts.problem is not None
        assert facts.problem.what == "lockspace vmferry is not joined yet with host id 3"

        async def is_joined() -> bool:
            facts = await late.facts()
            return facts is not None and facts.problem is None

        await until(is_joined, 60.0)
        with process(await late.starting(LATE, taking=True)) as here:
            assert await late.missing(LATE, here) == ()
    finally:
        daemons.kill("host-c")


async def test_two_hosts_that_make_a_lease_at_once_have_one(hosts: TwoHosts) -> None:
    """Of two new files one gets the name, and nothing of the other stays."""
    specs = [replace(SPEC, disks=(Disk(f"/srv/nfs/new-{number}.raw"),)) for number in range(5)]
    for spec in specs:
        await asyncio.gather(hosts.a.starting(spec, taking=True), hosts.b.starting(spec, taking=True))
        with process(await hosts.a.starting(spec, taking=True)):
            assert "host id 1" in str(await hosts.b.why_not(spec))
    names = [path.name for path in hosts.daemons.leases.iterdir()]
    assert [name for name in names if name.startswith(".")] == []
    assert {f"{lease_name(spec.disks[0].path)}.lease" for spec in specs} <= set(names)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_host_that_dies_keeps_its_leases_for_a_while(
    daemons: SanlockDaemons, hosts: TwoHosts, ended: ExitStack
) -> None:
    """A host that falls silent has its leases until its time is over, which is told; then another host gets them."""
    ended.callback(daemons.kill, "host-d")
    daemons.start("host-d", 4)
    dying = leases_of(daemons, "host-d", 4)
    with (
        process(await dying.starting(DYING, taking=True)),
        process(await hosts.b.starting(DYING, taking=False)) as there,
    ):
        await asyncio.sleep(3 * IO_TIMEOUT_S)  # it was seen alive
        daemons.freeze("host-d")
        told = set()

        async def can() -> bool:
            try:
                await hosts.b.take(DYING, there)
            except Refused as error:
                told.add(error.what.partition("vmferry, ")[2])
                return False
            return True

        took = await until(can, DEAD_AFTER_S + 30)
        assert took > DEAD_AFTER_S - 5 * IO_TIMEOUT_S
        assert told == {
            "which is alive",
            f"which is silent: the lease can be taken {DEAD_AFTER_S} s after its last sign of life",
        }
        assert await hosts.b.missing(DYING, there) == ()


@pytest.mark.slow
async def test_a_daemon_that_was_killed_leaves_the_leases_to_its_next_life(
    daemons: SanlockDaemons, hosts: TwoHosts, ended: ExitStack
) -> None:
    """A process whose daemon was killed has no lease any more, and is told apart; the host's next life frees them."""
    ended.callback(daemons.kill, "host-e")
    daemons.start("host-e", 5)
    leases = leases_of(daemons, "host-e", 5)
    with process(await leases.starting(KILLED, taking=True)) as here:
        daemons.kill("host-e")
        with pytest.raises(Broken, match="Connection refused"):
            await leases.missing(KILLED, here)
        with process(await hosts.b.starting(KILLED, taking=False)) as there:
            assert not await can_take(hosts.b, there, KILLED)
            daemons.start("host-e", 5)
            assert await leases.missing(KILLED, here) == (KILLED.disks[0].path,)
            await until(lambda: can_take(hosts.b, there, KILLED), DEAD_AFTER_S / 2)


@pytest.mark.slow
async def test_a_host_that_loses_its_storage_ends_its_processes(daemons: SanlockDaemons) -> None:
    """When it could not renew for 8 time-outs the daemon ends whoever has a lease, with SIGTERM first."""
    directory = daemons.leases / "gone"
    lockspace = daemons.make_lockspace("gone", directory)
    daemons.listen("host-f")
    daemons.join("host-f", 6, "gone", lockspace)
    leases = leases_of(daemons, "host-f", 6, lockspace="gone", directory=directory)
    begun = await leases.starting(LOST, taking=True)
    child = subprocess.Popen([*begun, "-", "", "--", "/bin/sleep", "1000"])  # noqa: ASYNC220 - over at once
    try:
        await until(lambda: leases.is_registered(child.pid), 60.0)
        os.truncate(lockspace, 0)
        lost_at = time.monotonic()
        assert await asyncio.to_thread(child.wait, 60.0) == -signal.SIGTERM
        assert time.monotonic() - lost_at > 5 * IO_TIMEOUT_S

        async def is_told() -> bool:
            facts = await leases.facts()
            return facts is not None and facts.problem is not None

        await until(is_told, 60.0)
    finally:
        child.kill()
        child.communicate()
        daemons.kill("host-f")
