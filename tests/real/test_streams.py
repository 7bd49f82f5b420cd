"""Every way of a stream between two real agents, and what strangers on the network get of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vmferry.core.progress import Outcome
from vmferry.core.units import MIB
from vmferry.lab.guest_plans import GuestPlan, linux_guest, micro_guest
from vmferry.lab.hosts import Lab
from vmferry.lab.inside import socket_in
from vmferry.lab.network import MANAGEMENT, Cut
from vmferry.lab.page_faults import page_faults_for_all
from vmferry.lab.processes import command_line
from vmferry.lab.scenarios import (
    Leg,
    Scenario,
    empty,
    migrate,
    move,
    remove,
    run_scenario,
    started,
    wait_finished,
    wait_state,
    wait_until,
)
from vmferry.ports.hypervisor import RunState
from vmferry.qemu import userfault

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

#: Stands in the micro guest's program, and so in its memory.
IN_ITS_MEMORY = "oracle clean"
STREAM_PORT = 7717
CLOSED_PORT = 9


def assert_arrived(legs: list[Leg]) -> None:
    """Every move arrived with its memory whole."""
    for leg in legs:
        assert leg.report.outcome == Outcome.MOVED, leg.report
        assert leg.oracle.startswith("oracle clean"), leg.oracle
        assert leg.run_state_there == RunState.RUNNING
        assert not leg.still_at_source


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"link": "fd"}, ("fd", 1, "none")),
        ({"link": "fd", "plain": True}, ("fd", 1, "none")),
        ({"channels": 4}, ("tcp", 4, "none")),
        ({"channels": 4, "plain": True}, ("tcp", 4, "none")),
        ({"compression": "zstd"}, ("tcp", 2, "zstd")),
        ({"channels": 3, "compression": "zlib"}, ("tcp", 3, "zlib")),
        ({"compression": "xbzrle"}, ("tcp", 1, "xbzrle")),
        ({"link": "fd", "compression": "xbzrle"}, ("fd", 1, "xbzrle")),
        ({"link": "unix"}, ("unix", 1, "none")),
        ({"link": "unix", "channels": 4}, ("unix", 4, "none")),
        ({"link": "unix", "channels": 4, "plain": True, "compression": "zstd"}, ("unix", 4, "zstd")),
    ],
    ids=str,
)
async def test_a_guest_moves_there_and_back(lab: Lab, options: dict[str, object], told: tuple[object, ...]) -> None:
    """It arrives whole, and the report says how it travelled."""
    legs = await run_scenario(lab, Scenario(micro_guest(), options=options))
    assert_arrived(legs)
    assert [(leg.report.link, leg.report.channels, leg.report.compression) for leg in legs] == [told, told]


async def test_left_to_us_the_guests_pages_decide(lab: Lab) -> None:
    """Compressible pages over a slow link are compressed, over a fast one or none that is known they are not."""
    plan = replace(linux_guest("web-7", memory_mib=256, rate=0, bridge=True), nics=(), data="compressible")
    guest = await started(lab, plan)
    slow = await move(lab, guest, "host-b", {"compression": "auto", "max_bandwidth": 16 * MIB})
    fast = await move(lab, guest, "host-a", {"compression": "auto", "max_bandwidth": 16 << 30})
    assert_arrived([slow, fast])
    assert (slow.report.compression, fast.report.compression) == ("zstd", "none")
    assert slow.report.compression_why is not None
    assert "of memory instead of 16.0 MiB/s" in slow.report.compression_why
    assert slow.report.transferred_bytes is not None
    assert fast.report.transferred_bytes is not None
    assert slow.report.transferred_bytes < fast.report.transferred_bytes / 2
    await remove(lab, guest)


async def test_what_does_not_go_together_is_refused_beforehand(lab: Lab) -> None:
    """Channels over one connection: told, and the guest runs on untouched."""
    guest = await started(lab, micro_guest())
    leg = await move(lab, guest, "host-b", {"link": "fd", "channels": 4})
    assert leg.report.outcome == Outcome.BLOCKED
    assert leg.oracle.startswith("oracle clean")
    await remove(lab, guest)


@pytest.mark.parametrize("link", ["fd", "unix"])
async def test_a_post_copy_over_a_connection_is_recovered_over_a_port(lab: Lab, link: str) -> None:
    """The agents' connection is cut in mid-post-copy: everything goes on by itself when the link is back."""
    if not userfault.DEVICE.exists():
        pytest.skip(f"no {userfault.DEVICE} on this machine")
    plan = GuestPlan("micro", memory_mib=64, working_set_mib=32, rate=8)
    options: dict[str, object] = {"link": link, "postcopy_after": 1, "max_bandwidth": 3 * MIB}
    assert lab.network is not None
    try:
        with page_faults_for_all():
            guest = await started(lab, plan)
            handover = await migrate(lab, guest, "host-b", options)
            await wait_state(lab, "host-a", handover, "postcopy-running")
            lab.network.cut(how=Cut.SILENT)
            await wait_state(lab, "host-a", handover, "postcopy-paused")
            lab.network.heal()
            view = await wait_finished(lab, "host-a", handover)
            guest.moved_to("host-b")
            assert view.report is not None
            assert view.report.outcome == Outcome.MOVED
            assert (await guest.oracle()).startswith("oracle clean")
    finally:
        lab.network.heal()
        await empty(lab)


@pytest.mark.parametrize("host", ["host-a", "host-b"])
async def test_what_carries_local_connections_dies(lab: Lab, host: str) -> None:
    """At either end in mid-pre-copy: the guest runs on at the source, and moves the next time."""
    guest = await started(lab, GuestPlan("micro", memory_mib=64, working_set_mib=32, rate=8))
    handover = await migrate(lab, guest, "host-b", {"link": "unix", "max_bandwidth": 4 * MIB})
    await wait_state(lab, "host-a", handover, "precopy")
    (carrier,) = carriers(lab, host)
    os.kill(carrier, signal.SIGKILL)
    view = await wait_finished(lab, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == Outcome.ABORTED, view.report
    assert (await guest.oracle()).startswith("oracle clean")
    assert_arrived([await move(lab, guest, "host-b", {"link": "unix"})])
    await wait_until(lambda: _none_carry(lab), "nothing carries any more")
    await remove(lab, guest)


@pytest.mark.parametrize("host", ["host-a", "host-b"])
async def test_local_connections_outlive_an_agent(lab: Lab, host: str) -> None:
    """Killed and restarted in mid-pre-copy, with several channels: the move goes on, and nothing carries afterwards."""
    guest = await started(lab, GuestPlan("micro", memory_mib=64, working_set_mib=32, rate=4))
    handover = await migrate(lab, guest, "host-b", {"link": "unix", "channels": 3, "max_bandwidth": 6 * MIB})
    await wait_state(lab, "host-a", handover, "precopy")
    lab.hosts[host].agent.kill_worker()
    await lab.hosts[host].api.wait_answer()
    view = await wait_finished(lab, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == Outcome.MOVED, view.report
    guest.moved_to("host-b")
    assert (await guest.oracle()).startswith("oracle clean")
    await wait_until(lambda: _none_carry(lab), "nothing carries any more")
    await remove(lab, guest)


@pytest.mark.parametrize("host", ["host-a", "host-b"])
async def test_post_copys_own_channel_after_a_restart(lab: Lab, host: str) -> None:
    """Nobody can make it any more: the stream is broken before the guest has left, and the guest is whole somewhere."""
    if not userfault.DEVICE.exists():
        pytest.skip(f"no {userfault.DEVICE} on this machine")
    options: dict[str, object] = {"link": "unix", "plain": True, "postcopy_after": 9, "max_bandwidth": 3 * MIB}
    try:
        with page_faults_for_all():
            guest = await started(lab, GuestPlan("micro", memory_mib=64, working_set_mib=32, rate=8))
            handover = await migrate(lab, guest, "host-b", options)
            await wait_state(lab, "host-a", handover, "precopy")
            lab.hosts[host].agent.kill_worker()
            await lab.hosts[host].api.wait_answer()
            view = await wait_finished(lab, "host-a", handover)
            assert view.report is not None
            if view.report.outcome == Outcome.MOVED:
                guest.moved_to("host-b")
            assert (await guest.oracle()).startswith("oracle clean")
            await wait_until(lambda: _none_carry(lab), "nothing carries any more")
    finally:
        await empty(lab)


async def test_nothing_carries_for_a_source_that_died(lab: Lab) -> None:
    """Its QEMU is killed in mid-pre-copy: the guest is lost, and nothing waits for more of it on either host."""
    guest = await started(lab, GuestPlan("micro", memory_mib=64, working_set_mib=32, rate=8))
    handover = await migrate(lab, guest, "host-b", {"link": "unix", "channels": 2, "max_bandwidth": 4 * MIB})
    await wait_state(lab, "host-a", handover, "precopy")
    pid = (await guest.view()).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await wait_finished(lab, "host-a", handover)
    await wait_until(lambda: _none_carry(lab), "nothing carries any more")
    await empty(lab)


def carriers(lab: Lab, host: str) -> list[int]:
    """Return the programs of a host that carry local connections."""
    return [each.pid for each in lab.processes_of(host) if "links/carry.py" in command_line(each.pid)]


async def _none_carry(lab: Lab) -> bool:
    return not [pid for host in lab.hosts for pid in carriers(lab, host)]


@contextlib.contextmanager
def capture(lab: Lab, file: Path) -> Iterator[None]:
    """Write what passes on the link between the hosts into a file."""
    assert lab.network is not None
    words = ["tshark", "-q", "-i", MANAGEMENT, "-f", "tcp", "-s", "0", "-B", "64", "-w", str(file)]
    listening = subprocess.Popen(
        [*lab.network.inside("host-a"), *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert listening.stderr is not None
        while (line := listening.stderr.readline()) and "Capturing on" not in line:
            pass
        _wait(lambda: file.exists() and file.stat().st_size > 0, "tshark begins")  # its header is there
        yield
        _wait(lambda: _has_a_knock(lab, file), "tshark writes what it has captured")
        listening.send_signal(signal.SIGINT)
        listening.communicate(timeout=60)
    finally:
        if listening.poll() is None:
            os.killpg(listening.pid, signal.SIGKILL)
            listening.wait()
        if listening.stderr is not None:
            listening.stderr.close()


def _wait(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, f"{what}: not within a minute"
        time.sleep(0.02)


def _has_a_knock(lab: Lab, file: Path) -> bool:
    """Knock at a closed port over the link, and tell whether a knock stands in a capture: then all before it does."""
    assert lab.network is not None
    here, there = (lab.network.management_address(host) for host in ("host-a", "host-b"))
    with (
        socket_in(lab.network.namespace("host-a"), socket.AF_INET, socket.SOCK_STREAM) as knocking,
        contextlib.suppress(ConnectionRefusedError),
    ):
        knocking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        knocking.bind((here, CLOSED_PORT))
        knocking.connect((there, CLOSED_PORT))
    knock = socket.inet_aton(here) + socket.inet_aton(there) + struct.pack("!HH", CLOSED_PORT, CLOSED_PORT)
    with file.open("rb") as written:
        written.seek(max(0, file.stat().st_size - MIB))
        return knock in written.read()


def seen(file: Path, what: str) -> int:
    """Return in how many frames something is."""
    words = ["tshark", "-r", str(file), "-d", "tcp.port==49152-49215,tls", "-Y", what, "-T", "fields", "-e"]
    done = subprocess.run([*words, "frame.number"], capture_output=True, text=True, check=True)
    return len(done.stdout.split())


@pytest.mark.parametrize(
    "options", [{}, {"link": "fd"}, {"channels": 2}, {"postcopy_after": 1}], ids=["one", "fd", "channels", "post-copy"]
)
async def test_an_eavesdropper_sees_a_guest_in_the_clear_only(
    lab: Lab, tmp_path: Path, options: dict[str, object]
) -> None:
    """What stands in the guest's memory is read off the link with `--plain`, and not otherwise."""
    with page_faults_for_all():
        guest = await started(lab, micro_guest())
        for plain in (False, True):
            file = tmp_path / f"{plain}.pcapng"
            with capture(lab, file):
                leg = await move(
                    lab, guest, "host-b" if guest.host == "host-a" else "host-a", options | {"plain": plain}
                )
            assert leg.report.outcome == Outcome.MOVED, leg.report
            assert seen(file, "tcp.len > 1000") > 100
            assert (seen(file, f'frame contains "{IN_ITS_MEMORY}"') > 0) is plain
            assert (seen(file, 'frame contains "QEVM"') > 0) is plain
        await remove(lab, guest)


@pytest.mark.parametrize(
    ("link", "listens"), [("fd", [STREAM_PORT]), ("unix", [STREAM_PORT]), ("tcp", [STREAM_PORT, 49152])]
)
async def test_a_port_scan_during_the_reservation_harms_nothing(lab: Lab, link: str, listens: list[int]) -> None:
    """Strangers talk nonsense to every port that listens: closed, and the guest moves all the same, encrypted."""
    assert lab.network is not None
    hold = lab.hosts["host-a"].hold_dir / "source.reserved"
    guest = await started(lab, micro_guest())
    hold.touch()
    try:
        handover = await migrate(lab, guest, "host-b", {"link": link})
        await wait_state(lab, "host-a", handover, "reserved")
        address = lab.network.management_address("host-b")
        open_ports = _scan(lab, address, [STREAM_PORT, *range(49152, 49160)])
        assert open_ports == listens
    finally:
        hold.unlink()
    view = await wait_finished(lab, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == Outcome.MOVED
    guest.moved_to("host-b")
    assert (await guest.oracle()).startswith("oracle clean")
    await remove(lab, guest)


_SCAN = """
import socket, sys
address, *ports = sys.argv[1:]
for port in ports:
    with socket.socket() as probe:
        probe.settimeout(2)
        try:
            probe.connect((address, int(port)))
            probe.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
            probe.recv(100)
            print(port)
        except (ConnectionResetError, TimeoutError):
            print(port)
        except ConnectionRefusedError:
            pass
"""


def _scan(lab: Lab, address: str, ports: list[int]) -> list[int]:
    """Connect to ports from the other host, talk nonsense, and return which were open."""
    assert lab.network is not None
    words = [*lab.network.inside("host-a"), "python3", "-c", _SCAN, address, *map(str, ports)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    return [int(port) for port in done.stdout.split()]
