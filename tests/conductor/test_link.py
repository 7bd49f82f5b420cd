from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.conductor.link import LinkSpeed, link_bandwidth
from vmferry.lab.iproute import run
from vmferry.lab.network import Network
from vmferry.lab.registry import claim, destroy

LOCAL = "127.0.0.1"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Two hosts and a fabric."""
    lab = claim(tmp_path / "labs")
    try:
        made = Network(lab)
        made.create()
        yield made
    finally:
        destroy(lab)


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """A /sys/class/net in which loopback says 25 Gbit/s."""
    folder = tmp_path / "net" / "lo"
    folder.mkdir(parents=True)
    (folder / "ifindex").write_text(f"{socket.if_nametoindex('lo')}\n")
    (folder / "speed").write_text("25000\n")
    return folder.parent


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `ip` that runs the script which the test writes into the returned file."""
    program = tmp_path / "bin" / "ip"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


def test_loopback_has_no_limit() -> None:
    """Two agents on one machine migrate over loopback: it tells no speed, and that is said."""
    assert link_bandwidth(LOCAL) == LinkSpeed(None, "lo", "lo tells no speed")


def test_megabits_become_bytes(devices: Path) -> None:
    """The kernel's Mbit/s are decimal: 25 Gbit/s are 3.125e9 bytes per second."""
    assert link_bandwidth(LOCAL, devices) == LinkSpeed(3_125_000_000, "lo", "speed of lo")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["-1", "0", "", "fast", "4294967295x"])
def test_a_speed_that_is_none_is_no_limit(devices: Path, text: str) -> None:
    """A device without carrier says -1, others nonsense: no limit, with the device named."""
    (devices / "lo" / "speed").write_text(text)
    found = link_bandwidth(LOCAL, devices)
    assert (found.bytes_per_second, found.device) == (None, "lo")
    assert "speed" in found.why


def test_a_tap_is_not_believed(devices: Path) -> None:
    """Tun and tap devices always say 10 Mbit/s: a VPN is not limited to that."""
    (devices / "lo" / "speed").write_text("10")
    (devices / "lo" / "tun_flags").write_text("0x1")
    assert link_bandwidth(LOCAL, devices).bytes_per_second is None


def test_another_namespaces_device_is_not_believed(devices: Path) -> None:
    """A /sys of another network namespace may have a device of the same name: its index tells."""
    (devices / "lo" / "ifindex").write_text("4711")
    assert "another namespace" in link_bandwidth(LOCAL, devices).why


@pytest.mark.parametrize("address", ["host-b", "", "-6", "10.0.0.1; true", "10.0.0.256"])
def test_what_is_no_address_asks_nobody(address: str, answering: Path) -> None:
    """Whatever is not an IP address is told as such, and no command is run with it."""
    answering.write_text(f"#!/bin/sh\ntouch {answering}.ran\n")
    found = link_bandwidth(address)
    assert found == LinkSpeed(None, None, f"{address!r} is not an IP address")
    assert not answering.with_name("ip.ran").exists()


def test_a_zone_names_the_device() -> None:
    """A link-local address with its zone needs no route."""
    assert link_bandwidth("fe80::1%lo").device == "lo"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'RTNETLINK answers: Network is unreachable' >&2; exit 2", "no route to 192.0.2.9: RTNETLINK answers"),
        ("echo nonsense", "ip answered 'nonsense"),
        ("echo '[]'", "ip answered '[]"),
        ("echo '[{}]'", "ip answered '[{}]"),
        ('echo \'[{"dev": "../x"}]\'', "named the device '../x'"),
        ("exec sleep 30", "timed out"),
    ],
)
def test_no_answer_is_no_limit(answering: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str) -> None:
    """A missing route, garbage and silence: no limit, no exception, and the reason."""
    monkeypatch.setattr("vmferry.conductor.link.ROUTE_LIMIT_S", 0.2)
    answering.write_text(f"#!/bin/sh\n{script}\n")
    found = link_bandwidth("192.0.2.9")
    assert (found.bytes_per_second, found.device) == (None, None)
    assert why in found.why


def test_without_ip_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without iproute2 migrates without a limit."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "is not known" in link_bandwidth("192.0.2.9").why


@pytest.mark.root
def test_the_route_decides(network: Network) -> None:
    """In a lab's host the peer is reached by the management link, whose veth says 10 Gbit/s, and nobody else is."""
    asked = [network.management_address("host-b"), "192.0.2.9", network.management_address("host-a")]
    script = """
import dataclasses, json, sys
from vmferry.conductor.link import link_bandwidth
print(json.dumps([dataclasses.asdict(link_bandwidth(address)) for address in sys.argv[1:]]))
"""
    argv = [*network.inside("host-a"), sys.executable, "-c", script, *asked]
    peer, nobody, itself = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    assert (peer["device"], peer["bytes_per_second"]) == ("mgmt0", 1_250_000_000)
    assert nobody["why"].startswith("no route to 192.0.2.9")
    assert (itself["device"], itself["bytes_per_second"]) == ("lo", None)
    assert "10000" in run(*network.inside("host-a"), "cat", "/sys/class/net/mgmt0/speed")
