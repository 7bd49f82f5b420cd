"""One real QEMU: started, watched, adopted by another process, ended; what the guest does itself; nothing left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.qemu.conftest import Start, holds_lock
from tests.qemu.images import BEAT, HELLO, PANIC, POWER_OFF, RESET, make_image

from vmferry.core.errors import BadInput, Broken
from vmferry.core.guest import Disk, GuestSpec, IoPath, KernelBoot, UefiBoot
from vmferry.ports.hypervisor import GuestEventKind, HostResources, ProcessRecord, RunState
from vmferry.qemu import QemuBinaryConfig, QemuHypervisor
from vmferry.qemu.process import spawn
from vmferry.testing.conformance_hypervisor import SPEC, wait_event

pytestmark = pytest.mark.real

AGENT = """
import asyncio, json, sys
from dataclasses import asdict
from pathlib import Path
from vmferry.core.guest import Acceleration
from vmferry.ports.hypervisor import HostResources
from vmferry.qemu import QemuBinaryConfig, QemuHypervisor
from vmferry.testing.conformance_hypervisor import SPEC

async def main(argv, env, state, run_dir):
    hypervisor = QemuHypervisor(QemuBinaryConfig(tuple(argv), env), Acceleration.TCG, state_dir=Path(state))
    process = await hypervisor.start(await hypervisor.freeze(SPEC), HostResources(run_dir, None), incoming=False)
    await process.cont()
    print(json.dumps(asdict(process.record)))
    await process.close()

asyncio.run(main(*json.loads(sys.argv[1])))
"""


def boot(tmp_path: Path, code: bytes) -> GuestSpec:
    """Return a guest that runs some instructions."""
    path = tmp_path / "guest.bin"
    path.write_bytes(make_image(code))
    return replace(SPEC, nics=(), boot=KernelBoot(str(path)))


def open_files() -> list[str]:
    """Return what the descriptors of this process point to."""
    return [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]


def copy_firmware(directory: Path) -> UefiBoot:
    """Return UEFI firmware with variables of its own, or skip."""
    code = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
    if not code.exists():
        pytest.skip("no UEFI firmware: apt-get install ovmf")
    nvram = directory / "vars.fd"
    nvram.write_bytes(Path("/usr/share/OVMF/OVMF_VARS_4M.fd").read_bytes())
    return UefiBoot(str(code), str(nvram))


async def test_outlives_its_agent(
    hypervisor: QemuHypervisor, binary: QemuBinaryConfig, probes_dir: Path, run_root: Path
) -> None:
    """A guest started by another process runs on when that ends, and can be adopted, watched and ended from here."""
    run_dir = str(run_root / "r")
    arguments = json.dumps([binary.argv, dict(binary.env), str(probes_dir), run_dir])
    command = [sys.executable, "-c", AGENT, arguments]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    record = ProcessRecord(**json.loads(done.stdout))
    guest = await hypervisor.freeze(SPEC)
    process = await hypervisor.adopt(guest, HostResources(run_dir, None), record)
    assert process is not None
    assert await process.query_run_state() is RunState.RUNNING
    assert os.getsid(record.pid) == record.pid
    events = process.events()
    os.kill(record.pid, signal.SIGKILL)
    await wait_event(events, GuestEventKind.EXITED)
    assert not process.is_alive()
    await process.quit()
    assert await hypervisor.adopt(guest, HostResources(run_dir, None), record) is None


@pytest.mark.parametrize(("cache", "write_back"), [("none", True), ("directsync", False)])
@pytest.mark.parametrize("path", list(IoPath))
async def test_cache_modes_are_qemus_own(
    hypervisor: QemuHypervisor, image: Disk, start: Start, path: IoPath, cache: str, write_back: bool
) -> None:
    """QEMU itself says of each disk whether it goes past the page cache, and whether the guest waits for its writes."""
    spec = replace(SPEC, disks=(replace(image, cache=cache, io_path=path),))
    process = await start(hypervisor, await hypervisor.freeze(spec))
    rows = await process._session.execute("query-block")
    seen = [row["inserted"]["cache"] for row in rows if row.get("inserted")]
    assert seen == [{"writeback": write_back, "direct": True, "no-flush": False}]


async def test_the_agent_keeps_no_descriptor(hypervisor: QemuHypervisor, image: Disk, start: Start) -> None:
    """Once a guest runs the agent has none of its files open: an open image would keep its lock."""
    await start(hypervisor, await hypervisor.freeze(replace(SPEC, disks=(image,))))
    assert image.path not in open_files()


async def test_a_failed_start_leaves_nothing(hypervisor: QemuHypervisor, run_root: Path) -> None:
    """QEMU's refusal is told in its own words, and no process or socket remains."""
    guest = await hypervisor.freeze(SPEC)
    wrong = replace(guest, cpu="qemu64-v1,no-such-feature=on")
    with pytest.raises(Broken, match="no-such-feature") as caught:
        await hypervisor.start(wrong, HostResources(str(run_root / "r"), None), incoming=False)
    assert "web-7" in caught.value.what
    assert {path.name for path in (run_root / "r").iterdir()} <= {"qemu.log", "console.log"}


async def test_a_cancelled_start_leaves_nothing(
    hypervisor: QemuHypervisor, run_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that is given up half-way ends the process that it made."""
    guest = await hypervisor.freeze(SPEC)
    made: list[int] = []

    def spawn_and_tell(*args: object, **kwargs: object) -> object:
        process = spawn(*args, **kwargs)  # type: ignore[arg-type]
        made.append(process.record.pid)
        loop.call_soon_threadsafe(task.cancel)
        return process

    loop = asyncio.get_running_loop()
    monkeypatch.setattr("vmferry.qemu.hypervisor.spawn", spawn_and_tell)
    start = hypervisor.start(guest, HostResources(str(run_root / "r"), None), incoming=False)
    task = asyncio.create_task(start)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(made) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(made[0], 0)


async def test_missing_image_starts_nothing(hypervisor: QemuHypervisor, run_root: Path) -> None:
    """An image that is not there is Broken, naming it."""
    guest = await hypervisor.freeze(SPEC)
    wrong = replace(guest, spec=replace(SPEC, disks=(Disk("/nonexistent/a.qcow2"),)))
    with pytest.raises(Broken, match="/nonexistent/a.qcow2"):
        await hypervisor.start(wrong, HostResources(str(run_root / "r"), None), incoming=False)


async def test_long_run_directory(hypervisor: QemuHypervisor, run_root: Path) -> None:
    """A run directory whose sockets could not be reached is bad input, before anything is made."""
    guest = await hypervisor.freeze(SPEC)
    long = run_root / ("x" * 100)
    with pytest.raises(BadInput, match="limit 107"):
        await hypervisor.start(guest, HostResources(str(long), None), incoming=False)
    assert not long.exists()


async def test_console(hypervisor: QemuHypervisor, start: Start, tmp_path: Path) -> None:
    """What the guest writes to its serial port reaches an open console and the log."""
    process = await start(hypervisor, await hypervisor.freeze(boot(tmp_path, HELLO)))
    reader, writer = await process.open_console()
    await process.cont()
    assert (await asyncio.wait_for(reader.readuntil(b"hello\n"), 60)).endswith(b"hello\n")
    writer.close()
    await writer.wait_closed()
    await process.quit()
    assert b"hello\n" in process.run_dir.console_log.read_bytes()


async def test_debugcon_beats_are_datagrams(hypervisor: QemuHypervisor, start: Start, tmp_path: Path) -> None:
    """A byte on port 0xe9 is a datagram to the beat's port."""
    spec = replace(boot(tmp_path, BEAT), beat=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        port = receiver.getsockname()[1]
        process = await start(hypervisor, await hypervisor.freeze(spec), beat_port=port)
        await process.cont()
        loop = asyncio.get_running_loop()
        assert await asyncio.wait_for(loop.sock_recv(receiver, 16), 60) == b"b"


async def test_power_off_is_no_crash(hypervisor: QemuHypervisor, start: Start, tmp_path: Path) -> None:
    """A guest that powers itself off is told as such, and its QEMU stays."""
    process = await start(hypervisor, await hypervisor.freeze(boot(tmp_path, POWER_OFF)))
    events = process.events()
    await process.cont()
    event = await wait_event(events, GuestEventKind.POWERED_OFF)
    assert event.detail == "guest-shutdown"
    await wait_event(events, GuestEventKind.STOPPED)
    assert await process.query_run_state() is RunState.SHUTDOWN
    with pytest.raises(Broken, match="shutdown"):
        await process.cont()


async def test_reset_is_told(hypervisor: QemuHypervisor, start: Start, tmp_path: Path) -> None:
    """A guest that reboots itself is told as such, and runs on."""
    process = await start(hypervisor, await hypervisor.freeze(boot(tmp_path, RESET)))
    events = process.events()
    await process.cont()
    await wait_event(events, GuestEventKind.RESET)
    assert await process.query_run_state() is RunState.RUNNING


async def test_panic_is_told(hypervisor: QemuHypervisor, start: Start, tmp_path: Path) -> None:
    """A guest whose kernel panics is told as such, and stands."""
    process = await start(hypervisor, await hypervisor.freeze(boot(tmp_path, PANIC)))
    events = process.events()
    await process.cont()
    await wait_event(events, GuestEventKind.PANICKED)
    await wait_event(events, GuestEventKind.STOPPED)
    assert await process.query_run_state() is RunState.PANICKED


@pytest.mark.root
async def test_private_kernel_for_another_user(hypervisor: QemuHypervisor, start: Start, tmp_path: Path) -> None:
    """A kernel that only root may read boots in a process that is not root."""
    spec = boot(tmp_path, HELLO)
    (tmp_path / "guest.bin").chmod(0o600)
    guest = await hypervisor.freeze(spec)
    try:
        process = await start(hypervisor, guest, uid=70001)
    except Broken as error:
        if "Permission denied" not in error.what:
            raise
        pytest.skip("this QEMU is below a private directory; set VMFERRY_CACHE to one that all users may enter")
    reader, writer = await process.open_console()
    await process.cont()
    await asyncio.wait_for(reader.readuntil(b"hello\n"), 60)
    writer.close()
    await writer.wait_closed()


async def test_uefi_runs_from_descriptors(hypervisor: QemuHypervisor, start: Start, tmp_path: Path) -> None:
    """Firmware code and variables come as descriptors; the code is hashed, the variables are held open to write."""
    firmware = copy_firmware(tmp_path)
    guest = await hypervisor.freeze(replace(SPEC, boot=firmware))
    assert [path for path, _ in guest.boot_hashes] == [firmware.code]
    process = await start(hypervisor, guest)
    await process.cont()
    assert await process.query_run_state() is RunState.RUNNING
    assert holds_lock(process.record.pid, firmware.nvram)


async def test_answers_are_kept(
    hypervisor: QemuHypervisor, binary: QemuBinaryConfig, probes_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second agent knows facts and CPUs without starting a process."""
    facts = await hypervisor.query_facts()
    guest = await hypervisor.freeze(SPEC)
    assert "pc-q35-7.2" in facts.machines
    assert {"events", "multifd"} <= facts.capabilities
    assert "qemu64" in facts.cpu_models
    assert not facts.cpu_models & {"host", "max", "base"}
    assert "virtio-net-pci" in facts.devices

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a probe was started")

    await hypervisor.probe_cpu(guest)
    monkeypatch.setattr("vmferry.qemu.probe.spawn", refuse)
    again = QemuHypervisor(binary, hypervisor._acceleration, state_dir=probes_dir)
    assert await again.query_facts() == facts
    assert list(await again.probe_cpu(guest)) == []


async def test_missing_features_are_named(hypervisor: QemuHypervisor) -> None:
    """A CPU that TCG cannot build is refused at freezing, and its missing features are named to a destination."""
    with pytest.raises(BadInput, match="pcid"):
        await hypervisor.freeze(replace(SPEC, cpu="Skylake-Server"))
    guest = replace(await hypervisor.freeze(SPEC), cpu="qemu64-v1,pcid=on,invpcid=on,enforce")
    assert list(await hypervisor.probe_cpu(guest)) == ["invpcid", "pcid"]


async def test_unknown_feature_is_qemus_word(hypervisor: QemuHypervisor) -> None:
    """A feature that this QEMU has never heard of is Broken in QEMU's own words."""
    guest = replace(await hypervisor.freeze(SPEC), cpu="qemu64-v1,teleport=on,enforce")
    with pytest.raises(Broken, match="teleport"):
        await hypervisor.probe_cpu(guest)
