"""What this host offers right now: memory, bridges, ports, QEMU and acceleration."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmferry import __version__
from vmferry.core.checks import memory_needed
from vmferry.core.disk_leases import DiskLeaseFacts
from vmferry.core.guest import Acceleration
from vmferry.core.host import HostFacts, StreamCertificates
from vmferry.core.ids import HostName
from vmferry.core.units import Bytes
from vmferry.disks.files import image_tool
from vmferry.ports.disk_leases import NoDiskLeases
from vmferry.ports.hypervisor import Hypervisor
from vmferry.ports.store import GuestRow, Journal
from vmferry.qemu import tpm
from vmferry.qemu.rdma import why_no_rdma
from vmferry.qemu.userfault import why_no_userfault
from vmferry.qemu.vhost_net import why_no_vhost

_SYS_NET = Path("/sys/class/net")


@dataclass(frozen=True, slots=True)
class Offer:
    """What does not change while the agent runs."""

    name: HostName
    address: str  #: of its streams, an IP address
    protocol: int
    acceleration: Acceleration
    acceleration_reason: str
    acceleration_tag: str
    ports: range
    memory_reserve: Bytes  #: never given to guests
    bridges: tuple[str, ...] | None = None  #: those that guests may be plugged into; None: every one
    qemu_uid: int | None = None  #: a user that guests run as; None: the agent's own
    pipelines: Mapping[str, bool] = field(default_factory=dict)  #: by name, and whether they encrypt
    certificates: Callable[[], StreamCertificates] | None = None  #: looks at those for streams; None: there are none
    disk_leases: Callable[[], Awaitable[DiskLeaseFacts | None]] = NoDiskLeases().facts  #: looks how they are taken


class HostView:
    """Answers what the host offers.

    Args:
        offer: the fixed part.
        journal: guests and reservations.
        hypervisor: what QEMU can do.
    """

    def __init__(self, offer: Offer, journal: Journal, hypervisor: Hypervisor) -> None:
        self.offer = offer
        self._journal = journal
        self._hypervisor = hypervisor

    async def facts(self) -> HostFacts:
        """Return everything, measured now."""
        offer = self.offer
        qemu = await self._hypervisor.query_facts()
        reserved = sum(reservation.memory_bytes for reservation in self._journal.reservations())
        return HostFacts(
            name=offer.name,
            agent_version=__version__,
            protocol=offer.protocol,
            qemu=qemu,
            acceleration=offer.acceleration,
            acceleration_reason=offer.acceleration_reason,
            acceleration_tag=offer.acceleration_tag,
            memory_total_bytes=_meminfo()["MemTotal"],
            memory_free_bytes=Bytes(max(0, self.free_memory() - reserved)),
            bridges=frozenset(self.bridges()),
            migration_ports_free=self._ports_free(),
            why_no_postcopy=why_no_userfault(offer.qemu_uid, qemu.version),
            why_no_vhost=why_no_vhost(),
            why_no_rdma=await asyncio.to_thread(why_no_rdma, offer.address, offer.qemu_uid),
            pipelines=offer.pipelines,
            makes_images=image_tool() is not None,
            tpm_emulator=await asyncio.to_thread(tpm.query_version),
            certificates=None if offer.certificates is None else await asyncio.to_thread(offer.certificates),
            disk_leases=await offer.disk_leases(),
        )

    def bridges(self) -> list[str]:
        """Return the bridges of this host that guests may be plugged into."""
        allowed = self.offer.bridges
        return [name for name in bridges() if allowed is None or name in allowed]

    def free_memory(self) -> Bytes:
        """Return what is there for arrivals, reservations not subtracted.

        The least of what the kernel says is available, and what all guests here may grow to.
        """
        memory = _meminfo()
        promised = sum(memory_needed(row.guest) for row in self._running())
        total = memory["MemTotal"] - self.offer.memory_reserve - promised
        return Bytes(max(0, min(memory["MemAvailable"] - self.offer.memory_reserve, total)))

    def _running(self) -> Iterable[GuestRow]:
        """Return the guests whose memory is in use here; arrivals are counted by their reservation instead."""
        rows = self._journal.guests()
        return (row for row in rows if row.process is not None and row.token.owner == self.offer.name)

    def _ports_free(self) -> int:
        taken = {reservation.port for reservation in self._journal.reservations()}
        return len(self.offer.ports) - len(taken)


def bridges() -> list[str]:
    """Return the Linux bridges of this network namespace."""
    if not _SYS_NET.is_dir():
        return []
    return sorted(path.name for path in _SYS_NET.iterdir() if (path / "bridge").is_dir())


def port_is_free(address: str, port: int) -> bool:
    """Tell whether something else listens on the port now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _meminfo() -> dict[str, Bytes]:
    """Return /proc/meminfo in bytes. Source: proc_meminfo(5)."""
    rows = (line.split() for line in Path("/proc/meminfo").read_text("ascii").splitlines())
    return {row[0].rstrip(":"): Bytes(int(row[1]) * 1024) for row in rows if len(row) == 3}
