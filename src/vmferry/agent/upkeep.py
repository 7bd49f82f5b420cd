"""What an agent does by itself all the time: fetch newer fleet documents, renew its certificate."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import Callable

import structlog

from vmferry.agent.fleet import Fleet
from vmferry.agent.gate import Gate
from vmferry.agent.peer_pool import PeerPool
from vmferry.api import models as m
from vmferry.core.errors import VmferryError
from vmferry.core.ids import HostName
from vmferry.pki import certificates as certs
from vmferry.pki.authority import utc_now

PERIOD_S = 60.0
_TELL_EVERY = dt.timedelta(days=1)


class Upkeep:
    """Keeps document and certificate fresh.

    Args:
        gate: the agent's gate.
        fleet: answers for the CA directory, when it is on this host.
        peers: clients to other agents.
        server_context: TLS of the listening side, which takes a renewed certificate for new connections.
        now: returns the time.
    """

    def __init__(
        self,
        gate: Gate,
        fleet: Fleet,
        peers: PeerPool,
        server_context: ssl.SSLContext,
        *,
        now: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        self._gate = gate
        self._fleet = fleet
        self._peers = peers
        self._server_context = server_context
        self._now = now
        self._told_at: dt.datetime | None = None
        self._log = structlog.get_logger("vmferry.upkeep")

    async def run(self, period_s: float = PERIOD_S) -> None:
        """Do it now and every period, until cancelled; a failure is logged and tried again."""
        while True:
            await self.run_once()
            await asyncio.sleep(period_s)

    async def run_once(self) -> None:
        """Do it once; never raises for what a peer or a file did."""
        self._tell_ca_end()
        for step in (self._fetch, self._renew):
            try:
                await step()
            except VmferryError as error:
                self._log.warning("upkeep failed", step=step.__name__, code=error.code, what=error.what, fix=error.fix)

    def _tell_ca_end(self) -> None:
        """Warn once a day when the CA's certificate ends soon."""
        now = self._now()
        warning = certs.ends_soon(self._gate.directory.ca(), now)
        if warning is not None and (self._told_at is None or now - self._told_at >= _TELL_EVERY):
            self._told_at = now
            self._log.warning(warning)

    @property
    def _authority(self) -> HostName | None:
        """The host to ask; None: this one, or nobody."""
        authority = self._gate.membership.authority
        return None if authority in {None, self._gate.directory.identity().name} else HostName(str(authority))

    async def _fetch(self) -> None:
        """Take a newer fleet document."""
        if self._authority is None:
            self._fleet.take_from_authority()
            return
        if self._gate.accept_membership(await self._peers.client(self._authority).membership()):
            self._log.info("fleet document taken", version=self._gate.membership.version)

    async def _renew(self) -> None:
        """Get a new key and certificate when two thirds of the old one's lifetime are over."""
        directory = self._gate.directory
        if not certs.needs_renewal(directory.certificate(), self._now()):
            return
        key = certs.make_key()
        request = certs.make_request(key)
        if self._authority is None:
            reply = await self._fleet.renew(directory.identity(), m.RenewRequest(request=request))
            pem = reply.certificate.encode()
        else:
            pem = await self._peers.client(self._authority).renew(request)
        certificate = certs.load_certificate(pem, "The renewed certificate")
        directory.replace_certificate(key, certificate)
        directory.reload(self._server_context)
        self._peers.take_certificate()
        self._log.info("certificate renewed", valid_until=f"{certificate.not_valid_after_utc:%F %R}")
