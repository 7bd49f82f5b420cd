from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from vmferry.core.errors import BadInput, Broken
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.lab import network as network_module
from vmferry.lab.iproute import run
from vmferry.lab.network import FABRIC, FABRIC_ADDRESS, Cut, Network
from vmferry.lab.registry import Claim, claim, destroy

pytestmark = pytest.mark.root

LISTEN = """
import socket, sys
with socket.create_server((sys.argv[1], 7000)) as server:
    print("listening", flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            while connection.recv(1 << 20):
                pass
            connection.sendall(b"ok")
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=int(sys.argv[3])) as connection:
    connection.sendall(bytes(int(sys.argv[2])))
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(2) == b"ok"
"""


def send(network: Network, source: str, address: str, size: int = 1, within_s: int = 2) -> bool:
    """Send bytes to the listener and wait for its answer; False when they do not arrive."""
    argv = [*network.inside(source), sys.executable, "-c", SEND, address, str(size), str(within_s)]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


@pytest.fixture
def listener(network: Network) -> Iterator[None]:
    """A TCP listener on host-b, on all addresses."""
    argv = [*network.inside("host-b"), sys.executable, "-c", LISTEN, "0.0.0.0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield
        process.kill()


def test_hosts_reach_each_other_only_by_the_management_link(network: Network, listener: None) -> None:
    """Each host reaches the other's management address; the fabric does not."""
    assert send(network, "host-a", network.management_address("host-b"))
    assert not send(network, FABRIC, network.management_address("host-b"))


def test_loopback_is_up_everywhere(network: Network) -> None:
    """Every namespace has a working loopback: an agent's beats arrive there."""
    for host in (FABRIC, *network.hosts):
        assert "UP" in run("ip", "-n", network.namespace(host), "link", "show", "lo").split(">")[0]


def test_guest_traffic_crosses_the_fabric(network: Network, listener: None) -> None:
    """What hangs on a host's bridge and the fabric see each other."""
    run("ip", "-n", network.namespace("host-b"), "addr", "add", "10.78.0.9/24", "dev", "br0")
    assert send(network, FABRIC, "10.78.0.9")
    assert FABRIC_ADDRESS in run("ip", "-n", network.namespace(FABRIC), "addr", "show", "br0")


@pytest.mark.parametrize("how", list(Cut))
def test_a_cut_link_carries_nothing_until_healed(network: Network, listener: None, how: Cut) -> None:
    """Cutting stops every packet, healing brings the link back; both may be repeated."""
    for _ in range(2):
        network.cut(how=how)
    assert not send(network, "host-a", network.management_address("host-b"))
    for _ in range(2):
        network.heal()
    # The first tries may still wait for an address that nobody answered for while the link was cut.
    assert any(send(network, "host-a", network.management_address("host-b")) for _ in range(10))


def test_the_limit_can_be_set_changed_and_removed(network: Network, listener: None) -> None:
    """A limited link is slower than its rate allows at least, and a removed limit is gone."""
    network.limit(BytesPerSecond(20 * MIB))
    network.limit(BytesPerSecond(4 * MIB))
    started = time.monotonic()
    assert send(network, "host-a", network.management_address("host-b"), 4 * MIB, within_s=60)
    slow = time.monotonic() - started
    network.limit(None)
    network.limit(None)
    assert slow >= 0.5  # 4 MiB at 4 MiB/s, less the burst: a lower bound, never an upper one
    assert "tbf" not in run("tc", "-n", network.namespace("host-a"), "qdisc", "show")


def test_no_link_has_an_ipv6_address(network: Network) -> None:
    """Nothing but loopback speaks IPv6 here."""
    for host in (FABRIC, *network.hosts):
        assert "fe80" not in run("ip", "-n", network.namespace(host), "-6", "addr")


def test_labs_side_by_side_use_the_same_addresses(network: Network, listener: None, claimed: Claim) -> None:
    """Another lab's host-b does not answer for ours."""
    other = Network(claim(claimed.base))
    other.create()
    try:
        assert send(network, "host-a", "10.77.0.2")
        assert not send(other, "host-a", "10.77.0.2")
    finally:
        destroy(other._lab)


def test_more_than_two_hosts_share_a_management_bridge(claimed: Claim) -> None:
    """Three hosts reach each other, and one of them can be cut off alone."""
    made = Network(claimed, ("host-a", "host-b", "host-c"))
    made.create()
    argv = [*made.inside("host-c"), sys.executable, "-c", LISTEN, "0.0.0.0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        made.cut("host-a")
        reached = [send(made, host, "10.77.0.3") for host in ("host-a", "host-b")]
        process.kill()
    assert reached == [False, True]


def test_a_network_that_cannot_be_built_leaves_nothing(claimed: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a step of building fails, the namespaces made so far are removed."""
    monkeypatch.setattr(network_module, "MANAGEMENT", "a-name-too-long-for-an-interface")
    with pytest.raises(Broken, match="failed"):
        Network(claimed).create()
    assert claimed.namespaces() == []


def test_an_unknown_host_is_bad_input(claimed: Claim) -> None:
    """Asking for a host that the lab does not have names those that it has."""
    with pytest.raises(BadInput, match="host-a, host-b"):
        Network(claimed).management_address("host-z")
