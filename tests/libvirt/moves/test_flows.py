"""From daemon to daemon, or through this process: which is taken, and what is told."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import libvirt
import pytest

from vmferry.core.errors import Broken, Refused
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.moves.flows import EitherFlow, is_unreached
from vmferry.libvirt.moves.moving import LibvirtMove
from vmferry.libvirt.moves.request import Request
from vmferry.libvirt.moves.tuning import DIRECT, PEERS

THERE_URI = "qemu+tcp://host-b/system"
PEER_REQUEST, DIRECT_REQUEST = Request(("LIVE", "PEER2PEER")), Request(("LIVE",))
LIVE, PEER2PEER = 1, 2


class Domain:
    """libvirt's object; the two daemons may not reach each other, or the move itself fails."""

    def __init__(self, failure: str | None) -> None:
        self.calls: list[tuple[str, Any, int]] = []
        self._failure = failure

    def migrateToURI3(self, uri: str, parameters: dict[str, Any], flags: int) -> None:  # noqa: N802  # libvirt's name
        """Move it, or fail."""
        self.calls.append(("peers", uri, flags))
        if self._failure is not None:
            raise Broken(f"move of domain web-7: {self._failure}")

    def migrate3(self, there: object, parameters: dict[str, Any], flags: int) -> None:
        """Move it through this process."""
        self.calls.append(("direct", there, flags))


class Failed(libvirt.libvirtError):  # type: ignore[misc]  # the bindings have no types
    """An error as a daemon sends it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.err = (code, 10, message, 2, None, None, None, 0, 0)


class There:
    """libvirt's connection to the destination, which has no such domain, or half of one."""

    def __init__(self, *, has_half: bool = False) -> None:
        self._has_half = has_half

    def lookupByName(self, name: str) -> object:  # noqa: N802  # libvirt's name
        """Return the half that is there."""
        if not self._has_half:
            raise Failed(42, f"no domain with matching name '{name}'")
        return SimpleNamespace(
            state=lambda: [3, 2], isPersistent=lambda: 0, UUIDString=lambda: "", jobStats=lambda: {"type": 0}
        )


class Daemon:
    """libvirt's connection."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    def lookupByName(self, name: str) -> Domain:  # noqa: N802  # libvirt's name
        """Return the domain."""
        assert name == "web-7"
        return self._domain


async def moved(
    flow: str | None, failure: str | None = None, *, has_half: bool = False, given_up: bool = False
) -> tuple[list[tuple[str, Any, int]], list[str], object]:
    """Move a domain; returns what libvirt was asked, what was told, and the destination's connection."""
    domain, told, there = Domain(failure), list[str](), There(has_half=has_half)
    source = LibvirtConnection("qemu:///system", Daemon(domain))
    carrier = EitherFlow(source, LibvirtConnection(THERE_URI, there), DIRECT_REQUEST, flow, told.append)
    if given_up:
        carrier.give_up()
    try:
        await carrier.move("web-7", THERE_URI, PEER_REQUEST)
    except Broken:
        return [*domain.calls, ("failed", None, 0)], told, there
    return domain.calls, told, there


async def test_daemons_that_reach_each_other_move_it_by_themselves() -> None:
    """This process is not between them."""
    calls, told, _ = await moved(None)
    assert calls == [("peers", THERE_URI, LIVE | PEER2PEER)]
    assert told == []


async def test_daemons_that_do_not_reach_each_other() -> None:
    """This process stands between them, with the flags of that flow, and says so."""
    calls, told, there = await moved(None, "unable to connect to server at 'host-b:16509': Connection refused")
    assert calls == [("peers", THERE_URI, LIVE | PEER2PEER), ("direct", there, LIVE)]
    (sentence,) = told
    assert "this process stands between the two daemons instead: keep it running" in sentence


@pytest.mark.parametrize(
    ("flow", "failure", "kinds"),
    [
        (PEERS, "unable to connect to server at 'host-b:16509': Connection refused", ["peers", "failed"]),
        (None, "unable to connect to server at 'host-b:49152': Connection refused", ["peers", "failed"]),
        (None, "internal error: QEMU failed", ["peers", "failed"]),
        (DIRECT, None, ["direct"]),
    ],
)
async def test_a_move_is_never_begun_twice(flow: str | None, failure: str | None, kinds: list[str]) -> None:
    """Another failure than of the first connection is the end, and so is a flow that was asked for."""
    calls, told, _ = await moved(flow, failure)
    assert [kind for kind, _, _ in calls] == kinds
    assert told == []


@pytest.mark.parametrize(("has_half", "given_up"), [(True, False), (False, True)], ids=["half there", "given up"])
async def test_nothing_is_begun_beside_half_a_move_or_after_ctrl_c(has_half: bool, given_up: bool) -> None:
    """The daemons do not reach each other, and still no other flow is begun."""
    failure = "unable to connect to server at 'host-b:16509': Connection refused"
    calls, told, _ = await moved(None, failure, has_half=has_half, given_up=given_up)
    assert [kind for kind, _, _ in calls] == ["peers", "failed"]
    assert told == []


class Aborting:
    """libvirt's connection, and the domain on it, whose job ends when it is told so."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.aborted = 0
        self._failure = failure

    def lookupByName(self, _name: str) -> Aborting:  # noqa: N802  # libvirt's name
        """Return the domain, or fail."""
        if self._failure is not None:
            raise self._failure
        return self

    def abortJob(self) -> None:  # noqa: N802  # libvirt's name
        """End the job."""
        self.aborted += 1

    def setKeepAlive(self, _interval: int, _count: int) -> None:  # noqa: N802  # libvirt's name
        """Ask whether the daemon lives."""

    def close(self) -> None:
        """Let go."""


@pytest.mark.parametrize(
    ("failure", "aborted"),
    [
        (Failed(38, "client socket is closed"), 1),
        (Failed(38, "connection closed due to keepalive timeout"), 1),
        (Failed(55, "no job is active on the domain"), 0),
    ],
)
async def test_a_move_is_given_up_over_a_new_connection_where_the_old_one_is_lost(
    failure: Exception, aborted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that answers and has no job is not asked again; either way no other flow is begun afterwards."""
    another = Aborting()
    monkeypatch.setattr("libvirt.open", lambda _uri: another)
    source = LibvirtConnection("qemu:///system", Aborting(failure))
    carrier = EitherFlow(source, source, DIRECT_REQUEST, None, lambda _: None)
    move = LibvirtMove(source, carrier, "web-7", THERE_URI, PEER_REQUEST)
    with contextlib.nullcontext() if aborted else pytest.raises(Refused):
        await move.abort()
    assert another.aborted == aborted
    assert carrier.given_up.is_set()


class Arrived:
    """libvirt's connection to the destination, and the domain on it, held at its arrival or let run by somebody."""

    def __init__(self, state: list[int], failure: Exception | None = None) -> None:
        self.resumed = 0
        self._state, self._failure = state, failure

    def lookupByName(self, _name: str) -> SimpleNamespace:  # noqa: N802  # libvirt's name
        """Return the domain."""
        return SimpleNamespace(
            resume=self._resume,
            state=lambda: self._state,
            isPersistent=lambda: 0,
            UUIDString=lambda: "",
            jobStats=lambda: {"type": 0},
        )

    def _resume(self) -> None:
        self.resumed += 1
        if self._failure is not None:
            raise self._failure


async def held_move(there: Arrived, failure: str | None = None) -> None:
    """Move a domain that is held at its arrival."""
    source = LibvirtConnection("qemu:///system", Daemon(Domain(failure)))
    held_at = LibvirtConnection(THERE_URI, there)
    await LibvirtMove(source, source, "web-7", THERE_URI, PEER_REQUEST, held_at=held_at).move()


async def test_what_is_held_at_its_arrival_is_let_run_after_libvirts_last_word() -> None:
    """A move that failed lets nothing run there; one that somebody has let run needs nobody."""
    there = Arrived([3, 1])
    await held_move(there)
    assert there.resumed == 1
    with pytest.raises(Broken, match="QEMU failed"):
        await held_move(there, "QEMU failed")
    assert there.resumed == 1
    await held_move(Arrived([1, 5], Failed(55, "domain is already running")))
    with pytest.raises(Refused, match="it has died"):
        await held_move(Arrived([5, 3], Failed(55, "it has died")))


#: what the source's daemon says -> whether it is that it does not reach the other one at that address
SAID = {
    ("unable to connect to server at 'host-b:16514': Connection refused", "qemu+tls://host-b/system"): True,
    ("unable to connect to server at 'host-b:16509': No route to host", "qemu+tls://host-b/system"): False,
    ("unable to connect to server at '10.0.0.2:7': Connection refused", "qemu+tcp://10.0.0.2:7/system"): True,
    ("unable to resolve address 'host-b' service '16509': Name or service not known", THERE_URI): True,
    ("unable to resolve address 'host-b' service '49152': Name or service not known", THERE_URI): False,
    ("Cannot recv data: Host key verification failed.: Connection reset by peer", "qemu+ssh://host-b/system"): True,
    ("Cannot recv data: root@host-b: Permission denied (publickey).", "qemu+ssh://host-b/system"): True,
    ("Cannot read CA certificate '/etc/pki/CA/cacert.pem': No such file", "qemu+tls://host-b/system"): True,
    ("internal error: connection closed due to keepalive timeout", THERE_URI): False,
    ("client socket is closed", THERE_URI): False,
    ("operation aborted: migration out job: canceled by client", THERE_URI): False,
    ("Cannot open '/a.img': Permission denied", THERE_URI): False,
}


@pytest.mark.parametrize(("said", "uri"), SAID)
def test_what_says_that_a_daemon_was_not_reached(said: str, uri: str) -> None:
    """Only what libvirt says before it has begun: a link that breaks later is another thing."""
    assert is_unreached(f"libvirt at qemu:///system, move of domain web-7 to {uri}: {said}", uri) is SAID[said, uri]
