"""What makes a certificate unfit for QEMU's streams: everything at once, each with what to do about it. Pure.

QEMU would say the first thing only, in the middle of a move, and would not look at a list of what was revoked where it
connects (docs/design/streams.md).

Source: QEMU crypto/tlscredsx509.c; RFC 5280.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from vmferry.core.errors import BadInput

T = TypeVar("T", bound=x509.ExtensionType)
#: What is wrong, and what to do.
Complaint = tuple[str, str]
_RENEW = "have its CA issue another one"


class Use(enum.StrEnum):
    """Which side of a stream shows a certificate."""

    SERVER = "server"  #: the destination
    CLIENT = "client"  #: the source


_PURPOSE = {Use.SERVER: ExtendedKeyUsageOID.SERVER_AUTH, Use.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom a host believes, and whom no more."""

    authorities: tuple[x509.Certificate, ...] = ()
    revocations: tuple[x509.CertificateRevocationList, ...] = ()

    def complaints(self, certificate: x509.Certificate, use: Use, now: dt.datetime) -> Iterator[Complaint]:
        """Yield what is wrong with a certificate that one side of a stream shows."""
        yield from _age(certificate, now)
        yield from _usage(certificate, use)
        issuer = next((each for each in self.authorities if _issued(certificate, each)), None)
        if issuer is None:
            yield "it is not issued by a CA of ca-cert.pem", "put its CA's certificate there, or have that CA issue one"
        elif (ended := next(_age(issuer, now), None)) is not None:
            yield f"of its CA: {ended[0]}", "put the CA's renewed certificate into ca-cert.pem"
        if any(_is_revoked(certificate, each) for each in self.revocations):
            yield "it was revoked (ca-crl.pem)", _RENEW

    def own_complaints(self, now: dt.datetime) -> Iterator[Complaint]:
        """Yield what is wrong with what says whom to believe."""
        for each in self.authorities:
            if not _is_authority(each):
                yield f"ca-cert.pem holds {each.subject.rfc4514_string()}, which is no CA", "leave it out"
        for revocation in self.revocations:
            if not any(_signed(revocation, each) for each in self.authorities):
                yield "ca-crl.pem is not signed by a CA of ca-cert.pem", "fetch the CA's own list"
            end = revocation.next_update_utc
            if end is not None and end < now:
                yield f"ca-crl.pem has ended on {end:%F}: what was revoked since is not known", "fetch a new list"


def host_name(certificate: x509.Certificate) -> str:
    """Return the host that a server's certificate is for: its first DNS name without a wildcard, or IP address.

    Raises:
        BadInput: it is for none.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    hosts = [name for name in names.get_values_for_type(x509.DNSName) if "*" not in name]
    hosts += [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    if not hosts:
        raise BadInput("it names no host (subjectAltName with a DNS name or an IP address)")
    return hosts[0]


def _age(certificate: x509.Certificate, now: dt.datetime) -> Iterator[Complaint]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        yield f"it has expired on {end:%F %R} UTC", _RENEW
    if now < begin:
        yield f"it begins on {begin:%F %R} UTC only", "set this host's clock, or wait"


def _usage(certificate: x509.Certificate, use: Use) -> Iterator[Complaint]:
    purpose = _extension(certificate, x509.ExtendedKeyUsage)
    if purpose is not None and not {_PURPOSE[use], ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(purpose):
        yield f"it is not for TLS {use}s (extendedKeyUsage)", _RENEW
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        yield "it may not sign (keyUsage digitalSignature), as TLS 1.3 needs", _RENEW


def _is_authority(certificate: x509.Certificate) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def _extension(certificate: x509.Certificate, kind: type[T]) -> T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return _is_authority(by)


def _signed(revocation: x509.CertificateRevocationList, by: x509.Certificate) -> bool:
    try:
        return revocation.issuer == by.subject and revocation.is_signature_valid(by.public_key())  # type: ignore[arg-type]
    except (ValueError, TypeError):  # a key that signs nothing
        return False


def _is_revoked(certificate: x509.Certificate, revocation: x509.CertificateRevocationList) -> bool:
    by_issuer = revocation.issuer == certificate.issuer
    return by_issuer and revocation.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
