"""Subjects are written as the library writes them by which QEMU compares them."""

from __future__ import annotations

import ctypes
import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.core.errors import BadInput
from vmferry.pki.distinguished import subject_text

KEY = ec.generate_private_key(ec.SECP256R1())
KINDS = (
    *(NameOID.COMMON_NAME, NameOID.SURNAME, NameOID.LOCALITY_NAME, NameOID.STREET_ADDRESS),
    *(NameOID.STATE_OR_PROVINCE_NAME, NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.TITLE),
    *(NameOID.USER_ID, NameOID.GIVEN_NAME, NameOID.PSEUDONYM),
)
NAMES = st.text(st.characters(codec="utf-8", categories=("L", "M", "N", "P", "S", "Zs")), min_size=1, max_size=20)
PARTS = st.builds(x509.NameAttribute, st.sampled_from(KINDS), NAMES.filter(str.isprintable))


def signed(*parts: tuple[x509.NameAttribute[str], ...]) -> x509.Certificate:
    """Return a certificate with a subject of such parts."""
    name = x509.Name([x509.RelativeDistinguishedName(each) for each in parts])
    begin = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEY.public_key())
    builder = builder.serial_number(1).not_valid_before(begin).not_valid_after(begin + dt.timedelta(days=1))
    return builder.sign(KEY, hashes.SHA256())


class Datum(ctypes.Structure):
    """gnutls_datum_t."""

    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_uint))


@pytest.fixture(scope="module")
def gnutls() -> ctypes.CDLL:
    """The library, which QEMU brings along."""
    try:
        return ctypes.CDLL("libgnutls.so.30")
    except OSError as error:
        pytest.skip(f"no GnuTLS on this machine: {error}")


def written_by(library: ctypes.CDLL, certificate: x509.Certificate) -> str:
    """Return a subject as QEMU gets it."""
    der = certificate.public_bytes(serialization.Encoding.DER)
    handle, text, size = ctypes.c_void_p(), ctypes.create_string_buffer(8192), ctypes.c_size_t(8192)
    assert library.gnutls_x509_crt_init(ctypes.byref(handle)) == 0
    try:
        assert library.gnutls_x509_crt_import(handle, ctypes.byref(Datum(der, len(der))), 0) == 0
        assert library.gnutls_x509_crt_get_dn(handle, text, ctypes.byref(size)) == 0
    finally:
        library.gnutls_x509_crt_deinit(handle)
    return text.value.decode("utf-8")


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(st.lists(PARTS, min_size=1, max_size=2, unique_by=lambda each: each.oid), min_size=1, max_size=4))
def test_it_is_what_gnutls_writes(gnutls: ctypes.CDLL, parts: list[list[x509.NameAttribute[str]]]) -> None:
    """Whatever stands in a subject, in whatever order, with whatever must be escaped."""
    certificate = signed(*(tuple(each) for each in parts))
    assert subject_text(certificate) == written_by(gnutls, certificate)


@pytest.mark.parametrize(
    ("oid", "value", "text"),
    [
        (NameOID.COUNTRY_NAME, "DE", "C=DE"),
        (NameOID.DOMAIN_COMPONENT, "example", "DC=example"),
        (NameOID.EMAIL_ADDRESS, "ops@example.org", "EMAIL=ops@example.org"),
        (NameOID.DN_QUALIFIER, "7", "dnQualifier=7"),
        (NameOID.SERIAL_NUMBER, "47-11", "serialNumber=47-11"),
        (NameOID.COMMON_NAME, " a,b#c ", "CN=\\ a\\,b#c\\ "),
        (NameOID.COMMON_NAME, "#1", "CN=\\#1"),
    ],
)
def test_kinds_of_parts(gnutls: ctypes.CDLL, oid: x509.ObjectIdentifier, value: str, text: str) -> None:
    """Kinds that take no free text, and the characters that mean something."""
    certificate = signed((x509.NameAttribute(oid, value),))
    assert subject_text(certificate) == text == written_by(gnutls, certificate)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ((), "it has no subject"),
        ((x509.NameAttribute(x509.ObjectIdentifier("1.2.3.4"), "x"),), "1.2.3.4"),
        ((x509.NameAttribute(NameOID.COMMON_NAME, "a\nb"),), "no printable text"),
    ],
    ids=["empty", "unknown kind", "line break"],
)
def test_what_cannot_be_written_is_refused(parts: tuple[x509.NameAttribute[str], ...], told: str) -> None:
    """Nobody is let in by a name that is only guessed."""
    certificate = signed(*((each,) for each in parts))
    with pytest.raises(BadInput, match=told):
        subject_text(certificate)
