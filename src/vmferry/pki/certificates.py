"""Keys, requests and certificates of the fleet, on `cryptography`: EC P-256 everywhere, one level below the CA.

A request's subject and extensions are never believed: the CA takes its public key and writes the identity itself.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import secrets

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vmferry.core.errors import BadInput, Denied
from vmferry.pki.names import Identity, Kind, parse_identity

#: Certificates begin this much before they are made, for hosts whose clocks are a little behind.
BACKDATE = dt.timedelta(minutes=5)
_CA_LIFETIME = dt.timedelta(days=3650)
#: So long before its end people are told, every time they look.
CA_WARNING = dt.timedelta(days=365)
_FINGERPRINT_BYTES = 15


def make_key() -> ec.EllipticCurvePrivateKey:
    """Return a new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def make_enrolment() -> str:
    """Return a new enrolment id."""
    return secrets.token_hex(8)


def dump_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, not encrypted: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes, where: str) -> ec.EllipticCurvePrivateKey:
    """Return the private key in a PEM text.

    Raises:
        BadInput: there is none.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise BadInput(f"{where} holds no private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadInput(f"{where} holds a key that is not an elliptic-curve key")
    return key


def dump_certificate(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def load_certificate(pem: bytes, where: str) -> x509.Certificate:
    """Return the first certificate in a PEM text.

    Raises:
        BadInput: there is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise BadInput(f"{where} holds no certificate") from error


def fingerprint(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return 120 bits that name a public key: nobody finds another key with the same ones."""
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()[:_FINGERPRINT_BYTES]


def certificate_fingerprint(der: bytes) -> bytes:
    """Return the fingerprint of the key in a certificate (DER).

    Raises:
        Denied: there is no key of ours in it.
    """
    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except ValueError as error:
        raise Denied("The host showed a certificate that cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Denied("The host showed a certificate without an elliptic-curve key")
    return fingerprint(key)


def make_request(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a certificate request (PEM) that proves possession of the key and says nothing else."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_name("vmferry request"))
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def read_request(pem: str) -> ec.EllipticCurvePublicKey:
    """Return the public key of a request whose signature is good.

    Raises:
        BadInput: it is no request, not signed by its own key, or the key is not on P-256.
    """
    try:
        request = x509.load_pem_x509_csr(pem.encode())
    except ValueError as error:
        raise BadInput("The certificate request cannot be read") from error
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadInput("The certificate request's key is not on curve P-256")
    if not request.is_signature_valid:
        raise BadInput("The certificate request is not signed by its own key")
    return key


def make_ca(
    key: ec.EllipticCurvePrivateKey, now: dt.datetime, *, renewed: x509.Certificate | None = None
) -> x509.Certificate:
    """Return the fleet's CA certificate, valid for ten years; its name is unique, so that fleets are told apart.

    Args:
        key: the CA's.
        now: when it begins.
        renewed: the one before. With its key and name kept, what either of them signed is good under both.
    """
    name = _name(f"vmferry fleet {secrets.token_hex(8)}") if renewed is None else renewed.subject
    builder = _builder(name, name, key.public_key(), now, _CA_LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(key_usage(sign=False, authority=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.sign(key, hashes.SHA256())


def make_self_signed(key: ec.EllipticCurvePrivateKey, now: dt.datetime) -> x509.Certificate:
    """Return the certificate of an agent that waits for its enrolment: it says nothing but its key."""
    name = _name("vmferry agent, not enrolled")
    return _builder(name, name, key.public_key(), now, _CA_LIFETIME).sign(key, hashes.SHA256())


def sign_identity(
    identity: Identity,
    public_key: ec.EllipticCurvePublicKey,
    *,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    now: dt.datetime,
    lifetime: dt.timedelta,
) -> x509.Certificate:
    """Return a certificate for an identity: hosts serve and ask, operators only ask."""
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
    if identity.kind is Kind.HOST:
        uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        names.append(x509.DNSName(identity.server_name))
    builder = _builder(_name(f"{identity.kind} {identity.name}"[:64]), ca.subject, public_key, now, lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(key_usage(sign=True, authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    return builder.sign(ca_key, hashes.SHA256())


def read_identity(certificate: x509.Certificate) -> Identity:
    """Return the identity that a certificate carries.

    Raises:
        Denied: it carries none.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise Denied("The certificate carries no identity") from error
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        return parse_identity(uri)
    raise Denied("The certificate carries no identity")


def needs_renewal(certificate: x509.Certificate, now: dt.datetime) -> bool:
    """Tell whether two thirds of a certificate's lifetime are over."""
    begin, end = certificate.not_valid_before_utc + BACKDATE, certificate.not_valid_after_utc
    return now >= begin + (end - begin) * 2 / 3


def ends_soon(ca: x509.Certificate, now: dt.datetime) -> str | None:
    """Return what to say of a CA certificate that ends within a year, None of one that does not."""
    end = ca.not_valid_after_utc
    if end - now > CA_WARNING:
        return None
    ended = "has ended" if now > end else "ends"
    return f"the fleet's CA certificate {ended} on {end:%F}; nobody believes anybody from then on: `vmferry ca renew`"


def encode_code(print_bytes: bytes, secret: bytes) -> str:
    """Return an enrolment code: fingerprint and secret in base32, in groups of five."""
    text = base64.b32encode(print_bytes + secret).decode().rstrip("=")
    return "-".join(text[at : at + 5] for at in range(0, len(text), 5))


def decode_code(code: str) -> tuple[bytes, bytes]:
    """Return fingerprint and secret of an enrolment code; case, spaces and dashes do not matter.

    Raises:
        BadInput: it is no code.
    """
    text = code.replace("-", "").replace(" ", "").upper()
    try:
        raw = base64.b32decode(text)
    except ValueError as error:
        raise BadInput("The enrolment code is not one", fix="copy it as the agent printed it") from error
    if len(raw) != 25:
        raise BadInput(
            f"The enrolment code has {len(text)} characters, expected 40", fix="copy it as the agent printed it"
        )
    return raw[:_FINGERPRINT_BYTES], raw[_FINGERPRINT_BYTES:]


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    lifetime: dt.timedelta,
) -> x509.CertificateBuilder:
    """Return what all certificates have in common."""
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - BACKDATE).not_valid_after(now + lifetime)


def _name(common_name: str) -> x509.Name:
    """Return a distinguished name with only a common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def key_usage(*, sign: bool, authority: bool) -> x509.KeyUsage:
    """Return the key usage of a leaf or of the CA."""
    return x509.KeyUsage(
        digital_signature=sign,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
