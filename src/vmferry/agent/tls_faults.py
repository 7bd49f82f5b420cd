"""What a failed TLS connection to another agent means."""

from __future__ import annotations

import ssl

import aiohttp

from vmferry.api.client import Endpoint, explain_ssl_error
from vmferry.core.errors import VmferryError


def explain_tls(error: Exception, endpoint: Endpoint) -> VmferryError:
    """Return our error for a TLS error of aiohttp, which wraps the one of ssl."""
    # aiohttp's classes inherit from ssl's without their attributes, so they are unwrapped first.
    cause: BaseException | None = error
    while isinstance(cause, aiohttp.ClientError):
        cause = getattr(cause, "certificate_error", None) or getattr(cause, "os_error", None) or cause.__cause__
    where = f"{endpoint.address} port {endpoint.port}"
    return explain_ssl_error(
        cause if isinstance(cause, ssl.SSLError) else ssl.SSLError(str(error)), endpoint.host, where
    )
