"""The door to libvirt's daemons, on libvirt's own imitation and where nobody answers."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import libvirt
import pytest

from vmferry.core.errors import BadInput, Broken, Denied, NotFound, Refused, TimedOut, Unreachable, VmferryError
from vmferry.libvirt import listening
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.facts import Domain, DomainState, XmlKind
from vmferry.libvirt.listening import Listeners
from vmferry.libvirt.moves.happenings import Turn, Turned
from vmferry.libvirt.moves.request import Request
from vmferry.libvirt.moves.standing import ABSENT, Job, Run

IMITATION = "test:///default"
#: the one domain that it has
TEST_UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"


@pytest.fixture
async def connection() -> AsyncIterator[LibvirtConnection]:
    """A connection to libvirt's imitation."""
    made = await LibvirtConnection.connect(IMITATION, read_only=True)
    yield made
    await made.close()


async def test_domains_are_listed_and_looked_at(connection: LibvirtConnection) -> None:
    """A domain has its name, UUID, state and whether it is defined; its XML is what libvirt says."""
    (domain,) = await connection.domains()
    assert domain == Domain("test", domain.uuid, DomainState.RUNNING, is_persistent=True)
    assert domain == await connection.domain("test")
    assert "<name>test</name>" in await connection.domain_xml("test")
    assert await connection.domain_xml("test", XmlKind.INACTIVE) != await connection.domain_xml("test")
    assert "<host>" in await connection.capabilities()


async def test_a_domain_stops_and_goes_on() -> None:
    """Its state is what it was told last; a domain that is not there is told nothing."""
    connection = await LibvirtConnection.connect(IMITATION)
    await connection.suspend("test")
    assert (await connection.domain("test")).state is DomainState.PAUSED
    await connection.resume("test")
    assert (await connection.domain("test")).state is DomainState.RUNNING
    for order in (connection.suspend, connection.resume):
        with pytest.raises(NotFound, match=r"(pause|resume) of domain web-7: Domain not found"):
            await order("web-7")
    await connection.close()


async def test_orders_need_more_than_reading(connection: LibvirtConnection) -> None:
    """Over a read-only connection each is denied, with what to do, and nothing happens."""
    for order in (connection.suspend, connection.resume, connection.abort, connection.start_postcopy):
        with pytest.raises(Denied, match="connect without read-only"):
            await order("test")
    assert (await connection.domain("test")).state is DomainState.RUNNING


async def test_a_domain_that_is_not_there_is_not_found(connection: LibvirtConnection) -> None:
    """The error says at which daemon no such domain is, and what to do."""
    for call in (connection.domain, connection.domain_xml, connection.job):
        with pytest.raises(
            NotFound, match=r"libvirt at test:///default, .*domain web-7: Domain not found; `virsh list"
        ):
            await call("web-7")


async def test_a_read_only_connection_denies_what_would_need_more() -> None:
    """It is denied with what to do, and the connection goes on."""
    connection = await LibvirtConnection.connect(IMITATION, read_only=True)
    with pytest.raises(Denied, match=r"virDomainGetXMLDesc with secure flag; connect without read-only"):
        await connection.domain_xml("test", XmlKind.MIGRATABLE)
    with pytest.raises(Denied, match="read only access prevents virConnectGetDomainCapabilities"):
        await connection.domain_capabilities("pc-q35-7.2", "kvm")
    assert (await connection.domain("test")).name == "test"
    await connection.close()


async def test_what_a_libvirt_cannot_say_is_refused(connection: LibvirtConnection) -> None:
    """The imitation has no jobs: it is not taken for a domain without one."""
    with pytest.raises(Refused, match="job of domain test: this function is not supported"):
        await connection.job("test")


async def test_what_happens_to_a_domain_is_told() -> None:
    """The daemon's own words come in turn, of that domain, and only until the end of the block."""
    connection = await LibvirtConnection.connect(IMITATION)
    async with connection.listening("test") as heard, asyncio.timeout(30):
        async with connection.listening("test") as another:  # libvirt itself takes one for each event
            await connection.suspend("test")
            assert (await heard.get()) == (await another.get()) == Turned(Turn.SUSPENDED, 0)
        await connection.resume("test")
        assert (await heard.get()) == Turned(Turn.RESUMED, 0)
    await connection.suspend("test")
    await connection.resume("test")
    await asyncio.sleep(0.1)
    assert heard.empty()
    await connection.close()


async def test_how_a_domain_stands(tmp_path: Path) -> None:
    """It runs, is paused by somebody, is off, and is gone; the daemon's own words are kept."""
    text = f"<domain type='test'><name>web-7</name><uuid>{TEST_UUID}</uuid><memory>8192</memory>"
    node = tmp_path / "node.xml"
    node.write_text(f"<node>{text}<os><type>hvm</type></os></domain></node>")
    connection = await LibvirtConnection.connect(f"test://{node}")
    runs = await connection.standing("web-7")
    assert (runs.run, runs.job, runs.uuid, runs.is_persistent) == (Run.RUNS, Job.NONE, TEST_UUID, True)
    await connection.suspend("web-7")
    paused = await connection.standing("web-7")
    assert (paused.run, paused.says) == (Run.PAUSED, "paused (user)")
    await connection.destroy("web-7")
    off = await connection.standing("web-7")
    assert (off.run, off.is_defined, off.says) == (Run.OFF, True, "shutoff (destroyed)")
    await connection.undefine("web-7")
    assert await connection.standing("web-7") == ABSENT
    await connection.close()


async def test_nobody_can_listen_to_a_domain_that_is_not_there(connection: LibvirtConnection) -> None:
    """It is told at once, not by silence."""
    with pytest.raises(NotFound, match="events of domain web-7"):
        async with connection.listening("web-7"):
            pass


async def test_nothing_is_printed(connection: LibvirtConnection, capfd: pytest.CaptureFixture[str]) -> None:
    """What libvirt's own handler prints of each error stays unsaid."""
    with pytest.raises(NotFound):
        await connection.domain("web-7")
    assert capfd.readouterr() == ("", "")


async def test_a_closed_connection_takes_no_calls(connection: LibvirtConnection) -> None:
    """Closing twice is fine; a call after it is told."""
    await connection.close()
    await connection.close()
    with pytest.raises(Broken, match="the connection is closed or lost; connect again"):
        await connection.domains()


#: (URI, what it is, words of it)
NOBODY: list[tuple[str, type[VmferryError], str]] = [
    ("qemu+tcp://127.0.0.1:1/system", Unreachable, "Connection refused"),
    ("qemu+tcp://nosuch.invalid/system", Unreachable, "look at the host's name"),
    ("qemu+unix:///system?socket=/nonexistent", Unreachable, "check that libvirtd"),
    ("qemu+tls://127.0.0.1:1/system?pkipath=/nonexistent", Denied, "client certificate"),
    ("xen:///", BadInput, "scheme 'xen'"),
]


@pytest.mark.parametrize(("uri", "kind", "words"), NOBODY)
async def test_a_daemon_that_cannot_be_reached_is_told(uri: str, kind: type[VmferryError], words: str) -> None:
    """The error is of the right kind, names the URI and says what to do."""
    with pytest.raises(VmferryError) as caught:
        await LibvirtConnection.connect(uri)
    assert type(caught.value) is kind
    assert f"libvirt at {uri}" in str(caught.value).replace("'", "")
    assert words in str(caught.value)
    assert caught.value.fix


#: what ssh says before it ends -> (what it is, word of what to do)
SSH: dict[str, tuple[type[VmferryError], str]] = {
    "Host key verification failed.": (Denied, "accept it: `ssh HOST`"),
    "root@host-b: Permission denied (publickey,password).": (Denied, "an ssh key"),
    "ssh: Could not resolve hostname host-b: Name or service not known": (Unreachable, "the host's name"),
    "ssh: connect to host host-b port 22: Connection refused": (Unreachable, "libvirtd"),
    "sh: 1: virt-ssh-helper: not found": (Broken, "netcat"),
}


@pytest.mark.parametrize("said", SSH)
async def test_what_ssh_says_is_understood(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose key is unknown is told from a user who may not come in, and both from a host that is away."""
    kind, fix = SSH[said]
    ssh = tmp_path / "ssh"
    # The real one takes a while to fail; by then libvirt has written what it would say first.
    first = "head -c 28 >/dev/null"
    ssh.write_text(f"#!/bin/sh\necho \"$@\" >{tmp_path}/arguments\n{first}\necho '{said}' >&2\nexit 255\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(VmferryError) as caught:
        await LibvirtConnection.connect("qemu+ssh://root@host-b/system")
    assert (type(caught.value), fix in str(caught.value.fix)) == (kind, True), caught.value
    assert said in str(caught.value)
    assert "BatchMode=yes" in (tmp_path / "arguments").read_text()


class Hanging:
    """libvirt's connection to a daemon that does not answer until it is let go."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.released = threading.Event()
        self.calls: list[str] = []

    def listAllDomains(self, flags: int) -> list[Any]:  # noqa: N802  # libvirt's name
        """Hang."""
        self.calls.append("listAllDomains")
        self.called.set()
        self.released.wait(60)
        return []

    def close(self) -> None:
        """Hang as well."""
        self.calls.append("close")
        self.released.wait(60)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    """A daemon that hangs until the test is over; then its threads end."""
    made = Hanging()
    before = threading.active_count()
    yield made
    made.released.set()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


async def test_a_daemon_that_hangs_holds_nobody_up(hanging: Hanging) -> None:
    """The loop goes on meanwhile, the call ends at its limit, and the connection takes no second one to hang in."""
    connection = LibvirtConnection("qemu:///system", hanging, time_limit_s=0.2)
    asked = asyncio.create_task(connection.domains())
    assert await asyncio.to_thread(hanging.called.wait, 30)  # the loop runs while the call hangs
    assert not hanging.released.is_set()
    with pytest.raises(TimedOut, match=r"libvirt at qemu:///system, its domains: no answer within 0.2 s"):
        await asked
    with pytest.raises(Broken, match="closed or lost"):
        await connection.domains()
    async with asyncio.timeout(30):  # half of what closing hangs
        await connection.close()
    assert hanging.calls.count("listAllDomains") == 1


async def test_a_connection_that_comes_too_late_is_closed(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it any more, so it must not stay open."""
    closed = threading.Event()
    late = SimpleNamespace(close=closed.set, setKeepAlive=lambda _interval, _count: 0)

    def open_late(_: str) -> object:
        hanging.released.wait(60)
        return late

    monkeypatch.setattr("libvirt.open", open_late)
    with pytest.raises(TimedOut, match="cannot be reached: no answer within 0.1 s"):
        await LibvirtConnection.connect("qemu:///system", time_limit_s=0.1)
    hanging.released.set()
    assert await asyncio.to_thread(closed.wait, 10)


async def test_without_the_bindings_it_is_said_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt-python is an extra: without it the error says so, and that a file does as well."""
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(Broken, match=r"libvirt-python is not installed.*pip install 'vmferry\[libvirt\]'.*as a file"):
        await LibvirtConnection.connect(IMITATION)


class Failed(libvirt.libvirtError):  # type: ignore[misc]  # the bindings have no types
    """An error as a daemon sends it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.err = (code, 10, message, 2, None, None, None, 0, 0)


class Arriving:
    """libvirt's connection to a host at which a domain is active, and the domain.

    Args:
        said: how it answers for the domain's job.
    """

    def __init__(self, said: dict[str, int] | Exception) -> None:
        self._said = said

    def lookupByName(self, _name: str) -> Arriving:  # noqa: N802  # libvirt's name
        """Return the domain."""
        return self

    def state(self) -> list[int]:
        """Return that it runs, migrated."""
        return [1, 2]

    def isPersistent(self) -> int:  # noqa: N802  # libvirt's name
        """Return that it is not defined."""
        return 0

    def connect(self) -> Arriving:
        """Return the connection."""
        return self

    def getType(self) -> str:  # noqa: N802  # libvirt's name
        """Return whose driver it is."""
        return "QEMU"

    def UUIDString(self) -> str:  # noqa: N802  # libvirt's name
        """Return its UUID."""
        return TEST_UUID

    def jobStats(self) -> dict[str, int]:  # noqa: N802  # libvirt's name
        """Answer."""
        if isinstance(self._said, Exception):
            raise self._said
        return self._said


#: what libvirt answers for the job of an active domain -> which it has
JOBS: list[tuple[dict[str, int] | Exception, Job]] = [
    ({"type": 0}, Job.NONE),
    ({"type": 2, "operation": 5}, Job.OUT),
    ({"type": 2, "operation": 8}, Job.OTHER),
    (Failed(84, "Migrationsstatistiken sind nur auf dem Quellrechner verfügbar"), Job.IN),
    (Failed(84, "migration statistics are available only on the source host"), Job.IN),
    (Failed(55, "Requested operation is not valid: domain is not running"), Job.OTHER),
    (Failed(3, "this function is not supported by the connection driver: virDomainGetJobStats"), Job.OTHER),
]


@pytest.mark.parametrize(("said", "job"), JOBS)
async def test_that_there_is_no_job_is_only_what_libvirt_says(said: dict[str, int] | Exception, job: Job) -> None:
    """A refusal, in whatever language, is never taken for a domain without a job."""
    assert (await LibvirtConnection("qemu:///system", Arriving(said)).standing("web-7")).job is job


async def test_a_domain_that_goes_as_it_is_looked_at_is_absent() -> None:
    """Its job cannot be asked for any more: it is gone."""
    gone = Arriving(Failed(42, "Domain not found"))
    assert await LibvirtConnection("qemu:///system", gone).standing("web-7") == ABSENT


async def test_a_word_that_is_none_is_told() -> None:
    """What the bindings cannot read or write is an error with its place, no traceback."""
    connection = LibvirtConnection("qemu:///system", Arriving(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no start")))
    with pytest.raises(Broken, match=r"libvirt at qemu:///system, state of domain web-7: 'utf-8' codec"):
        await connection.standing("web-7")


async def test_lists_are_lists_to_libvirt_too() -> None:
    """JSON keeps several words as a list: it is not one word with brackets."""
    told: list[Any] = []
    domain = SimpleNamespace(migrateToURI3=lambda *given: told.append(given))
    connection = LibvirtConnection("qemu:///system", SimpleNamespace(lookupByName=lambda _: domain))
    parameters: Any = {"migrate_disks": ["vda", "vdb"], "bandwidth": 7}
    await connection.move("web-7", "qemu+tcp://host-b/system", Request((), parameters))
    assert told == [("qemu+tcp://host-b/system", {"migrate_disks": ["vda", "vdb"], "bandwidth": 7}, 0)]


class Telling:
    """libvirt's connection, which counts who listens."""

    def __init__(self) -> None:
        self.events: set[int] = set()
        self.hears_of_loss = 0

    def lookupByName(self, name: str) -> str:  # noqa: N802  # libvirt's name
        """Return the domain."""
        return name

    def registerCloseCallback(self, _call: object, _opaque: None) -> None:  # noqa: N802  # libvirt's name
        """Tell of a loss."""
        self.hears_of_loss += 1

    def unregisterCloseCallback(self) -> None:  # noqa: N802  # libvirt's name
        """Tell of none."""
        self.hears_of_loss -= 1

    def domainEventRegisterAny(self, _domain: str, event: int, _call: object, _opaque: None) -> int:  # noqa: N802
        """Tell of an event."""
        self.events.add(event)
        return event

    def domainEventDeregisterAny(self, number: int) -> None:  # noqa: N802  # libvirt's name
        """Tell of it no more."""
        self.events.remove(number)


def test_whoever_still_listens_is_let_go_with_the_connection() -> None:
    """Each event holds the connection: closing takes back what nobody took back, once, and also beside a call."""
    connection = Telling()
    listeners = Listeners(connection)
    tell = [].append  # type: ignore[var-annotated]  # nothing is told
    listeners.add(libvirt, "web-7", tell)
    assert len(connection.events) == 3
    for _ in range(2):
        listeners.close(libvirt)
        assert (connection.events, connection.hears_of_loss) == (set(), 0)
    listeners.remove(libvirt, "web-7", tell)


def test_a_call_that_hangs_does_not_keep_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever hangs in the daemon has the lock; closing goes on without it."""
    monkeypatch.setattr(listening, "_LOCK_S", 0.05)
    connection = Telling()
    listeners = Listeners(connection)
    listeners.add(libvirt, "web-7", [].append)  # type: ignore[arg-type]  # nothing is told
    with listeners._lock:  # as a call that hangs has it
        listeners.close(libvirt)
    assert connection.events == set()
