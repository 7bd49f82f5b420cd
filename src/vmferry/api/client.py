"""`Client`: asks an agent from the command line; synchronous and light (standard library only).

Nothing heavy is imported: no pydantic, no aiohttp, no cryptography. A request is a dict, so is its answer; problem
bodies are raised as the error that the agent raised.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from vmferry.api.problems import from_problem
from vmferry.core.errors import Broken, Denied, TimedOut, Unreachable, VmferryError

CONNECT_TIME_LIMIT_S = 5.0
#: A stream that is silent for longer is dead: agents send an empty line every five seconds.
_STREAM_SILENCE_S = 20.0
_MOST_REPLY_BYTES = 16 << 20
#: Of a stream; the longest of ours, a report, has some kilobytes.
_MOST_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One agent, as the fleet document has it."""

    host: str
    address: str
    port: int
    server_name: str  #: name and enrolment, verified by TLS before anything is sent


class Client:
    """Asks one agent; each request has its own connection unless they follow each other.

    Args:
        endpoint: the agent.
        context: TLS as an operator.
        time_limit_s: for one answer.
        check_peer: called with the other side's certificate (DER) before anything is sent; raises to refuse it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        context: ssl.SSLContext,
        *,
        time_limit_s: float = 60.0,
        check_peer: Callable[[bytes], None] | None = None,
    ) -> None:
        self._check_peer = check_peer
        self.endpoint = endpoint
        self._context = context
        self._time_limit_s = time_limit_s
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def request(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, time_limit_s: float | None = None
    ) -> dict[str, Any]:
        """Send a request and return its answer, empty for an answer without body.

        Raises:
            VmferryError: what the agent raised.
            Unreachable: nobody answers there.
            TimedOut: no answer in time; it may have been done.
            Denied: the agent refuses our certificate, or is not the host it should be.
        """
        response = self._send(method, path, body, time_limit_s or self._time_limit_s)
        try:
            content = response.read(_MOST_REPLY_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise self._fault(error, path) from error
        decoded = _json(content)
        if response.status >= 400:
            raise from_problem(decoded, response.status, self.endpoint.host)
        if not content:
            return {}
        if not isinstance(decoded, dict):
            raise Broken(f"Agent of {self.endpoint.host} answered {path} with something that is not a JSON object")
        return decoded

    def stream(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the JSON lines of a stream until its end.

        Raises:
            VmferryError: what the agent raised, at the start or in the middle.
            Unreachable: the connection broke; the agent may go on.
        """
        response = self._send("GET", path, None, _STREAM_SILENCE_S)
        try:
            if response.status >= 400:
                raise from_problem(_json(response.read(_MOST_REPLY_BYTES)), response.status, self.endpoint.host)
            for line in _lines(response, self.endpoint.host):
                event = _json(line) if line.strip() else None
                if isinstance(event, dict):
                    if event.get("event") == "problem":
                        raise from_problem(event, response.status, self.endpoint.host)
                    yield event
        except (OSError, http.client.HTTPException) as error:
            raise self._fault(error, path) from error
        finally:
            self.close()

    def _send(
        self, method: str, path: str, body: dict[str, Any] | None, time_limit_s: float
    ) -> http.client.HTTPResponse:
        """Send a request and return the head of its answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        fresh = self._connection is None
        try:
            connection = self._connect(min(CONNECT_TIME_LIMIT_S, time_limit_s))
            connection.sock.settimeout(time_limit_s)
            connection.request(method, path, data, headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            fault = self._fault(error, path, time_limit_s)
            self.close()
            if not isinstance(error, ConnectionError | ssl.SSLEOFError):
                raise fault from error
            if not fresh and method == "GET":  # the connection had stayed open and is dead; asking is harmless
                return self._send(method, path, body, time_limit_s)
            raise explain_closed(self.endpoint, self._context) or fault from error

    def _connect(self, time_limit_s: float) -> http.client.HTTPConnection:
        """Return an open connection; TLS has verified the other side when it returns."""
        if self._connection is None:
            connection = http.client.HTTPConnection(self.endpoint.address, self.endpoint.port)
            plain = socket.create_connection((self.endpoint.address, self.endpoint.port), timeout=time_limit_s)
            try:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                secure = self._context.wrap_socket(plain, server_hostname=self.endpoint.server_name)
            except BaseException:
                plain.close()
                raise
            connection.sock = secure
            if self._check_peer is not None:
                try:
                    self._check_peer(secure.getpeercert(binary_form=True) or b"")
                except BaseException:
                    connection.close()
                    raise
            self._connection = connection
        return self._connection

    def _fault(self, error: Exception, path: str, time_limit_s: float = CONNECT_TIME_LIMIT_S) -> VmferryError:
        """Return our error for a failed exchange."""
        where = f"{self.endpoint.address} port {self.endpoint.port}"
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return explain_ssl_error(error, self.endpoint.host, where)
        if isinstance(error, TimeoutError):
            if self._connection is None:
                limit = f"{min(CONNECT_TIME_LIMIT_S, time_limit_s):g}"
                return _unreachable(self.endpoint.host, where, f"no connection within {limit} s")
            return TimedOut(
                f"Agent of {self.endpoint.host} did not answer {path} in time",
                fix="look whether it was done before you repeat it: `vmferry guest list`, `vmferry handover list`",
                retry=True,
            )
        if isinstance(error, http.client.IncompleteRead):
            return _unreachable(self.endpoint.host, where, "its answer was cut in the middle")
        return _unreachable(self.endpoint.host, where, str(error) or type(error).__name__)


def explain_ssl_error(error: BaseException, host: str, where: str) -> VmferryError:
    """Return our error for a TLS error: who refused whom, and why."""
    text = str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return Denied(
            f"What answers at {where} is not {host} as the fleet document has it: {error.verify_message}",
            fix="check the address, the clocks of both hosts, and that the host is (still) enrolled",
        )
    if "ALERT" in text.upper() or "CERTIFICATE" in text.upper():
        return _refused(host, text)
    return Broken(f"TLS with {host} at {where} failed: {text}", fix="check that a vmferry agent listens there")


def explain_closed(endpoint: Endpoint, context: ssl.SSLContext) -> Denied | None:
    """Find out, with one more connection, whether an agent closes connections because it refuses our certificate.

    In TLS 1.3 the client is done before the server has seen its certificate; a server that accepts it then sends
    session tickets, one that does not closes without any. None: it accepts it, or it could not be found out.

    Source: RFC 8446 section 4.6.1.
    """
    try:
        plain = socket.create_connection((endpoint.address, endpoint.port), timeout=CONNECT_TIME_LIMIT_S)
        with plain, context.wrap_socket(plain, server_hostname=endpoint.server_name) as secure:
            secure.settimeout(0.1)
            deadline = time.monotonic() + CONNECT_TIME_LIMIT_S
            while not _has_ticket(secure) and time.monotonic() < deadline:
                try:
                    ended = not secure.recv(1)
                except TimeoutError:
                    continue
                except (ssl.SSLEOFError, ConnectionError):
                    ended = True
                if ended:
                    return None if _has_ticket(secure) else _refused(endpoint.host, "it closes the connection")
    except ssl.SSLError as error:
        explained = explain_ssl_error(error, endpoint.host, f"{endpoint.address} port {endpoint.port}")
        return explained if isinstance(explained, Denied) else None
    except OSError:
        return None
    return None


def _has_ticket(secure: ssl.SSLSocket) -> bool:
    """Tell whether the server has sent a session ticket."""
    return secure.session is not None and secure.session.has_ticket


def _refused(host: str, why: str) -> Denied:
    """Return the error for an agent that refuses our certificate."""
    return Denied(
        f"Agent of {host} refuses our certificate: {why}",
        fix="it is expired, or of another fleet: have this identity enrolled again",
    )


def _lines(response: http.client.HTTPResponse, host: str) -> Iterator[bytes]:
    """Yield the lines of a body until its real end; `readline` would take a cut stream for ended.

    Raises:
        http.client.IncompleteRead: it was cut.
        Broken: a line is longer than any of ours.
    """
    rest = b""
    while data := response.read1(65536):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if len(rest) > _MOST_LINE_BYTES:
            raise Broken(
                f"Agent of {host} sent a line of more than {_MOST_LINE_BYTES} bytes",
                fix="none of ours is that long: check that it is an agent of vmferry, and of which version",
            )
    if rest:
        yield rest


def _unreachable(host: str, where: str, why: str) -> Unreachable:
    """Return the error for a host that does not answer."""
    return Unreachable(
        f"Agent of {host} at {where} does not answer: {why}",
        fix="check that its agent runs and that its port is reachable from here",
        retry=True,
    )


def _json(content: bytes) -> object:
    """Return a decoded body, None when it is not JSON or too deep to be ours."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
