"""What QEMU encrypts a stream with: a key of this one migration, or certificates of both hosts.

Key and certificates lie in the guest's run directory while QEMU reads them. A pre-shared key is read with each
handshake, so it stays while the move lasts; certificates are read once.

Source: QEMU crypto/tlscredspsk.c, crypto/tlscredsx509.c, migration/tls.c, nbd/server.c, block/nbd.c; seen with 7.2.22
and 10.0.2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from vmferry.core.errors import BadInput
from vmferry.ports.hypervisor import Certificates, MigrationSetup
from vmferry.qemu import dh_group
from vmferry.qemu.ciphers import cipher_priority
from vmferry.qemu.qmp import QmpSession
from vmferry.qemu.run_dir import TLS_DIR, RunDir

PSK_OBJECT = "migration-psk"
X509_OBJECT = "migration-x509"
ADMITS_OBJECT = "migration-admits"
_OBJECTS = (PSK_OBJECT, X509_OBJECT, ADMITS_OBJECT)
_OFF = {"tls-creds": "", "tls-hostname": "", "tls-authz": ""}


class CertificateFiles(Protocol):
    """Gives what QEMU reads for one stream."""

    def __call__(self, told: Certificates, *, incoming: bool) -> Mapping[str, str]:
        """Return files by their names; raises Broken when they are of no use."""


def no_certificates(told: Certificates, *, incoming: bool) -> Mapping[str, str]:  # noqa: ARG001 - the protocol's
    """Say that this host has none."""
    raise BadInput("This host has no certificates for streams", fix="write tls_dir under [migration] into agent.toml")


def names(setup: MigrationSetup | None, *, incoming: bool) -> dict[str, str]:
    """Return what a stream, or a server or client of images, is told to use; nothing: it is not encrypted."""
    if setup is None or not setup.encrypted:
        return {}
    if setup.certificates is None:
        return {"tls-creds": PSK_OBJECT}
    other = {"tls-authz": ADMITS_OBJECT} if incoming else {"tls-hostname": setup.certificates.server_name}
    return {"tls-creds": X509_OBJECT, **other}


class Credentials:
    """Those of one QEMU.

    Args:
        session: to it.
        run_dir: its directory, which is its working directory as well.
        uid: its user; None: the agent's own.
        files: gives certificates.
    """

    def __init__(self, session: QmpSession, run_dir: RunDir, uid: int | None, files: CertificateFiles) -> None:
        self._session = session
        self._run_dir = run_dir
        self._uid = uid
        self._files = files

    async def add(self, setup: MigrationSetup, *, incoming: bool) -> None:
        """Give QEMU what a stream needs; on failure some of it may be there (`remove`).

        Raises:
            Broken: QEMU said no, or this host's certificates are of no use.
            BadInput: it has none.
        """
        endpoint = "server" if incoming else "client"
        if setup.psk_key is not None:
            self._run_dir.write_key(setup.psk_key, self._uid)
            await self._add("tls-creds-psk", PSK_OBJECT, dir=TLS_DIR, endpoint=endpoint, priority=cipher_priority())
        elif setup.certificates is not None:
            await self._add_certificates(setup.certificates, endpoint, incoming=incoming)

    async def _add_certificates(self, told: Certificates, endpoint: str, *, incoming: bool) -> None:
        files = await asyncio.to_thread(self._files, told, incoming=incoming)
        self._run_dir.write_secrets({**files, dh_group.FILE_NAME: dh_group.FFDHE2048}, self._uid)
        try:
            # Our agents have checked more than QEMU's sanity check does, which 10.0 has one more rule for than others,
            # and which wants a CA where the source has the destination's own certificate.
            checks: dict[str, object] = {"verify-peer": True, "sanity-check": False}
            cipher = cipher_priority()
            await self._add("tls-creds-x509", X509_OBJECT, dir=TLS_DIR, endpoint=endpoint, priority=cipher, **checks)
        finally:
            self._run_dir.remove_key()
        if incoming:
            await self._add("authz-simple", ADMITS_OBJECT, identity=told.client_name)

    async def _add(self, kind: str, name: str, **properties: object) -> None:
        await self._session.execute("object-add", {"qom-type": kind, "id": name, **properties})

    async def remove(self) -> None:
        """Take everything of it away, here and in QEMU. Idempotent."""
        self._run_dir.remove_key()
        rows = await self._session.execute("qom-list", {"path": "/objects"})
        found = [name for name in _OBJECTS if any(row["name"] == name for row in rows)]
        if found:
            await self._session.execute("migrate-set-parameters", _OFF)
        for name in found:
            await self._session.execute("object-del", {"id": name})
