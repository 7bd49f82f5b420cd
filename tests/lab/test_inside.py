from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vmferry.core.errors import Broken
from vmferry.lab.inside import socket_in
from vmferry.lab.network import Network

pytestmark = pytest.mark.root


def test_a_socket_belongs_to_the_host_it_was_made_in(network: Network) -> None:
    """A connection made from here goes over the lab's management link, and this process stays where it was."""
    home = Path("/proc/self/ns/net").stat().st_ino
    names = [network.namespace(host) for host in network.hosts]
    with (
        socket_in(names[1], socket.AF_INET, socket.SOCK_STREAM) as server,
        socket_in(names[0], socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        server.bind(("10.77.0.2", 7000))
        server.listen()
        client.connect(("10.77.0.2", 7000))
        assert client.getsockname()[0] == "10.77.0.1"
    assert Path("/proc/self/ns/net").stat().st_ino == home


def test_an_unknown_namespace_is_broken() -> None:
    """Without the namespace there is no socket, and no descriptor stays open."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not walked
    with pytest.raises(Broken, match="vmferry-none"):
        socket_in("vmferry-none", socket.AF_INET, socket.SOCK_STREAM)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above
