"""Asks a host's agent over its HTTP API, from outside the host: as an operator, with the real certificates."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp

from vmferry.api.problems import from_problem
from vmferry.core.errors import Unreachable
from vmferry.lab.inside import socket_in
from vmferry.pki.identity import IdentityDirectory

AddressInfo = tuple[int, int, int, str, Any]


class Api:
    """The operator API of one host's agent; each call is a connection of its own, unless they are `kept_open`.

    Args:
        host: the host.
        identity: the operator's directory.
        namespace: where connections are made from; None: from here.
    """

    def __init__(self, host: str, identity: Path, namespace: str | None) -> None:
        self._host = host
        self._identity = IdentityDirectory(identity)
        self._namespace = namespace
        self._kept: aiohttp.ClientSession | None = None

    @contextlib.asynccontextmanager
    async def kept_open(self) -> AsyncIterator[None]:
        """Use one connection again and again, opened now; what a program does that makes many calls."""
        async with self._session() as session:
            self._kept = session
            try:
                await self.get("/v1/host")
                yield
            finally:
                self._kept = None

    async def get(self, path: str) -> Any:
        """Return the JSON answer to a GET.

        Raises:
            Unreachable: no agent answers.
            VmferryError: what the agent raised.
        """
        return _read(self._host, *await self._ask("GET", path, None))

    async def follow(self, path: str, timeout_s: float = 300.0) -> list[Any]:
        """Return the JSON lines of a stream when it has ended: one connection, and nothing to do meanwhile."""
        status, content = await self._ask("GET", path, None, timeout_s)
        if status >= 400:
            _read(self._host, status, content)
        return [json.loads(line) for line in content.splitlines() if line]  # an empty one says: I am still here

    async def post(self, path: str, body: object = None) -> Any:
        """Return the JSON answer to a POST; raises as `get` does."""
        return _read(self._host, *await self._ask("POST", path, {} if body is None else body))

    async def delete(self, path: str) -> None:
        """Send a DELETE; raises as `get` does."""
        _read(self._host, *await self._ask("DELETE", path, None))

    async def wait_answer(self, timeout_s: float = 60.0) -> None:
        """Wait until the agent answers.

        Raises:
            Unreachable: it did not in time.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                await self.get("/v1/host")
            except Unreachable:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.05)
            else:
                return

    async def _ask(self, method: str, path: str, body: object, timeout_s: float = 60.0) -> tuple[int, bytes]:
        member = self._identity.membership().host(self._host)
        url = f"https://{member.address}:{member.port}{path}"
        try:
            async with (
                contextlib.nullcontext(self._kept) if self._kept else self._session() as session,
                session.request(
                    method,
                    url,
                    json=body,
                    server_hostname=member.identity.server_name,
                    timeout=aiohttp.ClientTimeout(total=timeout_s),
                ) as answer,
            ):
                return answer.status, await answer.read()
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            raise Unreachable(f"Agent of {self._host} does not answer at {url}: {error!r}", retry=True) from error

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            ssl=self._identity.client_context(),
            socket_factory=self._socket if self._namespace else None,
        )
        return aiohttp.ClientSession(connector=connector)

    def _socket(self, address: AddressInfo) -> socket.socket:
        family, kind, protocol, _, _ = address
        return socket_in(cast("str", self._namespace), family, kind, protocol)


def _read(host: str, status: int, content: bytes) -> Any:
    """Return what an answer says; a problem is raised as the error that the agent raised."""
    body = json.loads(content) if content else None
    if status >= 400:
        raise from_problem(body, status, host)
    return body
