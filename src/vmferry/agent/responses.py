"""JSON and problem answers."""

from __future__ import annotations

import json
from collections.abc import Mapping

from aiohttp import web

from vmferry.api.problems import CONTENT_TYPE, to_problem
from vmferry.core.errors import VmferryError


def json_response(body: bytes, status: int = 200) -> web.Response:
    """Return an answer with a JSON body."""
    return web.Response(body=body, status=status, headers={"Content-Type": "application/json"})


def problem_response(
    error: VmferryError, status: int | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return an answer with a problem body.

    Args:
        error: what happened.
        status: HTTP status, where HTTP has a better one than the error's class.
        headers: further headers.
    """
    problem = to_problem(error, status)
    return web.Response(
        body=json.dumps(problem).encode(),
        status=error.http_status if status is None else status,
        headers={"Content-Type": CONTENT_TYPE, **(headers or {})},
    )
