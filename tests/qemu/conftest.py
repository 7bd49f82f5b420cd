"""Real QEMUs for the driver's tests: each version that this machine has."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.qemus import VERSIONS, binary_of

from vmferry.core.guest import Acceleration, Disk, FrozenGuest
from vmferry.ports.hypervisor import HostResources
from vmferry.qemu import QemuBinaryConfig, QemuGuestProcess, QemuHypervisor

Start = Callable[..., Coroutine[Any, Any, QemuGuestProcess]]


@pytest.fixture(params=VERSIONS, ids=lambda version: f"{version[0]}.{version[1]}")
def binary(request: pytest.FixtureRequest) -> QemuBinaryConfig:
    """Each QEMU version that we support."""
    return binary_of(request.param)


@pytest.fixture(scope="session")
def probes_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of probes are shared by all tests, as they are by all guests of a host."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def hypervisor(binary: QemuBinaryConfig, probes_dir: Path) -> QemuHypervisor:
    """The driver on each version."""
    return QemuHypervisor(binary, Acceleration.TCG, state_dir=probes_dir)


@pytest.fixture
def run_root() -> Iterator[Path]:
    """A directory with a short path, which only the agent may enter."""
    with tempfile.TemporaryDirectory(prefix="vmf-") as directory:
        yield Path(directory)


@pytest.fixture
async def start(run_root: Path) -> AsyncIterator[Start]:
    """Start guests in directories of their own; all are killed at the end."""
    started: list[QemuGuestProcess] = []

    async def start_one(
        hypervisor: QemuHypervisor,
        guest: FrozenGuest,
        *,
        incoming: bool = False,
        uid: int | None = None,
        beat_port: int | None = None,
    ) -> QemuGuestProcess:
        resources = HostResources(str(run_root / f"r{len(started)}"), uid, beat_port)
        started.append(await hypervisor.start(guest, resources, incoming=incoming))
        return started[-1]

    yield start_one
    for process in started:
        await process.kill()


@pytest.fixture
def image(tmp_path: Path) -> Disk:
    """A qcow2 image as two hosts see it on shared storage."""
    path = tmp_path / "shared.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "16M"], check=True)
    return Disk(path=str(path), cache="writeback")


def holds_lock(pid: int, image_path: str) -> bool:
    """Tell whether a process holds the image's write lock. Source: proc_pid_fdinfo(5), QEMU block/file-posix.c."""
    inode = Path(image_path).stat().st_ino
    lines: list[str] = []
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            lines += info.read_text("ascii").splitlines()
        except OSError:
            continue  # closed since the listing
    ranges = [line.split()[-2:] for line in lines if line.startswith("lock:") and f":{inode} " in line]
    return any(int(first) <= 101 <= int(last) for first, last in ranges)
