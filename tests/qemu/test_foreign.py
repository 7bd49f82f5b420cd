"""A run directory belongs to whoever runs the guest: what they put there leads the agent nowhere."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vmferry.core.errors import Broken
from vmferry.qemu import QemuBinaryConfig, foreign
from vmferry.qemu.guest_process import QemuGuestProcess
from vmferry.qemu.process import Process, spawn
from vmferry.qemu.qmp import QmpSession
from vmferry.qemu.run_dir import RunDir
from vmferry.qemu.sockets import connect
from vmferry.testing.conformance_hypervisor import SPEC

SHELL = QemuBinaryConfig(("/bin/sh",))
SLEEPER = QemuBinaryConfig(("/bin/sleep",))


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the host that is none of the guest's business."""
    path = tmp_path / "passwd"
    path.write_text("root:x:0:0\n")
    path.chmod(0o644)
    return path


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """A guest's directory."""
    made = RunDir(tmp_path / "web-7")
    made.create(None)
    return made


def content_and_mode(path: Path) -> tuple[str, int]:
    """Return what a file holds and who may use it."""
    return path.read_text(), path.stat().st_mode & 0o777


async def test_a_log_that_leads_elsewhere_is_replaced(run_dir: RunDir, victim: Path) -> None:
    """What a process writes goes to a new private file; where a link in its place leads nothing changes."""
    run_dir.log.symlink_to(victim)
    process = spawn(SHELL, ["-c", "echo evil::0:0"], directory=run_dir.path, log=run_dir.log)
    assert await process.wait_exited(60)
    process.close()
    assert content_and_mode(victim) == ("root:x:0:0\n", 0o644)
    assert (run_dir.log.is_symlink(), run_dir.log.stat().st_mode & 0o777) == (False, 0o600)
    assert run_dir.log_tail() == "evil::0:0"


def test_only_a_plain_log_is_read(run_dir: RunDir, victim: Path) -> None:
    """Of a link nothing is told, and a pipe, which would never end, is not waited for."""
    run_dir.log.symlink_to(victim)
    assert run_dir.log_tail() == ""
    run_dir.log.unlink()
    os.mkfifo(run_dir.log)
    looked = "from pathlib import Path; from vmferry.qemu.run_dir import RunDir; import sys;"
    looked += "print(repr(RunDir(Path(sys.argv[1])).log_tail()))"
    done = subprocess.run(
        [sys.executable, "-c", looked, str(run_dir.path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "''\n"


def test_a_huge_log_is_read_in_part(tmp_path: Path) -> None:
    """Not more is read than was asked for; a start behind the end is the beginning."""
    log = tmp_path / "log"
    log.write_bytes(b"first\n")
    os.truncate(log, 1 << 40)
    assert foreign.read(log, 0, 5) == (1 << 40, b"first")
    assert foreign.read(log, -3, 10) == (1 << 40, bytes(3))
    log.write_bytes(b"cut")
    assert foreign.read(log, 100, 10) == (3, b"cut")


def test_a_directory_in_place_of_a_socket_goes(run_dir: RunDir) -> None:
    """Whatever stands where the next process makes its sockets is removed, and nobody stumbles over it."""
    (run_dir.qmp / "deep").mkdir(parents=True)
    run_dir.log.mkdir()
    run_dir.remove_sockets()
    assert not run_dir.qmp.exists()
    os.close(foreign.create_log(run_dir.log))
    assert run_dir.log.is_file()


def test_a_key_directory_that_leads_elsewhere_is_replaced(run_dir: RunDir, tmp_path: Path) -> None:
    """Where a link in place of the key's directory leads nothing is written, and removing keys removes the link."""
    elsewhere = tmp_path / "etc"
    elsewhere.mkdir()
    for _ in range(2):
        run_dir.remove_key()
        assert not run_dir.tls.is_symlink()
        run_dir.tls.symlink_to(elsewhere)
        run_dir.write_key("aa", None)
        assert (list(elsewhere.iterdir()), run_dir.tls.is_symlink()) == ([], False)
        run_dir.remove_key()
        run_dir.tls.symlink_to(elsewhere)


@pytest.mark.root
def test_nothing_elsewhere_is_given_away(run_dir: RunDir, tmp_path: Path) -> None:
    """The key becomes the guest's user's, and what a link in its place leads to stays root's."""
    elsewhere = tmp_path / "etc"
    elsewhere.mkdir()
    run_dir.tls.symlink_to(elsewhere)
    run_dir.write_key("aa", 70001)
    assert (elsewhere.stat().st_uid, list(elsewhere.iterdir())) == (0, [])
    owners = [path.stat().st_uid for path in (run_dir.tls, *run_dir.tls.iterdir())]
    assert owners == [70001] * 3


async def test_another_process_is_not_taken_for_qemu(run_dir: RunDir) -> None:
    """A monitor or console that another process serves is refused, before a word is said to it."""
    process = spawn(SLEEPER, ["1000"], directory=run_dir.path, log=run_dir.log)
    try:
        with socket.socket(socket.AF_UNIX) as monitor, socket.socket(socket.AF_UNIX) as console:
            for listener, path in ((monitor, run_dir.qmp), (console, run_dir.console)):
                listener.bind(str(path))
                listener.listen()
            session = QmpSession("web-7")
            with pytest.raises(Broken, match=f"served by process {os.getpid()}, expected QEMU, process"):
                await session.connect(run_dir.qmp, process)
            await session.close()
            guest = QemuGuestProcess(SPEC, _same(process), run_dir, None)
            with pytest.raises(Broken, match="served by process"):
                await guest.open_console()
            await guest.close()
            accepted, _ = monitor.accept()
            with accepted:
                assert accepted.recv(1) == b""
            (await connect(run_dir.qmp, os.getpid())).close()
    finally:
        await process.kill()
        process.close()


def _same(process: Process) -> Process:
    again = Process.of_record(process.record)
    assert again is not None
    return again


async def test_nobody_listens(run_dir: RunDir) -> None:
    """A socket that is not there is an OSError: whoever starts a process tries again."""
    with pytest.raises(FileNotFoundError):
        await asyncio.wait_for(connect(run_dir.qmp, 1), 60)
