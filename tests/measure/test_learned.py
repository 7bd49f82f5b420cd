"""Where a real bridge believes an address to be."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.lab.inside import socket_in
from vmferry.lab.network import namespaces_missing
from vmferry.measure.learned import learned_port

MAC = "52:54:00:aa:bb:07"
SPACE = "vmferry-test-learned"
ETH_P_ALL = 3


def run(*words: str) -> None:
    """Run a command."""
    subprocess.run(words, check=True)


@pytest.fixture
def sysfs() -> Iterator[Path]:
    """A bridge `br0` with two ports in a namespace of its own; yields its /sys/class/net."""
    if (why := namespaces_missing()) is not None:
        pytest.skip(why)
    run("ip", "netns", "add", SPACE)
    inside = ["ip", "netns", "exec", SPACE]
    holder = None
    try:
        for line in (
            "link add br0 type bridge",
            "link add one type veth peer name one-far",
            "link add two type veth peer name two-far",
            "link set one master br0",
            "link set two master br0",
            *(f"link set {name} up" for name in ("br0", "one", "two", "one-far", "two-far")),
        ):
            run(*inside, "ip", *line.split())
        holder = subprocess.Popen([*inside, "sleep", "600"])
        devices = Path("/proc", str(holder.pid), "root", "sys/class/net")
        deadline = time.monotonic() + 10
        while not (devices / "br0").exists():  # it has not entered yet
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield devices
    finally:
        if holder is not None:
            holder.kill()
            holder.wait()
        run("ip", "netns", "del", SPACE)


def say(device: str) -> None:
    """Send a frame from an address behind a port."""
    with socket_in(SPACE, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as out:
        out.bind((device, 0))
        sender = bytes.fromhex(MAC.replace(":", ""))
        out.send(b"\xff" * 6 + sender + struct.pack("!H", 0x8035) + bytes(46))


@pytest.mark.root
def test_an_address_moves_with_its_frames(sysfs: Path) -> None:
    """Unknown, then behind the port from which a frame came, then behind the other one."""
    assert learned_port("br0", MAC, sysfs) is None
    for device in ("one", "two", "one"):
        say(f"{device}-far")
        assert learned_port("br0", MAC, sysfs) == device
        assert learned_port("br0", MAC.upper(), sysfs) == device


@pytest.mark.root
def test_its_own_addresses_are_nobodys(sysfs: Path) -> None:
    """A bridge knows its ports' addresses too: no guest has those."""
    own = (sysfs / "one/address").read_text("ascii").strip()
    assert learned_port("br0", own, sysfs) is None


def test_a_bridge_that_is_not_there() -> None:
    """It is told, not taken for one that has heard of nobody."""
    with pytest.raises(FileNotFoundError):
        learned_port("no-such-bridge", MAC)
