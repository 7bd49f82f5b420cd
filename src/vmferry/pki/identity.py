"""An identity on disk: key and certificate, CA certificate, newest fleet document.

Agents keep theirs in `<state_dir>/identity`, operators in `~/.config/vmferry`. Key and certificate share a file,
so that a renewal replaces both at once: there is no moment at which they do not match.
"""

from __future__ import annotations

import datetime as dt
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from vmferry.core.errors import BadInput, Denied, NotFound
from vmferry.pki import certificates as certs
from vmferry.pki.files import read_private, write_private
from vmferry.pki.membership import Membership, SignedMembership, dump_signed, load_signed, verify
from vmferry.pki.names import Identity

IDENTITY_FILE, CA_FILE, MEMBERSHIP_FILE = "identity.pem", "ca.pem", "membership.json"


@dataclass(frozen=True, slots=True)
class IdentityDirectory:
    """Where an identity is kept; it need not exist yet."""

    path: Path

    def exists(self) -> bool:
        """Tell whether there is an enrolled identity."""
        return (self.path / IDENTITY_FILE).exists()

    def certificate(self) -> x509.Certificate:
        """Return the identity's certificate.

        Raises:
            NotFound: there is no identity.
        """
        file = self.path / IDENTITY_FILE
        return certs.load_certificate(read_private(file, "identity"), str(file))

    def identity(self) -> Identity:
        """Return who this is."""
        return certs.read_identity(self.certificate())

    def ca(self) -> x509.Certificate:
        """Return the fleet's CA certificate."""
        file = self.path / CA_FILE
        return certs.load_certificate(read_private(file, "CA certificate"), str(file))

    def replace_ca(self, renewed: x509.Certificate) -> None:
        """Take the renewed certificate of the same CA.

        Raises:
            Denied: it is another CA's.
        """
        current = self.ca()
        if (renewed.subject, renewed.public_key()) != (current.subject, current.public_key()):
            raise Denied("The new CA certificate is not of this fleet's CA")
        write_private(self.path / CA_FILE, certs.dump_certificate(renewed))

    def signed_membership(self) -> SignedMembership:
        """Return the newest fleet document that was stored here."""
        file = self.path / MEMBERSHIP_FILE
        return load_signed(read_private(file, "fleet document"), str(file))

    def membership(self) -> Membership:
        """Return the content of the newest fleet document, signature checked."""
        return verify(self.signed_membership(), self.ca())

    def save(
        self,
        key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
        ca: x509.Certificate,
        signed: SignedMembership,
    ) -> None:
        """Store a new identity; the file that makes it exist is written last.

        Raises:
            Denied: the document is not signed by the CA, or the certificate not for the key.
        """
        verify(signed, ca)
        write_private(self.path / CA_FILE, certs.dump_certificate(ca))
        write_private(self.path / MEMBERSHIP_FILE, dump_signed(signed))
        self.replace_certificate(key, certificate)

    def replace_certificate(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        """Take a new key and certificate at once, after checking that the fleet's CA signed it for this key.

        Raises:
            Denied: it is not.
        """
        try:
            certificate.verify_directly_issued_by(self.ca())
        except Exception as error:  # cryptography raises ValueError, TypeError or InvalidSignature for the same thing
            raise Denied("The new certificate is not signed by this fleet's CA") from error
        if certificate.public_key() != key.public_key():
            raise Denied("The new certificate is for another key")
        write_private(self.path / IDENTITY_FILE, certs.dump_certificate(certificate) + certs.dump_key(key))

    def accept_membership(self, signed: SignedMembership) -> bool:
        """Store a fleet document if it is newer than the one here; tell whether it was.

        Raises:
            Denied: it is not signed by the CA, older than the one here, or another one of the same version.
        """
        new = verify(signed, self.ca())
        current = self.membership()
        if new.version < current.version:
            raise Denied(f"Fleet document {new.version} is older than {current.version}, which is known here")
        if new.version == current.version:
            if new != current:
                raise Denied(f"There are two different fleet documents of version {new.version}")
            return False
        write_private(self.path / MEMBERSHIP_FILE, dump_signed(signed))
        return True

    def client_context(self) -> ssl.SSLContext:
        """Return how to ask as this identity: TLS 1.3, only hosts of this fleet, the exact host by its server name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._load(context)
        return context

    def server_context(self) -> ssl.SSLContext:
        """Return how to serve as this identity: TLS 1.3, a certificate of this fleet's CA is required."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        self._load(context)
        return context

    def reload(self, context: ssl.SSLContext) -> None:
        """Let a context that is in use show the renewed certificate on new connections."""
        context.load_cert_chain(self.path / IDENTITY_FILE)

    def _load(self, context: ssl.SSLContext) -> None:
        """Set what both directions have in common."""
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_cert_chain(self.path / IDENTITY_FILE)
            context.load_verify_locations(self.path / CA_FILE)
        except FileNotFoundError as error:
            raise NotFound(f"There is no identity at {self.path}", fix="enrol it again") from error
        except ssl.SSLError as error:
            raise BadInput(
                f"The identity at {self.path} is damaged: {error.reason}", fix="delete it and enrol again"
            ) from error

    def check_valid(self, now: dt.datetime) -> None:
        """Hold that the certificate is valid now.

        Raises:
            Denied: it has expired, or is not valid yet.
        """
        certificate = self.certificate()
        if now > certificate.not_valid_after_utc:
            raise Denied(
                f"Certificate of {self.identity().name} at {self.path} expired "
                f"on {certificate.not_valid_after_utc:%F %R} UTC",
                fix="remove the host or operator where the CA directory is, delete this directory and enrol again",
            )
        if now < certificate.not_valid_before_utc:
            raise Denied(
                f"Certificate at {self.path} is valid from {certificate.not_valid_before_utc:%F %R} UTC only",
                fix="set this host's clock",
            )
