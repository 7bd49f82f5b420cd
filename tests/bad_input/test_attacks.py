"""Callers who may not, or who do not behave: refused, and everybody else is served on."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bad_input.conftest import Vmferry

from vmferry.agent.listener import MOST_PER_ADDRESS
from vmferry.lab.commands import Ran
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.inside import socket_in
from vmferry.pki import certificates as certs
from vmferry.pki.authority import Authority
from vmferry.pki.identity import IdentityDirectory
from vmferry.pki.membership import Role

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


async def as_operator(lab: Lab, identity: Path, *arguments: str) -> Ran:
    """Run the command line on host-a as somebody else."""
    command = ["env", f"VMFERRY_CONFIG={identity}", *lab.command("host-a", *arguments)]
    return await lab.run(command, timeout_s=60)


@contextlib.contextmanager
def connected(lab: Lab, identity: Path | None = None, source: str = "host-a") -> Iterator[socket.socket]:
    """Open a connection from one host to host-b's agent; with an identity through TLS."""
    assert lab.network is not None
    member = IdentityDirectory(lab.operator).membership().host("host-b")
    plain = socket_in(lab.network.namespace(source), socket.AF_INET, socket.SOCK_STREAM)
    with plain:
        plain.settimeout(60)
        plain.connect((member.address, member.port))
        if identity is None:
            yield plain
            return
        context = IdentityDirectory(identity).client_context()
        with context.wrap_socket(plain, server_hostname=member.identity.server_name) as secure:
            yield secure


def asked(connection: socket.socket, request: bytes) -> tuple[int, str]:
    """Send a raw request and return status and text of the answer, 0 when the connection is closed instead."""
    connection.sendall(request)
    answer = connection.recv(65536)
    if not answer:
        return 0, ""
    return int(answer.split()[1]), answer.decode()


def get(path: str) -> bytes:
    """Return a plain request."""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def post(path: str, body: bytes, announced: int | None = None) -> bytes:
    """Return a request with a body."""
    length = len(body) if announced is None else announced
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode() + body


def make_operator(lab: Lab, name: str, lifetime: dt.timedelta) -> Path:
    """Make the identity of an operator whose certificate is valid for so long from an hour ago, signed by the CA."""
    authority = Authority.open(lab.hosts["host-a"].state_dir / "ca")
    member = authority.membership().operators[0]
    key = certs.make_key()
    certificate = certs.sign_identity(
        member.identity,
        key.public_key(),
        ca=authority.certificate,
        ca_key=authority.key,
        now=dt.datetime.now(dt.UTC) - dt.timedelta(hours=1),
        lifetime=lifetime,
    )
    path = lab.directory / name
    path.mkdir(mode=0o700)
    for file in ("ca.pem", "membership.json"):
        (path / file).write_bytes((lab.operator / file).read_bytes())
    (path / "identity.pem").write_bytes(certs.dump_key(key) + certs.dump_certificate(certificate))
    return path


async def test_an_expired_certificate_gets_nothing(lab: Lab, web7: GuestRun, untouched: None) -> None:
    """The command says so before it asks; an agent that is asked nevertheless closes the connection."""
    late = make_operator(lab, "late", dt.timedelta(minutes=5))
    ran = await as_operator(lab, late, "guest", "stop", "web-7", "--force")
    assert (ran.exit_code, "expired" in ran.stderr) == (4, True), ran
    with contextlib.suppress(ssl.SSLError, ConnectionError), connected(lab, late) as connection:
        assert asked(connection, get("/v1/guests"))[0] == 0


async def test_another_fleets_certificate_gets_nothing(lab: Lab, web7: GuestRun, untouched: None) -> None:
    """An operator of another fleet who knows our addresses is refused, and told that it is the certificate."""
    other = lab.directory / "other"
    ran = await as_operator(lab, other, "ca", "init", "--ca-dir", str(lab.directory / "other-ca"))
    assert ran.exit_code == 0, ran
    for file in ("ca.pem", "membership.json"):
        (other / file).write_bytes((lab.operator / file).read_bytes())
    ran = await as_operator(lab, other, "guest", "stop", "web-7", "--force")
    assert (ran.exit_code, "refuses our certificate" in ran.stderr) == (4, True), ran


async def test_an_operator_who_may_look_may_only_look(lab: Lab, web7: GuestRun, untouched: None) -> None:
    """The role read lists and shows; every order is denied with the role that it needs."""
    ca = ["--ca-dir", str(lab.hosts["host-a"].state_dir / "ca")]
    bob = lab.directory / "bob"
    await lab.must("host-a", "operator", "add", "bob", "--role", Role.READ, "--out", str(bob), *ca)
    try:
        assert (await as_operator(lab, bob, "guest", "show", "web-7")).exit_code == 0
        for order in (
            ["guest", "stop", "web-7", "--force"],
            ["migrate", "web-7", "host-b"],
            ["guest", "remove", "web-7"],
        ):
            ran = await as_operator(lab, bob, *order)
            assert (ran.exit_code, "has the role read, this needs operate" in ran.stderr) == (4, True), ran
        with connected(lab, bob) as kept:
            assert asked(kept, get("/v1/guests"))[0] == 200
            await lab.must("host-a", "operator", "remove", "bob", *ca)
            assert asked(kept, get("/v1/guests"))[0] == 403  # the same connection, opened when bob was a member
    finally:
        await lab.cli("host-a", "operator", "remove", "bob", *ca)
    assert (await as_operator(lab, bob, "guest", "list")).exit_code == 4


async def test_an_enrolment_cannot_be_repeated(lab: Lab, web7: GuestRun, untouched: None) -> None:
    """The command that enrolled a host does nothing the second time: its code is worth nothing any more."""
    line = next(text for text in lab.hosts["host-b"].agent.tail(200).splitlines() if "vmferry host add" in text)
    ca = ["--ca-dir", str(lab.hosts["host-a"].state_dir / "ca")]
    for name in ("host-b", "host-c"):
        arguments = ["host", "add", name, *line.split()[4:]]
        ran = await lab.cli("host-a", *arguments, *ca)
        assert ran.exit_code in {2, 4, 6}, ran
    assert {host.name for host in IdentityDirectory(lab.operator).membership().hosts} == {"host-a", "host-b"}


REQUESTS: dict[str, tuple[bytes, int]] = {
    "no HTTP": (b"\x00\xff\x16\x03garbage\r\n\r\n", 400),
    "no JSON": (post("/v1/guests", b'{"a": \xff'), 400),
    "deep JSON": (post("/v1/guests", b"[" * 100_000), 400),
    "too large": (post("/v1/guests", b"x" * 2_000_000), 413),
    "says that it will be too large": (post("/v1/guests", b"x", announced=10**12), 413),
    "two lengths": (
        b"POST /v1/guests HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "a huge header": (get("/v1/host").replace(b"x", b"x" * 100_000, 1), 400),
    "a path that climbs": (get("/v1/guests/..%2f..%2fetc"), 404),
    "a name with a null": (get("/v1/guests/web-7%00"), 404),
    "a peer's route": (post("/peer/v1/hello", b"{}"), 403),
    "a number beyond QEMU's": (
        post(
            "/v1/guests/web-7/migrate",
            json.dumps({"destination": "host-a", "options": {"max_bandwidth": 10**40}}).encode(),
        ),
        400,
    ),
}


async def test_garbage_is_answered_with_a_problem(lab: Lab, web7: GuestRun, untouched: None) -> None:
    """Whatever comes: a 4xx problem without a traceback, and the agent goes on."""
    for name, (request, status) in REQUESTS.items():
        with connected(lab, lab.operator) as connection:
            answer = asked(connection, request)
        assert (name, answer[0]) == (name, status)
        assert "application/problem+json" in answer[1]
        assert "Traceback" not in answer[1]


async def test_one_who_hoards_connections_locks_nobody_out(
    lab: Lab, vmferry: Vmferry, web7: GuestRun, untouched: None
) -> None:
    """Silent connections are held up to a limit per address and closed beyond it; other addresses are served."""
    held = []
    with contextlib.ExitStack() as stack:
        for _ in range(MOST_PER_ADDRESS + 20):
            with contextlib.suppress(ConnectionError):
                held.append(stack.enter_context(connected(lab, source="host-b")))
        held[-1].settimeout(5)
        assert held[-1].recv(1) == b""  # one too many: closed at once
        ran = await vmferry("guest", "list", "--json")
        assert (ran.exit_code, json.loads(ran.stdout)["silent"]) == (0, {})
    assert len(held) > MOST_PER_ADDRESS
