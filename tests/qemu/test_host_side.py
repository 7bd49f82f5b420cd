"""Descriptors, directories, processes and taps: what the agent does on the host, and that it is undone."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.qemu.test_command_line import BIOS, make_frozen

from vmferry.core.errors import BadInput, Broken
from vmferry.core.guest import Disk, DiskFormat, KernelBoot, NetworkKind, Nic
from vmferry.qemu import QemuBinaryConfig
from vmferry.qemu.descriptors import hash_boot_files, open_disk, opened_for
from vmferry.qemu.probe import ProbeCache
from vmferry.qemu.process import Process, read_boot_id, read_start_ticks, spawn
from vmferry.qemu.run_dir import RunDir

SLEEPER = QemuBinaryConfig(("/bin/sleep",))


def make_qcow2(path: Path, *, backing: int = 0, incompatible: int = 0) -> Disk:
    """Write a header that looks like qcow2."""
    path.write_bytes(struct.pack(">4sIQ56xQ", b"QFI\xfb", 3, backing, incompatible) + bytes(512))
    return Disk(str(path), cache="writeback")


def test_disks_are_opened_as_qemu_looks_for_them(tmp_path: Path) -> None:
    """Access mode and O_DIRECT are the disk's, and children do not inherit the descriptor by themselves."""
    disk = make_qcow2(tmp_path / "a.qcow2")
    for wanted, flags in (
        (disk, os.O_RDWR),
        (replace(disk, read_only=True), os.O_RDONLY),
        (replace(disk, cache="none"), os.O_RDWR | os.O_DIRECT),
        (replace(disk, cache="directsync"), os.O_RDWR | os.O_DIRECT),
    ):
        fd = open_disk(wanted)
        try:
            text = Path(f"/proc/self/fdinfo/{fd}").read_text("ascii")
            seen = int(text.split("flags:")[1].split()[0], 8)
            assert seen & (os.O_ACCMODE | os.O_DIRECT) == flags
            assert not os.get_inheritable(fd)
        finally:
            os.close(fd)


def test_images_stand_alone(tmp_path: Path) -> None:
    """An image with a backing or data file, or that is not what it says, is bad input with the way out."""
    with pytest.raises(BadInput, match="backing file"):
        open_disk(make_qcow2(tmp_path / "a", backing=104))
    with pytest.raises(BadInput, match="another file"):
        open_disk(make_qcow2(tmp_path / "b", incompatible=4))
    (tmp_path / "c").write_bytes(bytes(512))
    with pytest.raises(BadInput, match="not qcow2"):
        open_disk(Disk(str(tmp_path / "c"), cache="writeback"))
    (tmp_path / "d").touch()
    with pytest.raises(BadInput, match="not qcow2"):
        open_disk(Disk(str(tmp_path / "d"), cache="writeback"))


def test_everything_is_closed_when_one_fails(tmp_path: Path) -> None:
    """When the second file cannot be opened the first is closed again (the leak check of every test sees it)."""
    first = make_qcow2(tmp_path / "a")
    guest = make_frozen(replace(BIOS, disks=(first, Disk("/nonexistent/b", DiskFormat.RAW))))
    with pytest.raises(Broken, match="/nonexistent/b"), opened_for(guest, None):
        pass


@pytest.mark.root
def test_private_boot_files_become_readable_copies(tmp_path: Path) -> None:
    """For another user a private kernel is a copy in memory, a public one the file itself."""
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(b"kernel")
    kernel.chmod(0o600)
    initrd.write_bytes(b"initrd")
    initrd.chmod(0o644)
    guest = make_frozen(replace(BIOS, boot=KernelBoot(str(kernel), str(initrd))))
    with opened_for(guest, 70001) as (descriptors, fds):
        assert fds == (descriptors.kernel, descriptors.initrd)
        contents = [Path(f"/dev/fd/{fd}").read_bytes() for fd in fds]
        modes = [os.fstat(fd).st_mode & 0o004 for fd in fds]
        links = [os.fstat(fd).st_nlink for fd in fds]
    assert (contents, modes, links) == ([b"kernel", b"initrd"], [4, 4], [0, 1])


def test_boot_files_are_hashed(tmp_path: Path) -> None:
    """Kernel and initrd are named with their sha256; a missing one is Broken."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert hash_boot_files(replace(BIOS, boot=KernelBoot(str(kernel)))) == ((str(kernel), empty),)
    with pytest.raises(Broken, match="initrd"):
        hash_boot_files(replace(BIOS, boot=KernelBoot(str(kernel), str(tmp_path / "initrd"))))


@pytest.mark.parametrize("uid", [None, 70001])
def test_boot_files_fit_into_the_guest(tmp_path: Path, uid: int | None) -> None:
    """A disk named as initrd is neither copied into memory nor hashed, it is bad input with the sizes."""
    kernel, disk = tmp_path / "kernel", tmp_path / "disk"
    kernel.write_bytes(b"kernel")
    disk.touch(0o600)
    os.truncate(disk, BIOS.memory_bytes)
    guest = make_frozen(replace(BIOS, boot=KernelBoot(str(kernel), str(disk))))
    with opened_for(guest, None) as (descriptors, _):
        assert descriptors.initrd is not None
    os.truncate(disk, BIOS.memory_bytes + 1)
    with pytest.raises(BadInput, match="disk is .*, expected a file that fits"), opened_for(guest, uid):
        pass
    with pytest.raises(BadInput, match="disk is .*, expected a file that fits"):
        hash_boot_files(guest.spec)


def test_keys_are_private_and_go_away(tmp_path: Path) -> None:
    """A key is readable by its user only, replaces the last one, and is removed with its directory."""
    run_dir = RunDir(tmp_path / "r")
    run_dir.create(None)
    run_dir.write_key("aa" * 40, None)
    run_dir.write_key("bb" * 32, None)
    key = run_dir.tls / "keys.psk"
    assert key.read_text("ascii") == f"qemu:{'bb' * 32}\n"
    assert [path.stat().st_mode & 0o777 for path in (run_dir.path, run_dir.tls, key)] == [0o700, 0o700, 0o600]
    group = run_dir.tls / "dh-params.pem"  # else QEMU looks for a prime of its own, for up to seconds
    assert group.read_text("ascii").startswith("-----BEGIN DH PARAMETERS-----\n")
    assert group.stat().st_mode & 0o777 == 0o600
    run_dir.remove_key()
    run_dir.remove_key()
    assert not run_dir.tls.exists()


def test_a_key_is_not_written_through_a_link(tmp_path: Path) -> None:
    """A symbolic link that the guest's user put in place of the key goes, and where it led nothing is written."""
    run_dir = RunDir(tmp_path / "r")
    run_dir.create(None)
    run_dir.tls.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("safe")
    (run_dir.tls / "keys.psk").symlink_to(victim)
    run_dir.write_key("aa", None)
    assert victim.read_text("utf-8") == "safe"
    assert (run_dir.tls / "keys.psk").read_text("ascii") == "qemu:aa\n"


def test_old_sockets_go_and_logs_stay(tmp_path: Path) -> None:
    """A new process finds no socket of the last one, but its console's log."""
    run_dir = RunDir(tmp_path)
    for path in (*run_dir.sockets, run_dir.console_log):
        path.touch()
    with run_dir.taken(None):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["console.log"]


async def test_a_run_directory_has_one_process(tmp_path: Path) -> None:
    """From its start to its end a process is found by its directory, and no second one gets it."""
    run_dir = RunDir(tmp_path / "r")
    assert run_dir.find_holder() is None
    with run_dir.taken(None) as lock:
        process = spawn(SLEEPER, ["1000"], directory=tmp_path, log=tmp_path / "log", fds=(lock,))
    looking = os.open(run_dir.path, os.O_RDONLY)  # whoever looks into it is not taken for it
    try:
        found = await asyncio.to_thread(run_dir.find_holder)
        assert found is not None
        assert found.record == process.record
        found.close()
        with pytest.raises(Broken, match="belongs to a process that lives"), run_dir.taken(None):
            pass
    finally:
        os.close(looking)
        await process.kill()
    process.close()
    assert run_dir.find_holder() is None


async def test_a_process_is_its_pid_start_and_boot(tmp_path: Path) -> None:
    """A record leads back to its process as long as that lives, and to nothing when any part differs."""
    process = spawn(SLEEPER, ["1000"], directory=tmp_path, log=tmp_path / "log")
    record = process.record
    assert record.start_ticks == read_start_ticks(record.pid)
    assert record.boot_id == read_boot_id()
    for wrong in (replace(record, start_ticks=1), replace(record, boot_id="x"), replace(record, pid=2**22 - 1)):
        assert Process.of_record(wrong) is None
    again = Process.of_record(record)
    assert again is not None
    await asyncio.gather(process.kill(), again.kill())
    assert not process.is_alive()
    assert process.exit_status in {-9, None}
    assert not again.is_alive()
    for one in (process, again):
        one.close()
        one.close()
        assert not one.is_alive()
    assert Process.of_record(record) is None


async def test_waiting_has_an_end(tmp_path: Path) -> None:
    """Waiting for a process that lives gives up in time, several may wait, and it stays untouched."""
    process = spawn(SLEEPER, ["1000"], directory=tmp_path, log=tmp_path / "log")
    assert set(await asyncio.gather(process.wait_exited(0.01), process.wait_exited(0.02))) == {False}
    assert process.is_alive()
    waiting = asyncio.create_task(process.wait_exited())
    await asyncio.sleep(0)
    await process.kill()
    assert await waiting
    process.close()


def test_a_program_that_is_missing(tmp_path: Path) -> None:
    """A program that cannot be run is Broken, and one that is not there bad input."""
    with pytest.raises(Broken, match="/nonexistent/qemu"):
        spawn(QemuBinaryConfig(("/nonexistent/qemu",)), [], directory=tmp_path, log=tmp_path / "log")
    with pytest.raises(BadInput, match="/nonexistent/qemu"):
        QemuBinaryConfig(("/nonexistent/qemu",)).resolved()


async def test_a_child_inherits_nothing_else(tmp_path: Path) -> None:
    """A process has its three streams and what was given to it, the agent's environment is not passed on."""
    first, second = os.pipe()
    binary = QemuBinaryConfig(("/bin/sh",), {"QEMU_MODULE_DIR": "/modules"})
    argv = ["-c", "ls /proc/$$/fd; env"]
    process = spawn(binary, argv, directory=tmp_path, log=tmp_path / "log", fds=(second,))
    os.close(first)
    os.close(second)
    assert await process.wait_exited(60)
    process.close()
    lines = (tmp_path / "log").read_text("utf-8").split()
    assert {line for line in lines if line.isdigit()} == {"0", "1", "2", str(second)}
    variables = {line.split("=")[0] for line in lines if "=" in line}
    assert variables <= {"PATH", "LC_ALL", "QEMU_MODULE_DIR", "PWD", "OLDPWD", "SHLVL", "_"}


def test_answers_survive_and_spoilt_ones_do_not(tmp_path: Path) -> None:
    """What was put is got, by a new cache too; another key or a spoilt file gives nothing."""
    ProbeCache(tmp_path / "c").put("key", {"a": 1})
    assert ProbeCache(tmp_path / "c").get("key") == {"a": 1}
    assert ProbeCache(tmp_path / "c").get("other") is None
    (file,) = (tmp_path / "c").iterdir()
    for spoilt in ("", "[]", json.dumps({"key": "other", "answer": 1})):
        file.write_text(spoilt)
        assert ProbeCache(tmp_path / "c").get("key") is None


TAP = """
import json, os, subprocess
from pathlib import Path
from vmferry.core.errors import Broken
from vmferry.qemu.tap import open_tap
def taps():
    rows = json.loads(subprocess.run(["ip", "-j", "link", "show"], capture_output=True, check=True).stdout)
    return [[r["mtu"], r.get("master"), "UP" in r["flags"]] for r in rows if r["ifname"].startswith("vftap")]
subprocess.run(["ip", "link", "add", "br0", "mtu", "1400", "type", "bridge"], check=True)
fd = open_tap("br0")
during = taps()
os.close(fd)
try:
    open_tap("br7")
    failure = None
except Broken as error:
    failure = str(error)
print(json.dumps([during, taps(), failure]))
"""


@pytest.mark.root
def test_a_tap_lives_as_long_as_its_descriptor() -> None:
    """A tap is up on its bridge with its MTU, and gone when closed or when there is no such bridge."""
    command = ["unshare", "--net", sys.executable, "-c", TAP]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    during, after, failure = json.loads(done.stdout)
    assert during == [[1400, "br0", True]]
    assert after == []
    assert "bridge br7" in failure


def test_a_bridge_needs_a_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest on a bridge gets one tap per NIC, closed with the rest."""
    read, write = os.pipe()
    monkeypatch.setattr("vmferry.qemu.descriptors.open_tap", lambda _: os.dup(read))
    nics = (Nic(network=NetworkKind.BRIDGE, bridge="br0"), Nic())
    with opened_for(make_frozen(replace(BIOS, nics=nics)), None) as (descriptors, fds):
        assert descriptors.taps == (fds[0], None)
    os.close(read)
    os.close(write)
