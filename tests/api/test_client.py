"""The command line's client is light, and says clearly what is wrong."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading

import pytest

from vmferry.api.client import Client, Endpoint
from vmferry.core.errors import Broken, TimedOut, Unreachable


def test_nothing_heavy_is_imported() -> None:
    """Importing the client imports neither pydantic nor aiohttp nor cryptography: the command line starts fast."""
    code = (
        "import sys, vmferry.api.client; print({'pydantic', 'aiohttp', 'cryptography', 'asyncio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def plain_context() -> ssl.SSLContext:
    """Return a context; these tests never get as far as certificates."""
    return ssl.create_default_context()


def test_nobody_listens() -> None:
    """A port where nobody listens is Unreachable, with host, address and fix."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        Client(Endpoint("host-a", "127.0.0.1", port, "x"), plain_context()) as client,
        pytest.raises(Unreachable, match=f"host-a at 127.0.0.1 port {port}") as caught,
    ):
        client.request("GET", "/v1/host")
    assert caught.value.fix is not None


def test_unknown_address() -> None:
    """A name that does not resolve is Unreachable."""
    endpoint = Endpoint("host-a", "no-such-host.invalid", 1, "x")
    with Client(endpoint, plain_context()) as client, pytest.raises(Unreachable):
        client.request("GET", "/v1/host")


def test_something_else_listens() -> None:
    """A server that does not speak TLS is Broken, not a stack trace."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"220 mail.example ready\r\n")
                connection.recv(1000)

        thread = threading.Thread(target=talk)
        thread.start()
        endpoint = Endpoint("host-a", "127.0.0.1", server.getsockname()[1], "x")
        with Client(endpoint, plain_context()) as client, pytest.raises(Broken, match="TLS with host-a"):
            client.request("GET", "/v1/host")
        thread.join()


def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never answers the handshake is given up on."""
    monkeypatch.setattr("vmferry.api.client.CONNECT_TIME_LIMIT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = Endpoint("host-a", "127.0.0.1", server.getsockname()[1], "x")
        with Client(endpoint, plain_context()) as client, pytest.raises((Unreachable, TimedOut)):
            client.request("GET", "/v1/host")
