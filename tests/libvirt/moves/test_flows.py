"""From daemon to daemon, or through this process: which is taken, and what is told."""

from __future__ import annotations

from typing import Any

import pytest

from vmferry.core.errors import Broken
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.moves.flows import EitherFlow, is_unreached
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


class Daemon:
    """libvirt's connection."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    def lookupByName(self, name: str) -> Domain:  # noqa: N802  # libvirt's name
        """Return the domain."""
        assert name == "web-7"
        return self._domain


async def moved(flow: str | None, failure: str | None = None) -> tuple[list[tuple[str, Any, int]], list[str], object]:
    """Move a domain; returns what libvirt was asked, what was told, and the destination's connection."""
    domain, told, there = Domain(failure), list[str](), object()
    source = LibvirtConnection("qemu:///system", Daemon(domain))
    carrier = EitherFlow(source, LibvirtConnection(THERE_URI, there), DIRECT_REQUEST, flow, told.append)
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


#: what the source's daemon says -> whether it is that it does not reach the other one at that address
SAID = {
    ("unable to connect to server at 'host-b:16514': Connection refused", "qemu+tls://host-b/system"): True,
    ("unable to connect to server at 'host-b:16509': No route to host", "qemu+tls://host-b/system"): False,
    ("unable to connect to server at '10.0.0.2:7': Connection refused", "qemu+tcp://10.0.0.2:7/system"): True,
    ("unable to resolve address 'host-b' service '16509': Name or service not known", THERE_URI): True,
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
