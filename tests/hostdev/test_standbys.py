"""Where a bridge hears a guest with a function and a standby: on fakes, and on the kernel's own bridge."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vmferry.hostdev import BridgeStandbys
from vmferry.ports.host_devices import Carrier

MAC = "52:54:00:00:07:07"


@pytest.mark.parametrize(
    ("port", "heard"), [("vftap3", Carrier.STANDBY), ("eth1", Carrier.FUNCTION), ("veth-vftap3", Carrier.FUNCTION)]
)
def test_heard(port: str, heard: Carrier) -> None:
    """A tap of ours is a standby, whatever else is its function."""
    assert BridgeStandbys(lambda bridge, mac: port).heard("br0", MAC) is heard


def test_not_heard() -> None:
    """Neither of a guest that is silent nor of a bridge that is not there; nothing is forgotten, and nothing raised."""

    def gone(bridge: str, mac: str) -> str | None:
        raise FileNotFoundError(bridge)

    for learned in (gone, lambda bridge, mac: None):
        standbys = BridgeStandbys(learned)
        assert standbys.heard("br0", MAC) is None
        standbys.forget("br0", MAC)


_OWN_NETWORK = ("unshare", "--net", "--mount", "sh", "-euc", 'mount -t sysfs none /sys; exec "$@"', "sh")
#: Runs in a network of its own: a bridge with two ports hears a frame from the tap, and forgets it.
_ON_A_BRIDGE = """
import subprocess, time
from vmferry.hostdev import BridgeStandbys
from vmferry.measure.learned import learned_port
MAC = "52:54:00:00:07:07"
def ip(*words): subprocess.run(["ip", *words], check=True)
ip("link", "add", "br0", "type", "bridge", "forward_delay", "0")
ip("link", "set", "br0", "up")
for name in ("vftap0", "eth1"):
    ip("link", "add", name, "type", "veth", "peer", "name", f"p-{name}")
    ip("link", "set", name, "master", "br0")
    for end in (name, f"p-{name}"):
        ip("link", "set", end, "up")
import socket
def say(name):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as there:
        there.bind((f"p-{name}", 0))
        there.send(bytes.fromhex("ffffffffffff" + MAC.replace(":", "") + "88b5") + bytes(46))
    time.sleep(0.3)
standbys = BridgeStandbys(learned_port)
time.sleep(0.5)
heard = [standbys.heard("br0", MAC)]
say("vftap0")
heard.append(standbys.heard("br0", MAC))
standbys.forget("br0", MAC)
heard.append(standbys.heard("br0", MAC))
say("eth1")
heard.append(standbys.heard("br0", MAC))
standbys.forget("br0", MAC)
heard.append(standbys.heard("br0", MAC))
print([None if one is None else str(one) for one in heard])
"""


@pytest.mark.root
def test_the_kernels_bridge() -> None:
    """It forgets the standby, and not the function."""
    ran = subprocess.run(
        [*_OWN_NETWORK, sys.executable, "-c", _ON_A_BRIDGE],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=dict(os.environ),
    )
    assert ran.stdout.strip() == "[None, 'standby', None, 'function', 'function']", ran.stderr
