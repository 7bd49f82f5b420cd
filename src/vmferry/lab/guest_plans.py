"""Built-in guests as guest files: pure, the same plan gives the same text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from vmferry.lab.guests import GuestImage, GuestKind
from vmferry.lab.network import BRIDGE
from vmferry.measure.echo import ECHO_PORT

#: Of the guest's first NIC, in the fabric's network; every lab has its own fabric.
GUEST_ADDRESS = "10.78.0.10"
MACHINE = "pc-q35-7.2"  #: the newest that both supported QEMUs have


@dataclass(frozen=True, slots=True)
class NicPlan:
    """One NIC: how the guest reaches it, and whether it hangs on the host's bridge."""

    path: str = "virtio"
    bridge: bool = True
    physical_network: str | None = None  #: it is a virtual function there, with a standby if it hangs on the bridge
    standby: str = "virtio"
    mac: str | None = None

    def table(self) -> dict[str, object]:
        """Return the NIC as a guest file has it."""
        alone = "user" if self.physical_network is None else "none"
        table: dict[str, object] = {"path": self.path, "network": "bridge" if self.bridge else alone}
        if self.bridge:
            table["bridge"] = BRIDGE
        if self.physical_network is not None:
            table["physical_network"] = self.physical_network
            table |= {"standby": self.standby} if self.bridge else {"may_detach": True}
        return table | ({"mac": self.mac} if self.mac is not None else {})


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """One disk image on a path that all hosts of the lab see."""

    image: Path
    format: str = "qcow2"
    backing: tuple[DiskPlan, ...] = ()  #: what it stands on, the nearest first
    cdrom: bool = False

    def table(self) -> dict[str, object]:
        """Return the disk as a guest file has it."""
        own: dict[str, object] = {"image": str(self.image), "format": self.format}
        below = {"backing": [image.table() for image in self.backing]} if self.backing else {}
        return own | below | ({"io_path": "emulated", "read_only": True} if self.cdrom else {})


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """A built-in guest and its workload."""

    kind: GuestKind
    name: str = "web-7"
    memory_mib: int = 256
    vcpus: int = 1
    working_set_mib: int = 64
    rate: int = 20  #: MiB/s written
    pattern: str = "sequential"  #: sequential, random, hotspot (linux)
    data: str = "random"  #: random, compressible (linux)
    machine: str = MACHINE
    nics: tuple[NicPlan, ...] = ()
    disks: tuple[DiskPlan, ...] = ()
    beat_us: int = 0  #: between two beats; 0: the guest's own choice, a millisecond (linux)
    disk_rate: int = 0  #: MiB/s written to its first disk, and read back when asked for (linux)
    local: bool = False  #: its own images are on its host only (debian; the lab has `local_dirs`)
    echo: bool = False  #: the agents probe its UDP echo during moves, if it has an address (linux)
    throttle: bool = False  #: it has the write throttle's port, and its workload runs under the helper (linux)
    extra: dict[str, object] = field(default_factory=dict)  #: more keys of the guest file

    @property
    def has_address(self) -> bool:
        """Whether the guest is on the fabric's network: its first NIC is on the bridge."""
        return bool(self.nics) and self.nics[0].bridge

    def settings(self) -> dict[str, object]:
        """Return the workload's settings, as the guest's command line has them."""
        common: dict[str, object] = {"mb": self.working_set_mib, "rate": self.rate}
        if self.kind == "micro":
            return common
        address = {"ip": f"{GUEST_ADDRESS}/24"} if self.has_address else {}
        helper = {"throttle": "on"} if self.throttle else {}
        disk = {"disk_rate": self.disk_rate} if self.disk_rate else {}
        disk |= {"beat_us": self.beat_us} if self.beat_us else {}
        return {**common, "pattern": self.pattern, "data": self.data, **address, **helper, **disk}

    def toml(self, image: GuestImage) -> str:
        """Return the guest file; the debian guest's image is its personal one (`personal_disk`)."""
        own = tuple(DiskPlan(disk) for disk in image.disks)
        return tomli_w.dumps(
            {
                "name": self.name,
                "memory": f"{self.memory_mib} MiB",
                "vcpus": self.vcpus,
                "machine": self.machine,
                "beat": True,
                "control": self.kind != "micro",
                **({"throttle": True} if self.throttle else {}),
                **({"echo": f"{GUEST_ADDRESS}:{ECHO_PORT}"} if self.echo and self.has_address else {}),
                **self.extra,
                "boot": self._boot(image),
                "nic": [nic.table() for nic in self.nics],
                "disk": [disk.table() for disk in (*own, *self.disks)],
            }
        )

    def _boot(self, image: GuestImage) -> dict[str, str]:
        if image.kernel is None:
            return {"firmware": "uefi", "code": str(image.firmware), "nvram": str(image.nvram)}
        boot = {"kernel": str(image.kernel), "cmdline": image.append(**self.settings())}
        return {**boot, "initrd": str(image.initrd)} if image.initrd else boot


def linux_guest(name: str, *, memory_mib: int, rate: int, bridge: bool) -> GuestPlan:
    """Return the linux guest as the demonstration and most tests use it."""
    nics = (NicPlan(),) if bridge else ()
    return GuestPlan("linux", name, memory_mib=memory_mib, rate=rate, nics=nics, echo=bridge)


def micro_guest(name: str = "web-7") -> GuestPlan:
    """Return the micro guest: up in well under a second, for tests that need no Linux."""
    return GuestPlan("micro", name, memory_mib=64, working_set_mib=16, rate=8)


def debian_guest(name: str = "web-7") -> GuestPlan:
    """Return the stock Debian: UEFI with its own variables, a qcow2 disk, systemd, and the workload as a service."""
    return GuestPlan("debian", name, memory_mib=512, working_set_mib=64, rate=20, nics=(NicPlan(),), echo=True)
