"""What an agent answers before it is enrolled: two requests, and for everything else why not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog
from aiohttp import web

from vmferry import __version__
from vmferry.agent.config import AgentConfig
from vmferry.agent.dispatch import load_body
from vmferry.agent.http import BODY_TIME_LIMIT_S, too_large
from vmferry.agent.responses import json_response, problem_response
from vmferry.api import models as m
from vmferry.api.bases import Request
from vmferry.core.errors import BadInput, Denied, NotFound, TimedOut, VmferryError
from vmferry.pki.authority import CERTIFICATE_FILE
from vmferry.pki.enrol import Enrolment
from vmferry.pki.files import read_private
from vmferry.pki.identity import IdentityDirectory
from vmferry.pki.membership import SignedMembership


class EnrolServer:
    """Answers until the agent is a member.

    Args:
        enrolment: key and secret.
        config: the agent's configuration.
        port: on which it listens.
    """

    def __init__(self, enrolment: Enrolment, config: AgentConfig, port: int) -> None:
        self._enrolment = enrolment
        self._config = config
        self._port = port
        self._log = structlog.get_logger("vmferry.enrol")
        self.finished = asyncio.Event()  #: set when the identity is stored

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; every error becomes a problem."""
        try:
            return await self._answer(request)
        except VmferryError as error:
            self._log.warning("enrolment refused", what=error.what, remote=request.remote)
            return problem_response(error)
        except web.HTTPRequestEntityTooLarge:
            return too_large()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        """Answer one request, or raise."""
        models: dict[str, type[Request]] = {"/enrol/v1/request": m.EnrolRequest, "/enrol/v1/finish": m.EnrolFinish}
        model = models.get(request.path)
        if model is None or request.method != "POST":
            raise Denied("This agent is not enrolled yet", fix="`vmferry host add` it with the code in its log")
        try:
            async with asyncio.timeout(BODY_TIME_LIMIT_S):
                content = await request.read()
        except TimeoutError as error:
            raise TimedOut("The body did not come in time") from error
        body = load_body(model, content)
        if isinstance(body, m.EnrolRequest):
            return json_response(self._request(body).model_dump_json().encode())
        if isinstance(body, m.EnrolFinish):
            self._finish(body)
        return web.Response(status=204)

    def _request(self, body: m.EnrolRequest) -> m.EnrolReply:
        """Give the certificate request to who knows the secret."""
        self._enrolment.check_secret(body.secret)
        if self._config.name not in {None, body.name}:
            raise BadInput(
                f"The host's configuration names it {self._config.name}, not {body.name}",
                fix=f"`vmferry host add {self._config.name} ...`, or change `name` in agent.toml",
            )
        return m.EnrolReply(
            request=self._enrolment.request(),
            ca=_read_ca(self._config.authority_dir),
            agent_version=__version__,
            port=self._port,
        )

    def _finish(self, body: m.EnrolFinish) -> None:
        """Store the identity."""
        self._enrolment.check_secret(body.secret)
        if self.finished.is_set():
            return
        name = self._enrolment.finish(
            IdentityDirectory(self._config.identity_dir),
            certificate=body.certificate,
            ca=body.ca,
            signed=SignedMembership(body.membership.document, body.membership.signature),
            name=self._config.name,
        )
        self._log.info("enrolled", name=name)
        self.finished.set()


def _read_ca(directory: Path) -> str | None:
    """Return the CA certificate of a CA directory on this host, None when there is none."""
    try:
        return read_private(directory / CERTIFICATE_FILE, "CA certificate").decode()
    except NotFound:
        return None
