"""What a certificate says about its holder: a kind, a name and an enrolment id, as a URI and as a TLS server name."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from vmferry.core.errors import Denied
from vmferry.core.ids import is_name

_URI = re.compile(r"vmferry://(host|operator)/([^/]+)/([0-9a-f]{16})")


class Kind(enum.StrEnum):
    """What holds a certificate."""

    HOST = "host"  #: an agent; may use the peer API
    OPERATOR = "operator"  #: a person or a program; may use the operator API


@dataclass(frozen=True, slots=True)
class Identity:
    """The holder of a certificate.

    `enrolment` is drawn anew whenever somebody is added: a certificate of a host that was removed, and added again
    under the same name, stays worthless.
    """

    kind: Kind
    name: str
    enrolment: str  #: 16 hexadecimal digits

    @property
    def uri(self) -> str:
        """The identity as the certificate's SAN carries it."""
        return f"vmferry://{self.kind}/{self.name}/{self.enrolment}"

    @property
    def server_name(self) -> str:
        """The DNS name in a host's certificate: verified by TLS before the first byte of a request is sent."""
        return f"{self.enrolment}.{self.name}.vmferry"


def parse_identity(uri: str) -> Identity:
    """Return the identity in a SAN URI.

    Raises:
        Denied: it is not one of ours.
    """
    match = _URI.fullmatch(uri)
    if match is None or not is_name(match[2]):
        raise Denied(f"Certificate names {uri[:200]!r}, which is no vmferry identity")
    return Identity(Kind(match[1]), match[2], match[3])
