"""The fleet document: who belongs to the fleet, signed by the CA; its newest version decides, not certificates alone.

A certificate proves who somebody was when it was signed. Whether they still belong is what this document says, so that
removing somebody takes effect with the next document instead of with the certificate's end.
"""

from __future__ import annotations

import base64
import binascii
import enum
import json
from dataclasses import asdict, dataclass, replace

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ConfigDict, TypeAdapter, ValidationError

from vmferry.core.errors import BadInput, Denied, NotFound
from vmferry.pki.names import Identity, Kind

#: Signed in front of the document, so that no other signature of the CA can pass as one of a document.
_DOMAIN = b"vmferry membership 1\n"
DEFAULT_LIFETIME_S = 90 * 86400


class Role(enum.StrEnum):
    """What an operator may do."""

    READ = "read"  #: look
    OPERATE = "operate"  #: look, and change guests, hand-overs and the fleet


@dataclass(frozen=True, slots=True)
class HostMember:
    """An enrolled host."""

    name: str
    address: str  #: IP address or DNS name of its agent
    port: int
    enrolment: str

    @property
    def identity(self) -> Identity:
        """The identity that its certificate must carry."""
        return Identity(Kind.HOST, self.name, self.enrolment)


@dataclass(frozen=True, slots=True)
class OperatorMember:
    """An enrolled operator."""

    name: str
    role: Role
    enrolment: str

    @property
    def identity(self) -> Identity:
        """The identity that its certificate must carry."""
        return Identity(Kind.OPERATOR, self.name, self.enrolment)


@dataclass(frozen=True, slots=True)
class Membership:
    """One version of the fleet document."""

    version: int
    authority: str | None  #: the host whose agent has the CA directory and renews certificates
    lifetime_s: int  #: of certificates
    hosts: tuple[HostMember, ...] = ()
    operators: tuple[OperatorMember, ...] = ()

    def host(self, name: str) -> HostMember:
        """Return a host.

        Raises:
            NotFound: no such host; names those there are.
        """
        for member in self.hosts:
            if member.name == name:
                return member
        known = ", ".join(sorted(member.name for member in self.hosts)) or "none"
        raise NotFound(f"There is no host {name} in the fleet (hosts: {known})", fix="add it with `vmferry host add`")

    def operator(self, name: str) -> OperatorMember:
        """Return an operator.

        Raises:
            NotFound: no such operator.
        """
        for member in self.operators:
            if member.name == name:
                return member
        raise NotFound(f"There is no operator {name} in the fleet", fix="see `vmferry operator list`")

    def find(self, identity: Identity) -> HostMember | OperatorMember | None:
        """Return the member with exactly this identity, enrolment included."""
        members: tuple[HostMember | OperatorMember, ...] = self.hosts if identity.kind is Kind.HOST else self.operators
        for member in members:
            if member.identity == identity:
                return member
        return None

    def with_host(self, member: HostMember) -> Membership:
        """Return the next version, with a host added.

        Raises:
            BadInput: its name is taken.
        """
        if any(other.name == member.name for other in self.hosts):
            raise BadInput(
                f"There is a host {member.name} in the fleet already", fix=f"`vmferry host remove {member.name}` first"
            )
        return replace(self, version=self.version + 1, hosts=(*self.hosts, member))

    def without_host(self, name: str) -> Membership:
        """Return the next version, without a host."""
        gone = self.host(name)
        authority = None if self.authority == name else self.authority
        hosts = tuple(member for member in self.hosts if member != gone)
        return replace(self, version=self.version + 1, hosts=hosts, authority=authority)

    def with_operator(self, member: OperatorMember) -> Membership:
        """Return the next version, with an operator added.

        Raises:
            BadInput: its name is taken.
        """
        if any(other.name == member.name for other in self.operators):
            raise BadInput(f"There is an operator {member.name} already", fix="remove it first, or take another name")
        return replace(self, version=self.version + 1, operators=(*self.operators, member))

    def without_operator(self, name: str) -> Membership:
        """Return the next version, without an operator."""
        gone = self.operator(name)
        return replace(
            self, version=self.version + 1, operators=tuple(member for member in self.operators if member != gone)
        )


@dataclass(frozen=True, slots=True)
class SignedMembership:
    """A fleet document as it travels: the signed text itself, so that the signature is checked before it is read."""

    document: str  #: Membership as canonical JSON
    signature: str  #: ECDSA P-256 with SHA-256 over the domain and the document, base64


_MEMBERSHIP: TypeAdapter[tuple[Membership]] = TypeAdapter(
    tuple[Membership], config=ConfigDict(strict=True, extra="ignore")
)
_SIGNED: TypeAdapter[tuple[SignedMembership]] = TypeAdapter(
    tuple[SignedMembership], config=ConfigDict(strict=True, extra="forbid")
)


def sign(membership: Membership, key: ec.EllipticCurvePrivateKey) -> SignedMembership:
    """Return the document with the CA's signature."""
    document = json.dumps(asdict(membership), sort_keys=True, separators=(",", ":"))
    signature = key.sign(_DOMAIN + document.encode(), ec.ECDSA(hashes.SHA256()))
    return SignedMembership(document, base64.b64encode(signature).decode())


def verify(signed: SignedMembership, ca: x509.Certificate) -> Membership:
    """Return the document after its signature was found good.

    Raises:
        Denied: it was not signed by this CA.
        BadInput: the CA signed something that this version cannot read.
    """
    key = ca.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Denied("The CA certificate does not hold an elliptic-curve key")
    try:
        signature = base64.b64decode(signed.signature, validate=True)
        key.verify(signature, _DOMAIN + signed.document.encode(), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, binascii.Error, UnicodeEncodeError) as error:
        raise Denied("The fleet document is not signed by this fleet's CA") from error
    try:
        return _MEMBERSHIP.validate_json(f"[{signed.document}]")[0]
    except ValidationError as error:
        raise BadInput(
            f"The fleet document cannot be read: {error.errors()[0]['msg']}", fix="update this agent"
        ) from error


def dump_signed(signed: SignedMembership) -> bytes:
    """Return the file content of a signed document."""
    return _SIGNED.dump_json((signed,))[1:-1]


def load_signed(content: bytes, where: str) -> SignedMembership:
    """Return the signed document in a file.

    Raises:
        BadInput: the file is something else.
    """
    try:
        return _SIGNED.validate_json(b"[" + content + b"]")[0]
    except ValidationError as error:
        raise BadInput(f"{where} is no signed fleet document") from error
