"""The fleet's certificate authority: a directory with the CA key, its certificate and the newest fleet document.

Whoever has the directory is the authority: the commands that change the fleet run where it is, and the agent of that
host renews certificates. A lock makes its changes one after the other.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from vmferry.core.errors import BadInput, Denied
from vmferry.pki import certificates as certs
from vmferry.pki.files import make_private_directory, read_private, write_private
from vmferry.pki.membership import Membership, SignedMembership, dump_signed, load_signed, sign, verify
from vmferry.pki.names import Identity

KEY_FILE, CERTIFICATE_FILE, MEMBERSHIP_FILE = "ca-key.pem", "ca.pem", "membership.json"


def utc_now() -> dt.datetime:
    """Return the time now."""
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True)
class Authority:
    """An existing CA directory.

    Args:
        directory: where it is.
        now: returns the time, in UTC.
    """

    directory: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    now: Callable[[], dt.datetime] = utc_now

    @classmethod
    def create(cls, directory: Path, *, lifetime_s: int, now: Callable[[], dt.datetime] = utc_now) -> Authority:
        """Make a new CA with an empty fleet.

        Raises:
            BadInput: there is one already; it is left alone.
        """
        if (directory / KEY_FILE).exists():
            raise BadInput(f"There is a CA at {directory} already", fix="use it, or choose another directory")
        make_private_directory(directory)
        key = certs.make_key()
        authority = cls(directory, certs.make_ca(key, now()), key, now)
        authority.publish(Membership(version=1, authority=None, lifetime_s=lifetime_s))
        write_private(directory / CERTIFICATE_FILE, certs.dump_certificate(authority.certificate))
        # The key is written last: a directory without one is no CA, and `create` can be repeated.
        write_private(directory / KEY_FILE, certs.dump_key(key))
        return authority

    @classmethod
    def open(cls, directory: Path, *, now: Callable[[], dt.datetime] = utc_now) -> Authority:
        """Open a CA directory.

        Raises:
            NotFound: there is none.
        """
        key_file, certificate_file = directory / KEY_FILE, directory / CERTIFICATE_FILE
        key = certs.load_key(read_private(key_file, "CA key"), str(key_file))
        certificate = certs.load_certificate(read_private(certificate_file, "CA certificate"), str(certificate_file))
        return cls(directory, certificate, key, now)

    def renew(self) -> x509.Certificate:
        """Make a certificate of ten more years for the same key and name, keep it as the CA's, and return it.

        Members go on with the one that they have until its end, and have to get the new one before it.
        """
        with self.lock():
            certificate = certs.make_ca(self.key, self.now(), renewed=self.certificate)
            write_private(self.directory / CERTIFICATE_FILE, certs.dump_certificate(certificate))
        return certificate

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other commands from changing the fleet meanwhile."""
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def signed_membership(self) -> SignedMembership:
        """Return the newest fleet document."""
        path = self.directory / MEMBERSHIP_FILE
        return load_signed(read_private(path, "fleet document"), str(path))

    def membership(self) -> Membership:
        """Return the newest fleet document's content."""
        return verify(self.signed_membership(), self.certificate)

    def publish(self, membership: Membership) -> SignedMembership:
        """Sign a new fleet document and keep it as the newest."""
        signed = sign(membership, self.key)
        write_private(self.directory / MEMBERSHIP_FILE, dump_signed(signed))
        return signed

    def issue(self, identity: Identity, request: str, membership: Membership) -> x509.Certificate:
        """Sign a certificate for a member.

        Args:
            identity: whom it is for.
            request: certificate request (PEM); only its key is used.
            membership: the document that has them.

        Raises:
            Denied: the identity is not in the document.
            BadInput: the request is not good.
        """
        if membership.find(identity) is None:
            raise Denied(f"{identity.kind.capitalize()} {identity.name} is not a member of the fleet (any more)")
        return certs.sign_identity(
            identity,
            certs.read_request(request),
            ca=self.certificate,
            ca_key=self.key,
            now=self.now(),
            lifetime=dt.timedelta(seconds=membership.lifetime_s),
        )
