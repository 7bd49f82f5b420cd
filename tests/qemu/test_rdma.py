"""What a host says about RDMA, by files as the kernel shows them, and the limit of memory that QEMU may lock."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.core.capabilities import Transport
from vmferry.core.errors import Broken
from vmferry.core.guest import GuestSpec, KernelBoot
from vmferry.core.ids import GuestName
from vmferry.core.units import MIB, Bytes
from vmferry.qemu import rdma
from vmferry.qemu.process import Process
from vmferry.qemu.rdma import LockedMemory, why_no_rdma

UID, ADDRESS = 70001, "10.79.0.1"
#: Of rxe0 on a nested host, whose other entries cannot be read.
GIDS = ("fe80:0000:0000:0000:5054:00ff:fe7e:0001", "0000:0000:0000:0000:0000:ffff:0a4f:0001")


@pytest.fixture(autouse=True)
def may_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that may raise limits, whether or not these tests may."""
    monkeypatch.setattr(rdma, "_may_raise", lambda: True)


def add_device(root: Path, name: str, state: str = "4: ACTIVE", kind: str = "RoCE v2") -> Path:
    """Make a device with one port and the files that programs use it by."""
    port = root / "sys/class/infiniband" / name / "ports" / "1"
    (port / "gids").mkdir(parents=True)
    (port / "gid_attrs" / "types").mkdir(parents=True)
    (port / "state").write_text(f"{state}\n")
    for number, gid in enumerate((*GIDS, "0000:0000:0000:0000:0000:0000:0000:0000")):
        (port / "gids" / str(number)).write_text(f"{gid}\n")
        if kind:
            (port / "gid_attrs" / "types" / str(number)).write_text(f"{kind}\n")
    (root / "dev/infiniband").mkdir(parents=True, exist_ok=True)
    for file in ("rdma_cm", "uverbs0"):
        (root / "dev/infiniband" / file).touch()
        (root / "dev/infiniband" / file).chmod(0o666)
    return port


def test_no_device_is_told_with_its_fix(tmp_path: Path) -> None:
    """The usual host."""
    assert "rdma link add" in str(why_no_rdma(ADDRESS, UID, tmp_path))


def test_a_device_with_the_address_of_the_streams(tmp_path: Path) -> None:
    """It can; with another address it cannot, and both are named."""
    add_device(tmp_path, "rxe0")
    assert why_no_rdma(ADDRESS, UID, tmp_path) is None
    assert why_no_rdma(GIDS[0], UID, tmp_path) is None
    why = str(why_no_rdma("10.79.0.2", UID, tmp_path))
    assert all(word in why for word in ("rxe0", "10.79.0.2", "migration.address"))


def test_a_port_that_is_down_is_none(tmp_path: Path) -> None:
    """One of two is enough; none is told with both names."""
    port = add_device(tmp_path, "rxe0", state="1: DOWN")
    add_device(tmp_path, "mlx5_0")
    assert why_no_rdma(ADDRESS, UID, tmp_path) is None
    (tmp_path / "sys/class/infiniband/mlx5_0/ports/1/state").write_text("1: DOWN\n")
    assert "mlx5_0, rxe0" in str(why_no_rdma(ADDRESS, UID, tmp_path))
    port.joinpath("state").unlink()
    assert "mlx5_0, rxe0" in str(why_no_rdma(ADDRESS, UID, tmp_path))


def test_a_device_whose_addresses_are_not_ip(tmp_path: Path) -> None:
    """InfiniBand and iWARP do not show IP addresses: an active port counts."""
    add_device(tmp_path, "mlx4_0", kind="IB")
    assert why_no_rdma("10.79.0.2", UID, tmp_path) is None


def test_files_that_qemus_user_may_not_open(tmp_path: Path) -> None:
    """They are named; root needs no mode, and one that is not there is named too."""
    add_device(tmp_path, "rxe0")
    (tmp_path / "dev/infiniband/uverbs0").chmod(0o600)
    why = str(why_no_rdma(ADDRESS, UID, tmp_path))
    assert "/dev/infiniband/uverbs0" in why
    assert "rdma_cm" not in why
    assert str(UID) in why
    assert why_no_rdma(ADDRESS, 0, tmp_path) is None
    (tmp_path / "dev/infiniband/rdma_cm").unlink()
    assert "/dev/infiniband/rdma_cm, /dev/infiniband/uverbs0" in str(why_no_rdma(ADDRESS, UID, tmp_path))


def test_an_agent_that_may_not_raise_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs none where everybody may lock everything; else it is told what it lacks."""
    add_device(tmp_path, "rxe0")
    monkeypatch.setattr(rdma, "_may_raise", lambda: False)
    for hard, words in ((8 * MIB, "LimitMEMLOCK"), (resource.RLIM_INFINITY, "None")):
        monkeypatch.setattr(resource, "getrlimit", lambda _, hard=hard: (8 * MIB, hard))
        assert words in str(why_no_rdma(ADDRESS, UID, tmp_path))


def test_the_capability_is_read_from_the_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CAP_SYS_RESOURCE is bit 24 of what is in effect."""
    monkeypatch.undo()
    for word, may in (("000001ffffffffff", True), ("000001fffeffffff", False), ("0000000001000000", True)):
        (tmp_path / "status").write_text(f"Name:\tpython\nCapPrm:\t0\nCapEff:\t{word}\n")
        monkeypatch.setattr(rdma, "_STATUS", tmp_path / "status")
        assert rdma._may_raise() is may


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that may lock 1 MiB, and may be let lock 8: more needs a right that these tests may not have."""
    monkeypatch.setattr(rdma, "_BESIDE_MEMORY", 1 * MIB)
    with subprocess.Popen(["prlimit", f"--memlock={MIB}:{8 * MIB}", "--", "sleep", "600"]) as process:
        while b"sleep" not in Path(f"/proc/{process.pid}/comm").read_bytes():
            pass
        yield process
        process.kill()


def limit_of(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Return what a process may lock."""
    return resource.prlimit(process.pid, resource.RLIMIT_MEMLOCK)


@pytest.fixture
def held(sleeper: subprocess.Popen[bytes]) -> Iterator[Process]:
    """The same process as the agent holds it."""
    found = Process.of_pid(sleeper.pid)
    assert found is not None
    yield found
    found.close()


def guest_with(memory: int) -> GuestSpec:
    """Return a guest."""
    return GuestSpec(GuestName("web-7"), Bytes(memory), KernelBoot("/srv/vmlinuz"))


def test_qemu_may_lock_the_guest_while_it_moves(sleeper: subprocess.Popen[bytes], held: Process) -> None:
    """Only by RDMA; afterwards it may lock what it could before, whatever was allowed twice."""
    before = limit_of(sleeper)
    locked = LockedMemory(guest_with(4 * MIB), held)
    locked.allow(Transport.TCP)
    assert limit_of(sleeper) == before
    locked.allow(Transport.RDMA)
    locked.allow(Transport.RDMA)
    assert limit_of(sleeper) == (5 * MIB, 8 * MIB)
    locked.restore()
    locked.restore()
    assert limit_of(sleeper) == before


def test_a_limit_that_is_high_enough_is_left_alone(sleeper: subprocess.Popen[bytes], held: Process) -> None:
    """A host that lets QEMU lock more than that has said so itself."""
    resource.prlimit(sleeper.pid, resource.RLIMIT_MEMLOCK, (6 * MIB, 8 * MIB))
    locked = LockedMemory(guest_with(4 * MIB), held)
    locked.allow(Transport.RDMA)
    locked.restore()
    assert limit_of(sleeper) == (6 * MIB, 8 * MIB)


def test_a_process_that_is_gone(sleeper: subprocess.Popen[bytes], held: Process) -> None:
    """Letting it lock more says so; taking that back has nothing to do."""
    locked = LockedMemory(guest_with(4 * MIB), held)
    sleeper.kill()
    sleeper.wait()
    with pytest.raises(Broken, match="web-7 cannot be let lock 4.0 MiB: No such process"):
        locked.allow(Transport.RDMA)
