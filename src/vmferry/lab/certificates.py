"""A CA for QEMU's streams, made when a test begins: certificates of hosts and of strangers, and what was revoked.

Laid out as QEMU's `tls-creds-x509` and the agents' `migration.tls_dir` have it (docs/streams.md).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vmferry.pki.certificates import dump_certificate, dump_key, key_usage, make_key

#: Certificates are good since then: hosts whose clocks differ believe them.
_BACKDATE = dt.timedelta(minutes=5)
_LIFETIME = dt.timedelta(days=2)
_USES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


class StreamCa:
    """One certificate authority.

    Args:
        name: its common name.
        says_usage: its certificates say what their keys are for. Ours sign, and libvirt's daemons take such a one only
            if it enciphers too, so theirs say nothing.
    """

    def __init__(self, name: str = "stream lab", *, says_usage: bool = True) -> None:
        self._says_usage = says_usage
        self._key = make_key()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        public = self._key.public_key()
        builder = self._builder(self._name, public, dt.timedelta(0), _LIFETIME)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(key_usage(sign=False, authority=True), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        self.certificate = builder.add_extension(identifier, critical=False).sign(self._key, hashes.SHA256())
        self.revoked: list[int] = []  #: serial numbers

    def write(
        self, directory: Path, host: str, *, sides: Sequence[str] = ("server", "client"), ends_in_s: float = 86_400.0
    ) -> None:
        """Write what one host needs into its directory: CA, and a certificate and a key for each side.

        Args:
            directory: made if it is not there.
            host: a DNS name; the subject is `O=lab, CN=HOST`.
            sides: which certificates.
            ends_in_s: how long from now they are good; negative: they have expired.
        """
        directory.mkdir(mode=0o700, exist_ok=True)
        (directory / "ca-cert.pem").write_bytes(dump_certificate(self.certificate))
        for side in sides:
            certificate, key = self.issue(host, side, dt.timedelta(seconds=ends_in_s))
            (directory / f"{side}-cert.pem").write_bytes(dump_certificate(certificate))
            (directory / f"{side}-key.pem").touch(mode=0o600)
            (directory / f"{side}-key.pem").write_bytes(dump_key(key))

    def issue(
        self, host: str, side: str, lifetime: dt.timedelta = _LIFETIME
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """Return a certificate for one side of a stream, and its key."""
        key = make_key()
        subject = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "lab"), x509.NameAttribute(NameOID.COMMON_NAME, host)]
        )
        age = max(-2 * lifetime, dt.timedelta(0))  # of one that has ended: it began before
        builder = self._builder(subject, key.public_key(), age, lifetime)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        if self._says_usage:
            builder = builder.add_extension(key_usage(sign=True, authority=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([_USES[side]]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        return builder.sign(self._key, hashes.SHA256()), key

    def revoke(self, directory: Path, side: str) -> None:
        """Take the certificate of one side of a host back; `write_crl` tells others."""
        certificate = x509.load_pem_x509_certificate((directory / f"{side}-cert.pem").read_bytes())
        self.revoked.append(certificate.serial_number)

    def write_crl(self, directory: Path, lifetime: dt.timedelta = _LIFETIME) -> None:
        """Write the list of what was revoked into a host's directory."""
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name)
        builder = builder.last_update(now - _BACKDATE - abs(lifetime)).next_update(now + lifetime)
        for serial in self.revoked:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - _BACKDATE)
            builder = builder.add_revoked_certificate(one.build())
        signed = builder.sign(self._key, hashes.SHA256())
        (directory / "ca-crl.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, age: dt.timedelta, lifetime: dt.timedelta
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - _BACKDATE - age).not_valid_after(now + lifetime)
