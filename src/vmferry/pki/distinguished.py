"""A certificate's subject as QEMU compares it: GnuTLS's own writing, which is not quite RFC 4514.

The parts stand in the order of the certificate, where RFC 4514 turns them round.

Source: gnutls_x509_crt_get_dn of GnuTLS 3.7; QEMU crypto/tlssession.c (qcrypto_tls_session_check_certificate).
"""

from __future__ import annotations

from cryptography import x509
from cryptography.x509.oid import NameOID

from vmferry.core.errors import BadInput

#: Others are written with their number and in hexadecimal; nobody has needed that yet.
_SHORT = {
    NameOID.COMMON_NAME: "CN",
    NameOID.SURNAME: "surName",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.COUNTRY_NAME: "C",
    NameOID.LOCALITY_NAME: "L",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.STREET_ADDRESS: "street",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.TITLE: "title",
    NameOID.DOMAIN_COMPONENT: "DC",
    NameOID.USER_ID: "UID",
    NameOID.EMAIL_ADDRESS: "EMAIL",
    NameOID.GIVEN_NAME: "givenName",
    NameOID.PSEUDONYM: "pseudonym",
    NameOID.DN_QUALIFIER: "dnQualifier",
}
_ESCAPED = frozenset(',+"\\<>;')


def subject_text(certificate: x509.Certificate) -> str:
    """Return the subject of a certificate.

    Raises:
        BadInput: it has none, or one that nobody can be sure how QEMU writes.
    """
    text = ",".join("+".join(_part(attribute) for attribute in each) for each in certificate.subject.rdns)
    if not text:
        raise BadInput("it has no subject, by which the other host could know it")
    return text


def _part(attribute: x509.NameAttribute[str | bytes]) -> str:
    short, value = _SHORT.get(attribute.oid), attribute.value
    if short is None:
        raise BadInput(f"its subject has {attribute.oid.dotted_string}, which vmferry cannot write as QEMU does")
    if not isinstance(value, str) or not value.isprintable():
        raise BadInput(f"its subject has {short} = {value!r:.80}, which is no printable text")
    return f"{short}={_escaped(value)}"


def _escaped(value: str) -> str:
    """Return a value with a backslash before what would end it, and before what could not begin or end it."""
    last = len(value) - 1
    return "".join(
        f"\\{char}"
        if char in _ESCAPED or (char == " " and place in (0, last)) or (char == "#" and place == 0)
        else char
        for place, char in enumerate(value)
    )
