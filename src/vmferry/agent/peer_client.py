"""`PeerClient`: asks another agent, over connections that stay open.

TLS verifies name *and* enrolment of the other host (they are in its server name) before the first byte of a request is
sent. Every call has a time limit. What the other agent raised is raised here.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

import aiohttp
from pydantic import BaseModel, TypeAdapter, ValidationError

from vmferry import __version__
from vmferry.agent.tls_faults import explain_tls
from vmferry.api import models as m
from vmferry.api.client import Endpoint, explain_closed
from vmferry.api.problems import from_problem
from vmferry.core.errors import Broken, Refused, TimedOut, Unreachable, VmferryError
from vmferry.core.guest import FrozenGuest
from vmferry.core.host import GuestProbe
from vmferry.core.ids import GuestName, GuestUuid, HandoverId, HostName
from vmferry.pki.membership import HostMember, SignedMembership

T = TypeVar("T")

_CONNECT_TIME_LIMIT_S = 5.0
#: A little less than the server's, so that a connection is never closed under a request.
_KEEP_ALIVE_S = 240.0
_MOST_REPLY_BYTES = 16 << 20
_NOTHING = m.Nothing()
_NO_REPLY: TypeAdapter[None] = TypeAdapter(type(None))
_PROBE: TypeAdapter[GuestProbe] = TypeAdapter(GuestProbe)


class PeerClient:
    """Asks one other agent.

    Args:
        member: the host, from the fleet document.
        context: TLS as this agent; kept by reference, so that a renewed certificate counts for new connections.
        check_identity: raises Denied when this agent's own certificate is not valid now.
    """

    def __init__(
        self, member: HostMember, context: ssl.SSLContext, *, check_identity: Callable[[], None] = lambda: None
    ) -> None:
        self.member = member
        self._context = context
        self._check_identity = check_identity
        address = f"[{member.address}]" if ":" in member.address else member.address
        self._endpoint = Endpoint(member.name, member.address, member.port, member.identity.server_name)
        self._base = f"https://{address}:{member.port}"
        self._session: aiohttp.ClientSession | None = None

    @property
    def host(self) -> HostName:
        """The other host's name."""
        return HostName(self.member.name)

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def hello(self, *, time_limit_s: float = 60.0) -> m.HelloReply:
        """Say who we are and learn who answers.

        Raises:
            Refused: the two agents' protocols do not meet.
        """
        body = m.HelloRequest(protocol=m.PROTOCOL, agent_version=__version__)
        reply = await self._ask("/peer/v1/hello", body, _reply(m.HelloReply), time_limit_s)
        check_protocol(reply.protocol, reply.agent_version, self.host)
        return reply

    async def ping(self, *, time_limit_s: float = 5.0) -> m.PingReply:
        """Return two stamps of the other host's clock; also opens a connection for what comes next."""
        return await self._ask("/peer/v1/ping", _NOTHING, _reply(m.PingReply), time_limit_s)

    async def probe(self, guest: FrozenGuest, *, time_limit_s: float = 120.0) -> GuestProbe:
        """Return what a guest would find there."""
        return await self._ask("/peer/v1/probe", m.ProbeRequest(guest=guest), _PROBE, time_limit_s)

    async def expect_probe(self, *, time_limit_s: float = 10.0) -> m.ProbeOffer:
        """Have a probe of the link let in there."""
        return await self._ask("/peer/v1/links/probe", _NOTHING, _reply(m.ProbeOffer), time_limit_s)

    async def probe_result(self, probe: HandoverId, *, time_limit_s: float = 20.0) -> m.ProbeResult:
        """Wait until a probe was counted there, and return what arrived."""
        body = m.ProbeResultRequest(probe=probe)
        return await self._ask("/peer/v1/links/probe/result", body, _reply(m.ProbeResult), time_limit_s)

    async def reserve(
        self, handover: HandoverId, body: m.ReserveRequest, *, time_limit_s: float = 120.0
    ) -> m.ReserveReply:
        """Hold everything there and start QEMU, listening. Never sent twice by itself."""
        path = f"/peer/v1/handovers/{handover}/reserve"
        return await self._ask(path, body, _reply(m.ReserveReply), time_limit_s, repeat=False)

    async def wait_loaded(self, handover: HandoverId, timeout_ms: int) -> m.PeerStatus:
        """Wait there until everything is loaded, it failed, or the time is over."""
        body = m.WaitLoadedRequest(timeout_ms=timeout_ms)
        path = f"/peer/v1/handovers/{handover}/wait-loaded"
        return await self._ask(path, body, _reply(m.PeerStatus), timeout_ms / 1000 + 5.0)

    async def commit(self, handover: HandoverId, body: m.CommitRequest, *, time_limit_s: float = 30.0) -> m.CommitReply:
        """Tell that the guest is theirs."""
        return await self._ask(f"/peer/v1/handovers/{handover}/commit", body, _reply(m.CommitReply), time_limit_s)

    async def rejoin(self, handover: HandoverId, body: m.RejoinRequest, *, time_limit_s: float = 30.0) -> m.RejoinReply:
        """Have a post-copy's destination listen anew."""
        return await self._ask(f"/peer/v1/handovers/{handover}/rejoin", body, _reply(m.RejoinReply), time_limit_s)

    async def announce(self, handover: HandoverId, *, time_limit_s: float = 10.0) -> None:
        """Have a guest that arrived announced to the network again."""
        await self._ask(f"/peer/v1/handovers/{handover}/announce", _NOTHING, _NO_REPLY, time_limit_s)

    async def discard(self, handover: HandoverId, *, time_limit_s: float = 60.0) -> None:
        """Tell to drop the arrival."""
        await self._ask(f"/peer/v1/handovers/{handover}/discard", _NOTHING, _NO_REPLY, time_limit_s)

    async def status(self, handover: HandoverId, *, time_limit_s: float = 10.0) -> m.PeerStatus:
        """Return how their side is."""
        return await self._ask(f"/peer/v1/handovers/{handover}/status", _NOTHING, _reply(m.PeerStatus), time_limit_s)

    async def verdict(self, handover: HandoverId, *, time_limit_s: float = 10.0) -> m.VerdictReply:
        """Ask the source who owns the guest."""
        path = f"/peer/v1/handovers/{handover}/verdict"
        return await self._ask(path, _NOTHING, _reply(m.VerdictReply), time_limit_s)

    async def claim(self, name: GuestName, uuid: GuestUuid, *, time_limit_s: float = 5.0) -> m.ClaimReply:
        """Ask in which epoch that host owns a guest."""
        body = m.ClaimRequest(uuid=uuid)
        return await self._ask(f"/peer/v1/guests/{name}/claim", body, _reply(m.ClaimReply), time_limit_s)

    async def beats(
        self, handover: HandoverId, start_ns: int, end_ns: int, *, time_limit_s: float = 30.0
    ) -> m.BeatsReply:
        """Return the beats that were stamped there in a window of their clock."""
        body = m.BeatsRequest(start_ns=start_ns, end_ns=end_ns)
        return await self._ask(f"/peer/v1/handovers/{handover}/beats", body, _reply(m.BeatsReply), time_limit_s)

    async def membership(self, *, time_limit_s: float = 10.0) -> SignedMembership:
        """Return the newest fleet document that they have."""
        body = await self._ask("/v1/membership", None, _reply(m.MembershipBody), time_limit_s)
        return SignedMembership(body.document, body.signature)

    async def renew(self, request: str, *, time_limit_s: float = 10.0) -> bytes:
        """Return a new certificate for this agent, for a certificate request (PEM)."""
        body = m.RenewRequest(request=request)
        return (await self._ask("/v1/ca/renew", body, _reply(m.RenewReply), time_limit_s)).certificate.encode()

    async def _ask(
        self,
        path: str,
        body: BaseModel | None,
        reply: TypeAdapter[T],
        time_limit_s: float,
        *,
        repeat: bool = True,
    ) -> T:
        """Send one request (GET without a body, else POST) and return its answer.

        A connection that had stayed open may be dead (the other agent was restarted): `repeat` sends the request once
        more over a new one.

        Raises:
            TimedOut: no answer in time; it may have been done.
            Unreachable: nobody answers there, or the connection broke; it may have been done.
            Denied: TLS or the other agent refuses this agent, or the other one is not who it should be.
        """
        self._check_identity()
        data = None if body is None else body.__pydantic_serializer__.to_json(body)
        try:
            async with asyncio.timeout(time_limit_s):
                try:
                    status, content = await self._send(path, data)
                except (aiohttp.ClientError, ConnectionError) as error:
                    if not (repeat and _is_closed(error)):
                        raise
                    status, content = await self._send(path, data)
        except TimeoutError as error:
            raise self._late(path, time_limit_s, error) from error
        except (aiohttp.ClientError, OSError) as error:
            raise await self._fault(error) from error
        return self._decode(status, content, reply)

    async def _send(self, path: str, data: bytes | None) -> tuple[int, bytes]:
        """Send one request; return status and body."""
        if self._session is None:
            self._session = self._open_session()
        method = "GET" if data is None else "POST"
        headers = None if data is None else {"Content-Type": "application/json"}
        request = self._session.request(
            method, self._base + path, data=data, headers=headers, server_hostname=self.member.identity.server_name
        )
        async with request as response:
            content = await response.content.read(_MOST_REPLY_BYTES)
            while not response.content.at_eof():
                if len(content) >= _MOST_REPLY_BYTES:
                    raise Broken(f"Agent of {self.host} answered more than {_MOST_REPLY_BYTES} bytes")
                content += await response.content.read(_MOST_REPLY_BYTES - len(content))
            return response.status, content

    def _open_session(self) -> aiohttp.ClientSession:
        """Return a session without anything that a request to a known peer does not need."""
        connector = aiohttp.TCPConnector(ssl=self._context, limit=16, keepalive_timeout=_KEEP_ALIVE_S)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIME_LIMIT_S),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            raise_for_status=False,
            trust_env=False,
        )

    def _decode(self, status: int, content: bytes, reply: TypeAdapter[T]) -> T:
        """Return the answer, or raise what the other agent raised."""
        if status >= 400:
            raise from_problem(_json(content), status, self.host)
        try:
            return reply.validate_json(content or b"null")
        except ValidationError as error:
            raise Broken(
                f"Agent of {self.host} answered what this agent does not understand: {error.errors()[0]['msg']}",
                fix="update the older of the two agents",
            ) from error

    def _late(self, path: str, time_limit_s: float, error: TimeoutError) -> VmferryError:
        """Return the error for no answer in time: not even a connection, or only no answer."""
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return self._unreachable(f"no connection within {_CONNECT_TIME_LIMIT_S:g} s")
        return TimedOut(f"Agent of {self.host} did not answer {path} within {time_limit_s:g} s", retry=True)

    async def _fault(self, error: Exception) -> VmferryError:
        """Return our error for what aiohttp raised."""
        if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError)):
            return explain_tls(error, self._endpoint)
        if isinstance(error, aiohttp.ClientConnectorError):
            return self._unreachable(error.strerror or str(error.os_error))
        if _is_closed(error):
            denied = await asyncio.to_thread(explain_closed, self._endpoint, self._context)
            if denied is not None:
                return denied
        return self._unreachable(str(error) or type(error).__name__)

    def _unreachable(self, why: str) -> Unreachable:
        """Return the error for a host that does not answer."""
        return Unreachable(
            f"Agent of {self.host} at {self.member.address} port {self.member.port} does not answer: {why}",
            fix="check that its agent runs and that the port is open between the hosts",
            retry=True,
        )


def check_protocol(protocol: int, agent_version: str, host: HostName) -> int:
    """Return the protocol that both agents speak.

    Args:
        protocol: the newest that the other one speaks; it speaks the one before too.
        agent_version: the other one's version, for the text.
        host: the other one's host.

    Raises:
        Refused: there is none.
    """
    if protocol < m.OLDEST_PROTOCOL or protocol > m.PROTOCOL + 1:
        raise Refused(
            f"Agent of {host} ({agent_version}) speaks protocol {protocol}, "
            f"this one ({__version__}) {m.OLDEST_PROTOCOL} to {m.PROTOCOL}: they do not meet",
            fix="update the older agent; agents one protocol apart work together",
        )
    return min(protocol, m.PROTOCOL)


def _is_closed(error: Exception) -> bool:
    """Tell whether an open connection was closed under a request; a failure to open one is something else."""
    return isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | ConnectionError) and not (
        isinstance(error, aiohttp.ClientConnectorError)
    )


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _reply(kind: type[T]) -> TypeAdapter[T]:
    """Return the adapter of a reply type, made once."""
    adapter = _ADAPTERS.get(kind)
    if adapter is None:
        adapter = _ADAPTERS[kind] = TypeAdapter(kind)
    return adapter


def _json(content: bytes) -> object:
    """Return a decoded body, None when it is not JSON or too deep to be ours."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
