from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from vmferry.lab.agents import AgentProcess
from vmferry.lab.hosts import Lab
from vmferry.lab.iproute import run
from vmferry.lab.leaks import Snapshot, assert_no_leaks, leaked, snapshot_leaks
from vmferry.lab.network import Network
from vmferry.lab.processes import Identity, find_lab_processes

pytestmark = pytest.mark.root

#: A supervisor whose worker opens and closes things as it is told on its input.
SUPERVISOR = """
import subprocess, sys
sys.exit(subprocess.call([sys.executable, "-c", sys.argv[1], sys.argv[2]]))
"""
WORKER = """
import os, socket, sys
held = []
while True:
    order = open(sys.argv[1]).read()
    if order == "tcp":
        held.append(socket.create_server(("127.0.0.1", 7000)))
    elif order == "udp":
        held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)); held[-1].bind(("127.0.0.1", 0))
    elif order == "pipe":
        held.append(os.pipe())
    elif order == "close":
        for thing in held:
            thing.close()
        held.clear()
    open(sys.argv[1], "w").write("done")
"""


@dataclass
class BareHost:
    """As much of a host as a snapshot needs."""

    name: str
    agent: AgentProcess
    directory: Path
    orders: Path

    @property
    def state_dir(self) -> Path:
        """Where a journal would be."""
        return self.directory / "state"

    @property
    def run_dir(self) -> Path:
        """Where sockets would be."""
        return self.directory / "run"

    def order(self, what: str) -> None:
        """Let the worker do something and wait until it has."""
        self.orders.write_text(what)
        assert self.orders.read_text() == "done"


@dataclass
class BareLab:
    """As much of a lab as a snapshot needs."""

    network: Network
    hosts: dict[str, BareHost] = field(default_factory=dict)

    def processes_of(self, host: str) -> list[Identity]:
        """Return what runs in the host's namespace."""
        return find_lab_processes("-", [self.network.namespace(host)])


@pytest.fixture
def bare(network: Network, tmp_path: Path) -> Iterator[BareLab]:
    """A lab of one host whose agent does as it is told."""
    orders = tmp_path / "orders"
    os.mkfifo(orders)
    argv = [*network.inside("host-a"), sys.executable, "-c", SUPERVISOR, WORKER, str(orders)]
    host = BareHost("host-a", AgentProcess(argv, dict(os.environ), tmp_path / "log"), tmp_path / "host-a", orders)
    host.state_dir.mkdir(parents=True)
    host.run_dir.mkdir()
    host.agent.start()
    host.order("nothing")
    yield BareLab(network, {"host-a": host})
    host.agent.kill()
    host.agent.reap()


def snapshot(bare: BareLab) -> Snapshot:
    """Return the snapshot of a stand-in."""
    return snapshot_leaks(cast("Lab", bare))


@pytest.mark.parametrize(
    ("order", "lines"),
    [
        ("tcp", ["1 x host-a: TCP listener on port 7000", "1 x host-a: agent's descriptor socket"]),
        ("udp", ["1 x host-a: UDP port", "1 x host-a: agent's descriptor socket"]),
        ("pipe", ["2 x host-a: agent's descriptor pipe"]),
    ],
)
def test_what_an_agent_holds_more_is_told(bare: BareLab, order: str, lines: list[str]) -> None:
    """A socket, a port or a descriptor more than before is a leak, each told by kind and number."""
    before = snapshot(bare)
    bare.hosts["host-a"].order(order)
    assert leaked(before, snapshot(bare)) == lines


async def test_what_is_closed_again_is_no_leak(bare: BareLab) -> None:
    """Things that were opened and closed leave no trace."""
    before = snapshot(bare)
    bare.hosts["host-a"].order("udp")
    with pytest.raises(AssertionError, match="UDP port"):
        await assert_no_leaks(cast("Lab", bare), before, patience_s=0.01)
    bare.hosts["host-a"].order("close")
    await assert_no_leaks(cast("Lab", bare), before)


def test_a_process_left_in_the_host_is_told(bare: BareLab) -> None:
    """A process that runs on in the namespace is a leak."""
    before = snapshot(bare)
    with subprocess.Popen([*bare.network.inside("host-a"), "sleep", "600"]) as left:
        while not (more := leaked(before, snapshot(bare))):
            assert left.poll() is None
        left.kill()
    assert more in (["1 x host-a: process sleep"], ["1 x host-a: process ip"])  # ip(8) becomes the command


def test_interfaces_files_and_reservations_are_told(bare: BareLab) -> None:
    """A tap, a file and a reservation in the journal are leaks; a tap's number is not part of its name."""
    host = bare.hosts["host-a"]
    with closing(sqlite3.connect(host.state_dir / "journal")) as journal:
        journal.execute("CREATE TABLE reservations (guest TEXT)")
        journal.commit()
        before = snapshot(bare)
        journal.execute("INSERT INTO reservations VALUES ('web-7')")
        journal.commit()
    run("ip", "-n", bare.network.namespace("host-a"), "tuntap", "add", "tap7", "mode", "tap")
    (host.run_dir / "left.sock").touch()
    assert leaked(before, snapshot(bare)) == [
        "1 x host-a: file run/left.sock",
        "1 x host-a: interface tapN",
        "1 x host-a: reservation for guest web-7",
    ]
