"""`Fleet`: what the agent knows and does about the fleet itself: membership and certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from vmferry.agent.gate import Gate
from vmferry.api import models as m
from vmferry.core.errors import Denied, NotFound, Refused
from vmferry.core.ids import HostName
from vmferry.pki import certificates as certs
from vmferry.pki.authority import Authority
from vmferry.pki.membership import SignedMembership
from vmferry.pki.names import Identity


class Fleet:
    """Implements FleetService.

    Args:
        gate: the agent's gate, which holds the newest fleet document.
        ca_directory: where the CA directory is, if this host has it.
    """

    def __init__(self, gate: Gate, ca_directory: Path) -> None:
        self._gate = gate
        self._ca_directory = ca_directory
        self._openapi: dict[str, Any] | None = None
        self._log = structlog.get_logger("vmferry.fleet")

    async def hosts(self) -> m.HostList:
        """Return the fleet as this agent knows it."""
        known = self._gate.membership
        rows = tuple(
            m.HostView(
                name=HostName(host.name), address=host.address, port=host.port, authority=host.name == known.authority
            )
            for host in known.hosts
        )
        return m.HostList(version=known.version, hosts=rows)

    async def membership(self) -> m.MembershipBody:
        """Return the newest signed fleet document."""
        self.take_from_authority()
        signed = self._gate.directory.signed_membership()
        return m.MembershipBody(document=signed.document, signature=signed.signature)

    async def accept_membership(self, body: m.MembershipBody) -> None:
        """Take a fleet document if it is newer.

        Raises:
            Denied: badly signed, or older.
        """
        if self._gate.accept_membership(SignedMembership(body.document, body.signature)):
            self._log.info("fleet document taken", version=self._gate.membership.version)

    async def renew(self, caller: Identity, body: m.RenewRequest) -> m.RenewReply:
        """Sign a new certificate for the caller.

        Raises:
            Refused: the CA directory is not on this host.
            Denied: the newest document does not have the caller (any more).
        """
        authority = self._authority()
        certificate = authority.issue(caller, body.request, authority.membership())
        self._log.info("certificate renewed", kind=caller.kind.value, name=caller.name)
        return m.RenewReply(certificate=certs.dump_certificate(certificate).decode())

    async def openapi(self) -> dict[str, object]:
        """Return the OpenAPI page."""
        if self._openapi is None:
            from vmferry.api.openapi import make_page

            self._openapi = make_page()
        return self._openapi

    def take_from_authority(self) -> None:
        """Take the newest document out of the CA directory, if this is the host that has it."""
        try:
            self._gate.accept_membership(self._authority().signed_membership())
        except (Refused, Denied):
            return

    def _authority(self) -> Authority:
        """Return this fleet's CA directory.

        Raises:
            Refused: it is not here.
        """
        try:
            authority = Authority.open(self._ca_directory)
        except NotFound as error:
            where = self._gate.membership.authority
            raise Refused(
                "This host does not have the fleet's CA directory",
                fix=f"ask the agent of {where}" if where else "enrol the host that has it",
            ) from error
        if authority.certificate != self._gate.directory.ca():
            raise Refused("The CA directory of this host belongs to another fleet")
        return authority
