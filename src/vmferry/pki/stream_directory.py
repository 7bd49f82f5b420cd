"""The directory with a host's certificates for QEMU's streams (`migration.tls_dir`), laid out as QEMU itself has it.

Read anew each time: a renewed certificate or a new list of what was revoked counts from the next move on. Private keys
go to the guest's QEMU and nowhere else.

Source: QEMU docs/system/tls ("File permissions", names of the files).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from vmferry.core.errors import BadInput, Blocker, Broken, Refused
from vmferry.core.host import StreamCertificates
from vmferry.pki.distinguished import subject_text
from vmferry.pki.stream_files import (
    Load,
    Unfit,
    dump,
    dump_key,
    load_authorities,
    load_certificate,
    load_key,
    load_revocations,
)
from vmferry.pki.stream_rules import Complaint, Trust, Use, host_name
from vmferry.ports.hypervisor import Certificates

CA_FILE, CRL_FILE = "ca-cert.pem", "ca-crl.pem"
_MOST_BYTES = 8 << 20
_WHERE = "docs/streams.md says what belongs there"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Pair:
    """A certificate and its key, as far as they could be read."""

    certificate: x509.Certificate | None
    key: PrivateKeyTypes | None


@dataclass(frozen=True, slots=True)
class StreamDirectory:
    """One host's certificates.

    Args:
        path: the directory.
        host: whose, for people.
        now: tells the time.
    """

    path: Path
    host: str
    now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)

    def look(self) -> StreamCertificates:
        """Return what can be told others, with everything that is wrong; never raises."""
        problems: list[Complaint] = []
        trust = self._trust(problems)
        server, client = self._certificate(Use.SERVER, trust, problems), self._certificate(Use.CLIENT, trust, problems)
        server_name = self._named(Use.SERVER, server, host_name, problems)
        client_name = self._named(Use.CLIENT, client, subject_text, problems)
        blockers = tuple(
            Blocker("stream.certificates-unusable", f"On {self.host} {what}", fix) for what, fix in problems
        )
        return StreamCertificates(dump(server), dump(client), server_name, client_name, blockers)

    def distrust(self, pem: str, host: str, use: Use) -> tuple[Blocker, ...]:
        """Return why this host does not believe another one's certificate; empty: it does."""
        try:
            certificate = load_certificate(pem.encode())
            found = list(self._trust([]).complaints(certificate, use, self.now()))
        except Unfit:
            found = [("it cannot be read", "look what its agent's tls_dir holds")]
        return tuple(
            Blocker(
                "stream.certificate-distrusted",
                f"{self.host} does not believe the {use} certificate of {host}: {what}",
                fix,
            )
            for what, fix in found
        )

    def check_arrival(self, told: Certificates, source: str) -> None:
        """Check what a source told of both sides' certificates.

        Raises:
            Refused: its certificate is not believed here, is not named as it says, or the one of this host was replaced
                since it asked.
        """
        here = self.look()
        if wrong := (*here.problems, *self.distrust(told.client, source, Use.CLIENT)):
            raise Refused("; ".join(each.what for each in wrong), fix=wrong[0].fix, side="destination")
        if here.server != told.server or here.server_name != told.server_name:
            raise Refused(
                f"The server certificate of {self.host} was replaced meanwhile", side="destination", retry=True
            )
        problems: list[Complaint] = []
        if told.client_name != self._named(Use.CLIENT, load_certificate(told.client.encode()), subject_text, problems):
            raise Refused(f"The client certificate of {source} is not named {told.client_name}", side="destination")

    def files(self, told: Certificates, *, incoming: bool) -> Mapping[str, str]:
        """Return what QEMU reads for one stream, by names of files: certificates, and the one private key.

        The source's believes the very certificate that the destination told of, and no other: QEMU does not look at
        lists of what was revoked where it connects.

        Raises:
            Broken: something is wrong with them, or they were replaced since the other side was told.
        """
        use, expected = (Use.SERVER, told.server) if incoming else (Use.CLIENT, told.client)
        problems: list[Complaint] = []
        trust, pair = self._trust(problems), self._pair(use, problems)
        if problems or pair.certificate is None or pair.key is None:
            raise Broken(f"On {self.host} {'; '.join(what for what, _ in problems)}", fix=problems[0][1])
        if dump(pair.certificate) != expected:
            raise Broken(f"The {use} certificate of {self.host} was replaced meanwhile", fix="try again", retry=True)
        own = {f"{use}-cert.pem": expected, f"{use}-key.pem": dump_key(pair.key)}
        if not incoming:
            return {**own, CA_FILE: told.server}
        lists = {CRL_FILE: "".join(map(dump, trust.revocations))} if trust.revocations else {}
        return {**own, CA_FILE: "".join(map(dump, trust.authorities)), **lists}

    # -- inside ---------------------------------------------------------------------------------------------------

    def _trust(self, problems: list[Complaint]) -> Trust:
        authorities = self._read(CA_FILE, load_authorities, problems)
        revocations = self._read(CRL_FILE, load_revocations, problems) if self._has(CRL_FILE) else None
        trust = Trust(authorities or (), revocations or ())
        problems.extend(trust.own_complaints(self.now()))
        return trust

    def _certificate(self, use: Use, trust: Trust, problems: list[Complaint]) -> x509.Certificate | None:
        certificate = self._pair(use, problems).certificate
        if certificate is not None and trust.authorities:
            found = trust.complaints(certificate, use, self.now())
            problems.extend((f"{use}-cert.pem is of no use: {what}", fix) for what, fix in found)
        return certificate

    def _pair(self, use: Use, problems: list[Complaint]) -> _Pair:
        certificate = self._read(f"{use}-cert.pem", load_certificate, problems)
        key = self._read(f"{use}-key.pem", load_key, problems)
        if certificate is not None and key is not None and key.public_key() != certificate.public_key():
            problems.append(
                (f"{use}-key.pem is not the key of {use}-cert.pem", "put the two that belong together there")
            )
        return _Pair(certificate, key)

    def _named(
        self,
        use: Use,
        certificate: x509.Certificate | None,
        name: Callable[[x509.Certificate], str],
        problems: list[Complaint],
    ) -> str:
        if certificate is None:
            return ""
        try:
            return name(certificate)
        except BadInput as error:
            problems.append((f"{use}-cert.pem is of no use: {error.what}", "have its CA issue another one"))
            return ""

    def _has(self, name: str) -> bool:
        """Tell whether there is such a file; whatever keeps that from being known is told by reading it."""
        try:
            (self.path / name).lstat()
        except FileNotFoundError:
            return False
        except OSError:
            pass
        return True

    def _read(self, name: str, load: Load[T], problems: list[Complaint]) -> T | None:
        """Return what a file holds; None: it is of no use, and why is one of the problems now."""
        path = self.path / name
        try:
            return load(_content(path))
        except Unfit as error:
            problems.append((f"{path} {error.what}", error.fix))
        except OSError as error:
            problems.append(
                (f"{path} cannot be read: {error.strerror}", f"put it there, for the agent to read; {_WHERE}")
            )
        return None


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise Unfit(f"is larger than {_MOST_BYTES >> 20} MiB", _WHERE)
    return content
