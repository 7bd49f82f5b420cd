"""The agent's side of its enrolment: a key that never leaves the host, a one-time secret, and a code that has both.

The code is the fingerprint of the agent's public key and the secret. Who types it into `vmferry host add` knows by the
fingerprint that they talk to this agent, and shows by the secret that they read it here. It is kept, so that an agent
that restarts shows the same code.
"""

from __future__ import annotations

import hmac
import secrets
import shutil
import ssl
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from vmferry.core.errors import Denied, NotFound
from vmferry.pki import certificates as certs
from vmferry.pki.authority import utc_now
from vmferry.pki.files import read_private, write_private
from vmferry.pki.identity import IdentityDirectory
from vmferry.pki.membership import SignedMembership, verify
from vmferry.pki.names import Kind

_SECRET_BYTES = 10
#: After so many wrong secrets nobody can enrol this agent until it is started again, with a new code.
MOST_TRIES = 5
#: Holds the code, for scripts that enrol.
CODE_FILE = "code"


class Enrolment:
    """An agent that waits to be enrolled.

    Args:
        directory: where key and secret are kept until then.

    Raises:
        Broken: they cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._wrong_tries = 0
        self.key, self._secret = self._load()
        write_private(self.code_file, f"{self.code}\n".encode())

    @property
    def code_file(self) -> Path:
        """Where the code is, as text."""
        return self._directory / CODE_FILE

    @property
    def code(self) -> str:
        """The code for `vmferry host add`."""
        return certs.encode_code(certs.fingerprint(self.key.public_key()), self._secret)

    def server_context(self) -> ssl.SSLContext:
        """Return how to serve until then: TLS 1.3 with a self-signed certificate, nothing asked of the client."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        file = self._directory / "self-signed.pem"
        certificate = certs.make_self_signed(self.key, utc_now())
        write_private(file, certs.dump_certificate(certificate) + certs.dump_key(self.key))
        context.load_cert_chain(file)
        return context

    def check_secret(self, secret: str) -> None:
        """Hold that the secret is the code's; compared in constant time.

        Raises:
            Denied: it is not, or there were too many wrong ones.
        """
        if self._wrong_tries >= MOST_TRIES:
            raise Denied(
                "Enrolment of this agent is locked after too many wrong codes",
                fix="restart the agent and use the new code that it prints",
            )
        if not hmac.compare_digest(secret.encode(), self._secret.hex().encode()):
            self._wrong_tries += 1
            if self._wrong_tries >= MOST_TRIES:
                (self._directory / "secret").unlink(missing_ok=True)
            raise Denied("The enrolment code's secret is wrong", fix="copy the code that this agent printed last")

    def request(self) -> str:
        """Return the certificate request (PEM)."""
        return certs.make_request(self.key)

    def finish(
        self, identity: IdentityDirectory, *, certificate: str, ca: str, signed: SignedMembership, name: str | None
    ) -> str:
        """Become a member: store the identity and forget the code. Return the host's name.

        Args:
            identity: where the identity will be.
            certificate: for this agent's key (PEM).
            ca: the fleet's CA certificate (PEM).
            signed: the fleet document.
            name: the name that this host's configuration insists on.

        Raises:
            Denied: the parts do not fit together, or name another host; nothing was stored.
        """
        own = certs.load_certificate(certificate.encode(), "The certificate")
        root = certs.load_certificate(ca.encode(), "The CA certificate")
        who = certs.read_identity(own)
        if who.kind is not Kind.HOST or verify(signed, root).find(who) is None:
            raise Denied(f"The fleet document does not have the certificate's {who.kind} {who.name}")
        if name is not None and who.name != name:
            raise Denied(
                f"This host is to be enrolled as {who.name}, its configuration says {name}",
                fix=f"`vmferry host add {name} ...`, or change `name` in agent.toml",
            )
        identity.save(self.key, own, root, signed)
        shutil.rmtree(self._directory)
        return who.name

    def _load(self) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        """Return key and secret, making what is not there yet."""
        key_file, secret_file = self._directory / "key.pem", self._directory / "secret"
        try:
            key = certs.load_key(read_private(key_file, "enrolment key"), str(key_file))
        except NotFound:
            key = certs.make_key()
            write_private(key_file, certs.dump_key(key))
        try:
            secret = read_private(secret_file, "enrolment secret")
        except NotFound:
            secret = secrets.token_bytes(_SECRET_BYTES)
            write_private(secret_file, secret)
        return key, secret
