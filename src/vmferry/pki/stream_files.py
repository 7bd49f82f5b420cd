"""Certificates, keys and lists out of files or from a peer: read wholly, or refused as what they are not. Pure.

`cryptography` reads much of a certificate only when it is asked for; whatever is wrong with it comes out here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

_CRL = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
_BEGIN_CRL = b"-----BEGIN X509 CRL-----"

T = TypeVar("T")
#: Makes something of a file's content; raises `Unfit`.
Load = Callable[[bytes], T]


class Unfit(Exception):
    """What was read is of no use: what is wrong with it, and what to do; it holds nothing of what was read."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


def load_certificate(pem: bytes) -> x509.Certificate:
    """Return the first certificate in a PEM text."""
    with _refused():
        return _read_through(x509.load_pem_x509_certificate(pem))


def load_authorities(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return every certificate in a PEM text; there is at least one."""
    with _refused():
        return tuple(_read_through(each) for each in x509.load_pem_x509_certificates(pem))


def load_revocations(pem: bytes) -> tuple[x509.CertificateRevocationList, ...]:
    """Return every list in a PEM text; there is at least one, and none that cannot be read is left out."""
    blocks = _CRL.findall(pem)
    with _refused():
        if not blocks or len(blocks) != pem.count(_BEGIN_CRL):
            raise ValueError("no list, or half of one")
        lists = tuple(x509.load_pem_x509_crl(each) for each in blocks)
        for each in lists:
            _ = (each.issuer, each.next_update_utc, each.extensions, len(each))
        return lists


def load_key(pem: bytes) -> PrivateKeyTypes:
    """Return a private key that needs no passphrase."""
    with _refused():
        try:
            return serialization.load_pem_private_key(pem, None)
        except TypeError as error:
            fix = "put the key there without a passphrase, for the agent alone to read"
            raise Unfit("is encrypted", fix) from error


def dump(one: x509.Certificate | x509.CertificateRevocationList | None) -> str:
    """Return it as PEM, without what else stood in its file; nothing of nothing."""
    return "" if one is None else one.public_bytes(serialization.Encoding.PEM).decode("ascii")


def dump_key(key: PrivateKeyTypes) -> str:
    """Return a private key as PEM."""
    none = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none).decode("ascii")


def _read_through(certificate: x509.Certificate) -> x509.Certificate:
    """Read all that will be asked for."""
    _ = (certificate.subject, certificate.issuer, certificate.extensions, certificate.public_key())
    _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    return certificate


@contextmanager
def _refused() -> Iterator[None]:
    """Turn everything that the library says into one word: its own may hold what was read, a key for instance."""
    try:
        yield
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise Unfit("holds nothing that belongs there", "docs/streams.md says what does") from None
