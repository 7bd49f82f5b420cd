"""What `vmferry ca`, `vmferry host` and `vmferry operator` do: plain functions that return facts or raise.

Those that change the fleet run where the CA directory is, one at a time. Each publishes a new fleet document, then
tells it to every host; hosts that could not be told are listed (they fetch it by themselves within a minute of being
back).
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from vmferry.api.client import Client, Endpoint
from vmferry.core.errors import BadInput, Broken, Denied, NotFound, TimedOut, Unreachable, VmferryError
from vmferry.core.ids import is_name
from vmferry.pki import certificates as certs
from vmferry.pki.authority import Authority, utc_now
from vmferry.pki.identity import IdentityDirectory
from vmferry.pki.membership import (
    DEFAULT_LIFETIME_S,
    HostMember,
    Membership,
    OperatorMember,
    Role,
    SignedMembership,
)

_TELL_TIME_LIMIT_S = 5.0
#: An agent that was enrolled begins its work within a second or two, and some on a slow host.
_SERVES_WITHIN_S, _LOOK_EVERY_S = 30.0, 0.1
DEFAULT_PORT = 7716


@dataclass(frozen=True, slots=True)
class NewCa:
    """A CA that was made."""

    ca_dir: Path
    identity_dir: Path
    operator: OperatorMember


@dataclass(frozen=True, slots=True)
class Told:
    """Who knows the new fleet document."""

    version: int
    hosts: tuple[str, ...]
    untold: tuple[tuple[str, str], ...]  #: (host, why)


@dataclass(frozen=True, slots=True)
class AddedHost:
    """A host that was enrolled."""

    member: HostMember
    is_authority: bool
    agent_version: str
    told: Told
    silent: str | None  #: why its agent does not answer as a member yet


@dataclass(frozen=True, slots=True)
class RemovedHost:
    """A host that was removed."""

    member: HostMember
    told: Told


@dataclass(frozen=True, slots=True)
class ChangedOperator:
    """An operator that was added or removed."""

    member: OperatorMember
    identity_dir: Path | None  #: where the new identity is
    told: Told


def init_ca(
    ca_dir: Path, identity_dir: Path, *, operator: str = "admin", lifetime_s: int = DEFAULT_LIFETIME_S
) -> NewCa:
    """Make a new fleet: a CA and a first operator with the role operate.

    Args:
        ca_dir: where the CA directory will be.
        identity_dir: where the operator's identity will be.
        operator: their name.
        lifetime_s: of certificates.

    Raises:
        BadInput: there is a CA or an identity there already; nothing was touched.
    """
    _check_name(operator, "operator")
    _check_free(identity_dir)
    authority = Authority.create(ca_dir, lifetime_s=lifetime_s)
    member = OperatorMember(operator, Role.OPERATE, certs.make_enrolment())
    _publish_operator(authority, member, identity_dir)
    return NewCa(ca_dir, identity_dir, member)


def add_host(
    name: str,
    address: str,
    code: str,
    *,
    ca_dir: Path,
    identity_dir: Path,
    port: int = DEFAULT_PORT,
) -> AddedHost:
    """Enrol the agent that printed the code, tell the fleet, and wait until the agent answers as a member.

    Args:
        name: the host's name in the fleet.
        address: IP address or DNS name at which all other hosts reach its agent.
        code: as the agent printed it.
        ca_dir: the CA directory.
        identity_dir: the operator who tells the others.
        port: of its agent.

    Raises:
        BadInput: the name is taken or none, the code is none; nothing was touched.
        Unreachable: nobody answers there; nothing was touched.
        Denied: the agent there did not print this code; the fleet is as it was.
    """
    _check_name(name, "host")
    fingerprint, secret = certs.decode_code(code)
    authority = Authority.open(ca_dir)
    with authority.lock():
        before = authority.membership()
        member = HostMember(name, address, port, certs.make_enrolment())
        membership = before.with_host(member)
        with _enrolling(member, fingerprint) as client:
            reply = client.request("POST", "/enrol/v1/request", {"secret": secret.hex(), "name": name})
            own_ca = certs.dump_certificate(authority.certificate).decode()
            if reply.get("ca") == own_ca:
                membership = replace(membership, authority=name)
            certificate = authority.issue(member.identity, str(reply.get("request")), membership)
            signed = authority.publish(membership)
            body = {
                "secret": secret.hex(),
                "certificate": certs.dump_certificate(certificate).decode(),
                "ca": own_ca,
                "membership": {"document": signed.document, "signature": signed.signature},
            }
            try:
                client.request("POST", "/enrol/v1/finish", body)
            except (TimedOut, Unreachable):
                raise  # it may be a member now: the document keeps it, `host remove` takes it out
            except VmferryError:
                authority.publish(replace(before, version=membership.version + 1))
                raise
        told = _tell(signed, membership, identity_dir, without=member)
    silent = _wait_serving(member, identity_dir)
    return AddedHost(member, membership.authority == name, str(reply.get("agent_version")), told, silent)


def _wait_serving(member: HostMember, identity_dir: Path) -> str | None:
    """Wait until a new host has come from its enrolment to its work: what is asked of it next is answered."""
    ends = time.monotonic() + _SERVES_WITHIN_S
    try:
        context = IdentityDirectory(identity_dir).client_context()
    except VmferryError as error:
        return f"no operator is here who could ask it: {error}"
    while (why := _ask(member, context)) is not None and time.monotonic() < ends:
        time.sleep(_LOOK_EVERY_S)
    return why


def _ask(member: HostMember, context: ssl.SSLContext) -> str | None:
    """Ask a host's agent for what it is; return why it does not say."""
    try:
        with _client(member, context) as client:
            client.request("GET", "/v1/host")
    except VmferryError as error:
        return str(error)
    return None


def remove_host(name: str, *, ca_dir: Path, identity_dir: Path, force: bool = False) -> RemovedHost:
    """Remove a host; its certificate gets nothing from any host that knows the new document.

    Args:
        name: the host.
        ca_dir: the CA directory.
        identity_dir: the operator who tells the others.
        force: also when guests run there, or when it is the one that renews certificates.

    Raises:
        NotFound: no such host.
        BadInput: it has guests, or is the authority, and `force` is not set; nothing was touched.
    """
    authority = Authority.open(ca_dir)
    with authority.lock():
        before = authority.membership()
        member = before.host(name)
        if not force:
            _check_removable(before, member, identity_dir)
        membership = before.without_host(name)
        # The removed host is told too: it had better know.
        told = _tell(authority.publish(membership), membership, identity_dir, also=(member,))
    return RemovedHost(member, told)


def list_hosts(identity_dir: Path) -> Membership:
    """Return the newest fleet document that this operator has (hosts, operators, authority).

    Raises:
        NotFound: there is no identity.
    """
    return IdentityDirectory(identity_dir).membership()


def add_operator(name: str, role: Role, *, ca_dir: Path, identity_dir: Path, out_dir: Path) -> ChangedOperator:
    """Add an operator; their identity is made in `out_dir`, to be moved to their `~/.config/vmferry`.

    Raises:
        BadInput: the name is taken, or `out_dir` holds an identity; nothing was touched.
    """
    _check_name(name, "operator")
    _check_free(out_dir)
    authority = Authority.open(ca_dir)
    with authority.lock():
        member = OperatorMember(name, role, certs.make_enrolment())
        signed, membership = _publish_operator(authority, member, out_dir)
        told = _tell(signed, membership, identity_dir)
    return ChangedOperator(member, out_dir, told)


def remove_operator(name: str, *, ca_dir: Path, identity_dir: Path) -> ChangedOperator:
    """Remove an operator; their certificate gets nothing from any host that knows the new document.

    Raises:
        NotFound: no such operator.
        BadInput: nobody with the role operate would be left; nothing was touched.
    """
    authority = Authority.open(ca_dir)
    with authority.lock():
        before = authority.membership()
        member = before.operator(name)
        membership = before.without_operator(name)
        if not any(other.role is Role.OPERATE for other in membership.operators):
            raise BadInput(f"Operator {name} is the last one who may change anything", fix="add another one first")
        told = _tell(authority.publish(membership), membership, identity_dir)
    return ChangedOperator(member, None, told)


def renew_operator(identity_dir: Path) -> bool:
    """Renew the operator's certificate when less than a third of its lifetime is left; tell whether it was renewed.

    Raises:
        Denied: the certificate has expired, or the operator was removed.
        Unreachable: the host that renews does not answer.
        NotFound: no host renews.
    """
    directory = IdentityDirectory(identity_dir)
    directory.check_valid(utc_now())
    if not certs.needs_renewal(directory.certificate(), utc_now()):
        return False
    membership = directory.membership()
    if membership.authority is None:
        raise NotFound(
            "No host of the fleet has the CA directory, so nobody renews certificates",
            fix="run an agent where the CA directory is (`ca_dir`, docs/agent-file.md), and enrol it there",
        )
    key = certs.make_key()
    with _client(membership.host(membership.authority), directory.client_context()) as client:
        reply = client.request("POST", "/v1/ca/renew", {"request": certs.make_request(key)})
    pem = str(reply.get("certificate")).encode()
    directory.replace_certificate(key, certs.load_certificate(pem, "The renewed certificate"))
    return True


def _publish_operator(
    authority: Authority, member: OperatorMember, directory: Path
) -> tuple[SignedMembership, Membership]:
    """Publish a document with a new operator and store their identity."""
    membership = authority.membership().with_operator(member)
    key = certs.make_key()
    certificate = authority.issue(member.identity, certs.make_request(key), membership)
    signed = authority.publish(membership)
    IdentityDirectory(directory).save(key, certificate, authority.certificate, signed)
    return signed, membership


def _enrolling(member: HostMember, fingerprint: bytes) -> Client:
    """Return a client to an agent that is not enrolled yet, which must hold the key that the code names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def check_peer(der: bytes) -> None:
        if certs.certificate_fingerprint(der) != fingerprint:
            raise Denied(
                f"The agent at {member.address} port {member.port} is not the one that printed this code",
                fix="compare address and code; a host that is enrolled already prints none",
            )

    endpoint = Endpoint(member.name, member.address, member.port, member.identity.server_name)
    return Client(endpoint, context, time_limit_s=30.0, check_peer=check_peer)


def _client(member: HostMember, context: ssl.SSLContext) -> Client:
    """Return a client to an enrolled agent."""
    endpoint = Endpoint(member.name, member.address, member.port, member.identity.server_name)
    return Client(endpoint, context, time_limit_s=_TELL_TIME_LIMIT_S)


def _tell(
    signed: SignedMembership,
    membership: Membership,
    identity_dir: Path,
    *,
    also: Sequence[HostMember] = (),
    without: HostMember | None = None,
) -> Told:
    """Store the new document with the operator, and bring it to every host at the same time."""
    directory = IdentityDirectory(identity_dir)
    members = tuple(member for member in (*membership.hosts, *also) if member != without)
    try:
        directory.accept_membership(signed)
        context = directory.client_context()
    except VmferryError as error:
        return Told(membership.version, (), tuple((member.name, str(error)) for member in members))
    results = _map(lambda member: _tell_one(member, signed, context), members)
    known = tuple(member.name for member, why in zip(members, results, strict=True) if why is None)
    untold = tuple((member.name, why) for member, why in zip(members, results, strict=True) if why is not None)
    return Told(membership.version, known, untold)


def _tell_one(member: HostMember, signed: SignedMembership, context: ssl.SSLContext) -> str | None:
    """Bring the document to one host; return why it does not have it."""
    try:
        with _client(member, context) as client:
            client.request("PUT", "/v1/membership", {"document": signed.document, "signature": signed.signature})
    except VmferryError as error:
        return str(error)
    return None


def _map(function: Callable[[HostMember], str | None], members: Sequence[HostMember]) -> list[str | None]:
    """Call a function for all hosts at once."""
    if not members:
        return []
    with ThreadPoolExecutor(max_workers=min(32, len(members))) as pool:
        return list(pool.map(function, members))


def _check_removable(membership: Membership, member: HostMember, identity_dir: Path) -> None:
    """Hold that nothing is lost with a host; one that does not answer cannot be asked.

    Raises:
        BadInput: it is the authority, or guests are there.
    """
    if membership.authority == member.name and len(membership.hosts) > 1:
        raise BadInput(
            f"Host {member.name} has the CA directory: without it nobody renews certificates",
            fix="remove the other hosts first, or force it",
        )
    try:
        with _client(member, IdentityDirectory(identity_dir).client_context()) as client:
            guests = client.request("GET", "/v1/guests").get("guests", [])
    except (Broken, TimedOut, Denied, NotFound):
        return
    names = [str(row.get("name")) for row in guests if row.get("owner") == member.name]
    if names:
        raise BadInput(
            f"Host {member.name} has guests: {', '.join(names)}", fix="move or remove them first, or force it"
        )


def _check_name(name: str, what: str) -> None:
    """Hold that a name can be one."""
    if not is_name(name):
        raise BadInput(
            f"{name!r} cannot be the name of {'an' if what[0] in 'aeiou' else 'a'} {what}",
            fix="use up to 63 letters a-z, digits and dashes, as in host-a",
        )


def _check_free(directory: Path) -> None:
    """Hold that no identity would be overwritten."""
    if IdentityDirectory(directory).exists():
        raise BadInput(f"There is an identity at {directory} already", fix="use it, or name another directory")
