"""Who asks, and may they: from the certificate of the connection and the newest fleet document.

TLS has proven that the fleet's CA signed the certificate. Here it is checked, with every request, that it is
still valid and that its enrolment still stands in the document: whoever was removed gets nothing, also on open
connections.
"""

from __future__ import annotations

import functools
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any

from vmferry.api.routes import Access
from vmferry.core.errors import Denied
from vmferry.pki.identity import IdentityDirectory
from vmferry.pki.membership import HostMember, Membership, OperatorMember, Role, SignedMembership
from vmferry.pki.names import Identity, parse_identity

Member = HostMember | OperatorMember


class Gate:
    """Decides with every request.

    Args:
        directory: the agent's identity, with the newest fleet document.
        now: returns Unix time.
    """

    def __init__(self, directory: IdentityDirectory, *, now: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self._now = now
        self._membership = directory.membership()

    @property
    def membership(self) -> Membership:
        """The newest fleet document."""
        return self._membership

    def accept_membership(self, signed: SignedMembership) -> bool:
        """Take a fleet document if it is newer; it decides from now on. Tell whether it was newer.

        Raises:
            Denied: badly signed, or older.
        """
        newer = self.directory.accept_membership(signed)
        self._membership = self.directory.membership()
        return newer

    def identify(self, peercert: Mapping[str, Any] | None) -> Member:
        """Return the member that a connection's certificate belongs to.

        Raises:
            Denied: there is no certificate, it has expired meanwhile, or its holder is not a member (any more).
        """
        if not peercert:
            raise Denied("No certificate was shown", fix="use the identity that `vmferry operator add` made")
        uris = [value for kind, value in peercert.get("subjectAltName", ()) if kind == "URI"]
        if not uris:
            raise Denied("The certificate carries no identity", fix="use one that this fleet's CA made")
        identity = _parse(uris[0])
        if self._now() > _seconds(peercert["notAfter"]):
            raise Denied(
                f"Certificate of {identity.kind} {identity.name} expired on {peercert['notAfter']}",
                fix=f"`vmferry {identity.kind} remove` and `add` it again where the CA directory is",
            )
        member = self._membership.find(identity)
        if member is None:
            raise Denied(
                f"{identity.kind.capitalize()} {identity.name} is not a member of the fleet (any more)",
                fix=f"`vmferry {identity.kind} add` it where the CA directory is",
            )
        return member

    def check(self, peercert: Mapping[str, Any] | None, access: Access) -> Member:
        """Return the member that asks, after checking that this kind of route is for them.

        Raises:
            Denied: it is not.
        """
        member = self.identify(peercert)
        if access is Access.MEMBER:
            return member
        if isinstance(member, HostMember):
            if access is not Access.PEER:
                raise Denied(
                    f"Host {member.name} asked for what only operators may ask", fix="use an operator's identity"
                )
        elif access is Access.PEER:
            raise Denied(
                f"Operator {member.name} asked for what only enrolled hosts may ask",
                fix="use the routes for operators (docs/openapi.json)",
            )
        elif access is Access.OPERATE and member.role is not Role.OPERATE:
            raise Denied(
                f"Operator {member.name} has the role {member.role}, this needs {Role.OPERATE}",
                fix="ask as an operator with that role",
            )
        return member


@functools.lru_cache(maxsize=1024)
def _parse(uri: str) -> Identity:
    """Return the identity in a URI."""
    return parse_identity(uri)


@functools.lru_cache(maxsize=1024)
def _seconds(text: str) -> int:
    """Return a certificate's time as Unix time."""
    return ssl.cert_time_to_seconds(text)
