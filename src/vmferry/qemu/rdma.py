"""Memory that goes straight to the other host's: what a host needs for it, and how much QEMU may lock meanwhile.

An RDMA device reads and writes the guest's memory itself, so that must stay in its place: QEMU locks it. So does the
kernel for a device of the host that the guest has.

Source: QEMU docs/rdma.txt, migration/rdma.c; Documentation/ABI/stable/sysfs-class-infiniband; capabilities(7),
prlimit(2): a process with CAP_SYS_RESOURCE may raise any limit; tried with soft-RoCE on 7.2 and 10.0.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

from vmferry.core.capabilities import Transport
from vmferry.core.errors import Broken
from vmferry.core.guest import GuestSpec
from vmferry.core.units import MIB, format_bytes
from vmferry.qemu.process import Process

_CLASS = Path("sys/class/infiniband")
_FILES = Path("dev/infiniband")
_MANAGER = "rdma_cm"
_STATUS = Path("/proc/self/status")
_CAP_SYS_RESOURCE = 24
_LOCKED = "Max locked memory"
#: Firmware, video memory and QEMU's own buffers are registered as well.
_BESIDE_MEMORY = 256 * MIB
_RESTART = "and restart the agent (guests run on)"


def why_no_rdma(address: str, uid: int | None, root: Path = Path("/")) -> str | None:
    """Return why no stream can leave or reach this host by RDMA, with the fix; None when it can.

    Args:
        address: IP address of the host's streams.
        uid: of its QEMU processes; None = the agent's own user.
        root: where `sys` and `dev` are.
    """
    ports = list(_ports(root))
    if not ports:
        return "it has no RDMA device: for RDMA in software, `rdma link add rxe0 type rxe netdev NIC`"
    if not any(_serves(port, address) for port in ports):
        return (
            f"none of its RDMA devices ({', '.join(sorted({_device(port) for port in ports}))}) has an active port with"
            f" {address}, the address of its streams: bring its link up, or set migration.address in agent.toml to an"
            f" address of its card, {_RESTART}"
        )
    if closed := _closed(root, uid):
        user = os.geteuid() if uid is None else uid
        return f"QEMU as uid {user} may not open {', '.join(closed)}: let everybody read and write them, by a udev rule"
    if not _may_raise() and resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] != resource.RLIM_INFINITY:
        return (
            "its agent may not raise QEMU's limit of locked memory: give the agent CAP_SYS_RESOURCE, or"
            f" LimitMEMLOCK=infinity, {_RESTART}"
        )
    return None


class LockedMemory:
    """How much memory one QEMU may lock: as much as it inherited, but while it sends or receives by RDMA.

    Once its guest has had a device of the host, it stays at what that takes: memory is mapped for it at any time.

    Args:
        spec: of its guest.
        process: held by the caller.
    """

    def __init__(self, spec: GuestSpec, process: Process) -> None:
        self._spec = spec
        self._process = process
        self._inherited: tuple[int, int] | None = None  #: while it is another one
        self._has_devices = False

    def allow(self, by: Transport) -> None:
        """Let it lock all of its guest's memory, and what else it registers, if the stream goes by RDMA.

        Raises:
            Broken: this process may not raise the limit, or QEMU is gone.
        """
        if by is Transport.RDMA:
            self._allow(", or move the guest with --link tcp")

    def allow_devices(self) -> None:
        """Let it lock all of its guest's memory for devices of the host, until it ends.

        Raises:
            Broken: this process may not raise the limit, or QEMU is gone.
        """
        self._allow("")
        self._has_devices = True

    def _allow(self, otherwise: str) -> None:
        try:
            self._raise_to(self._spec.memory_bytes + _BESIDE_MEMORY)
        except OSError as error:
            raise Broken(
                f"QEMU of guest {self._spec.name} cannot be let lock {format_bytes(self._spec.memory_bytes)}:"
                f" {error.strerror}",
                fix=f"run the agent with CAP_SYS_RESOURCE{otherwise}",
            ) from error

    def _raise_to(self, most: int) -> None:
        soft, hard = before = _limits(self._process.record.pid)
        if _reaches(soft, most):
            return
        resource.prlimit(
            self._process.record.pid, resource.RLIMIT_MEMLOCK, (most, hard if _reaches(hard, most) else most)
        )
        self._inherited = self._inherited or before

    def restore(self) -> None:
        """Have it lock no more than it inherited; what it has locked stays so. Idempotent.

        An agent that comes later does not know what that was: the limit then stays until the process ends.
        """
        if self._has_devices:
            return
        before, self._inherited = self._inherited, None
        if before is not None:
            try:
                resource.prlimit(self._process.record.pid, resource.RLIMIT_MEMLOCK, before)
            except ProcessLookupError:
                return


def _limits(pid: int) -> tuple[int, int]:
    """Return how much a process may lock, soft and hard; prlimit(2) tells it of other users' to few.

    Source: proc_pid_limits(5).
    """
    try:
        lines = Path(f"/proc/{pid}/limits").read_text("ascii").splitlines()
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
    words = next(line for line in lines if line.startswith(_LOCKED)).removeprefix(_LOCKED).split()
    soft, hard = (resource.RLIM_INFINITY if word == "unlimited" else int(word) for word in words[:2])
    return soft, hard


def _reaches(limit: int, wanted: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= wanted


def _ports(root: Path) -> Iterator[Path]:
    """Yield the ports of all RDMA devices: DEVICE/ports/NUMBER."""
    return (root / _CLASS).glob("*/ports/*")


def _device(port: Path) -> str:
    return port.parent.parent.name


def _serves(port: Path, address: str) -> bool:
    """Tell whether a port is up and has an address; only those of RoCE have IP addresses among their own."""
    if "ACTIVE" not in _read(port / "state"):
        return False
    if not any("RoCE" in _read(kind) for kind in (port / "gid_attrs" / "types").glob("*")):
        return True
    wanted = ipaddress.ip_address(address)
    return any(wanted == _ip(_read(gid)) for gid in (port / "gids").glob("*"))


def _ip(gid: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a port's address (GID) of RoCE stands for."""
    try:
        found = ipaddress.IPv6Address(gid)
    except ValueError:
        return None
    return found.ipv4_mapped or found


def _closed(root: Path, uid: int | None) -> list[str]:
    """Return the device files that a user may not read and write, or that are not there."""
    user = os.geteuid() if uid is None else uid
    if user == 0:
        return []
    files = [root / _FILES / _MANAGER, *sorted((root / _FILES).glob("uverbs*"))]
    return [f"/{file.relative_to(root)}" for file in files if not _is_open(file, user)]


def _is_open(file: Path, user: int) -> bool:
    try:
        found = file.stat()
    except OSError:
        return False
    everybody, owner = stat.S_IROTH | stat.S_IWOTH, stat.S_IRUSR | stat.S_IWUSR
    return found.st_mode & everybody == everybody or (found.st_uid == user and found.st_mode & owner == owner)


def _may_raise() -> bool:
    """Tell whether this process has CAP_SYS_RESOURCE. Source: proc_pid_status(5), CapEff."""
    line = next(line for line in _STATUS.read_text("ascii").splitlines() if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)


def _read(path: Path) -> str:
    """Return a file of sysfs; empty where there is none: unused entries of a port's table cannot be read."""
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""
