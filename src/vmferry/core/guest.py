"""What a guest is: frozen facts, and the hardware that is frozen with it.

`GuestSpec` is what the guest file says. `FrozenGuest` adds everything that both hosts must build
alike (PCI addresses, device ids, MACs, ROM policy, expanded CPU): the command line is a pure function of it and of the
host. I/O paths are named as in the vocabulary; paths that come later get a class of their own beside these.
"""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass, field
from typing import Final

from vmferry.core.ids import GuestName, GuestUuid
from vmferry.core.units import Bytes

#: Name of the virtio-serial port through which the built-in linux guest is told what to do.
CONTROL_PORT: Final = "org.vmferry.control"
#: Name of the virtio-serial port through which the guest's own throttle helper is reached (docs/write-throttle.md).
THROTTLE_PORT: Final = "org.vmferry.throttle.0"
#: What a guest's TPM is, and QEMU's device for it: an ISA device, on q35 and i440fx alike.
TPM_VERSION: Final = "2.0"
TPM_DRIVER: Final = "tpm-tis"


class Acceleration(enum.StrEnum):
    """What runs the guest's instructions."""

    AUTO = "auto"  #: KVM when it really works here, TCG otherwise; said out loud
    KVM = "kvm"
    TCG = "tcg"


class IoPath(enum.StrEnum):
    """How a guest reaches a device (docs: "How a guest reaches its devices")."""

    EMULATED = "emulated"  #: QEMU emulates real hardware (e1000)
    VIRTIO = "virtio"  #: front-end in the guest, back-end in QEMU
    VHOST = "vhost"  #: network cards: the same front-end, back-end in the host's kernel (vhost-net)
    SRIOV_VF = "sriov_vf"  #: network cards: a virtual function of one of the host's cards


class NetworkKind(enum.StrEnum):
    """What a NIC is plugged into on the host."""

    USER = "user"  #: QEMU's own user-mode stack; needs nothing, connections die with the move
    BRIDGE = "bridge"  #: a tap on a named Linux bridge
    NONE = "none"  #: nothing: the card is a virtual function alone


class DiskFormat(enum.StrEnum):
    """Image formats."""

    RAW = "raw"
    QCOW2 = "qcow2"


class Desired(enum.StrEnum):
    """What the operator wants of a guest, kept in the journal."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class KernelBoot:
    """Direct boot of a kernel (Linux or multiboot) with an optional initrd."""

    kernel: str
    initrd: str | None = None
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class UefiBoot:
    """UEFI from flash; `nvram` is the guest's own writable copy of the variables."""

    code: str
    nvram: str


@dataclass(frozen=True, slots=True)
class BiosBoot:
    """SeaBIOS, from the first disk."""


Boot = KernelBoot | UefiBoot | BiosBoot


#: Cache modes that bypass the page cache, so that another host's writes are seen; with `directsync` the guest also
#: waits with each write until it is on the disk.
DIRECT_CACHES = ("none", "directsync")


#: A longer chain is slow to read, and a sign that nobody commits its snapshots.
MOST_BACKING = 16


@dataclass(frozen=True, slots=True)
class Backing:
    """An image below another one, which has only what differs from it; it is read and never written."""

    path: str
    format: DiskFormat = DiskFormat.QCOW2


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk image, at the same path on both hosts of a move: one file that both see, or a copy each.

    Emulated and read-only, it is the medium of a CD-ROM drive.
    """

    path: str
    format: DiskFormat = DiskFormat.QCOW2
    io_path: IoPath = IoPath.VIRTIO
    read_only: bool = False
    cache: str = "none"
    backing: tuple[Backing, ...] = ()  #: what it stands on, the nearest first

    @property
    def is_cdrom(self) -> bool:
        """Return whether it is a CD-ROM drive: no other emulated disk is read-only."""
        return self.io_path is IoPath.EMULATED and self.read_only


@dataclass(frozen=True, slots=True)
class Nic:
    """One network card: its I/O path in the guest, and what it is plugged into.

    A virtual function with a bridge has a standby there, a virtio card of the same MAC that the guest joins with it
    (net_failover): what carries its traffic while it has no function.
    """

    io_path: IoPath = IoPath.VIRTIO
    network: NetworkKind = NetworkKind.USER
    bridge: str | None = None
    mac: str | None = None
    #: UDP ports forwarded from the host's loopback with network = user: (host port, guest port)
    forward_udp: tuple[tuple[int, int], ...] = ()
    physical_network: str | None = None  #: of a virtual function: the cards of which it is one, by the agents' name
    standby: IoPath = IoPath.VIRTIO  #: of a virtual function with a bridge: how the guest reaches its standby
    vlan: int = 0  #: of a virtual function: the card's tag, which the guest does not see; 0: none
    may_detach: bool = False  #: a function without standby may be taken from the guest while it moves

    @property
    def is_function(self) -> bool:
        """Return whether it is a virtual function of a card of the host."""
        return self.io_path is IoPath.SRIOV_VF

    @property
    def has_standby(self) -> bool:
        """Return whether a virtio card stands in for its virtual function."""
        return self.is_function and self.network is NetworkKind.BRIDGE

    @property
    def front_end(self) -> IoPath | None:
        """Return the path of what is built into the guest for it; None: nothing, its function is plugged in."""
        if not self.is_function:
            return self.io_path
        return self.standby if self.has_standby else None


@dataclass(frozen=True, slots=True)
class HostDevice:
    """A device of the host that the guest has for itself (I/O path passthrough): a controller, a card, sound."""

    device: str  #: vendor:device, of which any free one will do, or a PCI address, the same on every host
    may_detach: bool = False  #: it may be taken from the guest while it moves, and another one given


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """What the guest file says, validated; nothing host-specific."""

    name: GuestName
    memory_bytes: Bytes
    boot: Boot
    vcpus: int = 1
    cpu: str = "qemu64"
    machine: str = "pc-q35-7.2"
    acceleration: Acceleration = Acceleration.AUTO
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    host_devices: tuple[HostDevice, ...] = ()
    beat: bool = False  #: the guest beats, one byte at a time, on I/O port 0xe9 (isa-debugcon)
    control: bool = False  #: the built-in linux guest's control channel (`CONTROL_PORT`)
    tpm: str | None = None  #: `TPM_VERSION`: it has one, emulated
    echo: str | None = None  #: "ADDRESS:PORT" of a UDP echo in the guest, for network_outage (`echo_address`)
    throttle: bool = False  #: the port of the write throttle (`THROTTLE_PORT`)
    uuid: GuestUuid | None = None  #: what the guest reads as its machine's UUID; None: one is made at the first start


def echo_address(text: str) -> tuple[str, int]:
    """Return address and port of a guest's UDP echo, from "10.0.0.7:7007".

    Raises:
        ValueError: it is no unicast IPv4 address that a guest can have, or no port; the text says what is allowed.
    """
    address, _, port = text.rpartition(":")
    is_port = port.isascii() and port.isdigit() and 1 <= int(port) <= 65535
    if not is_port or not _is_guest_address(address):
        raise ValueError('"ADDRESS:PORT", the guest\'s own IPv4 address and a UDP port, e.g. "10.0.0.7:7007"')
    return address, int(port)


def _is_guest_address(text: str) -> bool:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_multicast or address.is_unspecified or address.is_reserved)


@dataclass(frozen=True, slots=True)
class FrozenDevice:
    """One device as it was built: both hosts build the same."""

    id: str  #: QEMU device id
    driver: str  #: QEMU driver name, e.g. virtio-net-pci
    bus: str  #: pcie.0 or the id of a root port
    addr: str  #: slot[.function] in hex, e.g. "0x2" or "0x2.0x1"
    properties: tuple[tuple[str, str | int | bool], ...] = ()
    backend: str | None = None  #: id of the netdev, drive or chardev it hangs on


@dataclass(frozen=True, slots=True)
class FrozenGuest:
    """A guest with its hardware frozen; what travels to the destination and stands in the journal."""

    spec: GuestSpec
    uuid: GuestUuid
    acceleration: Acceleration  #: decided at first start: never AUTO
    cpu: str  #: expanded: model plus every feature, as `-cpu` takes it
    machine: str
    devices: tuple[FrozenDevice, ...]
    macs: tuple[str, ...]  #: one per NIC, in the order of spec.nics
    boot_hashes: tuple[tuple[str, str], ...] = field(default=())  #: (path, sha256) of kernel, initrd, firmware code

    @property
    def has_tpm(self) -> bool:
        """Tell whether a TPM was built into it; what an older agent's guest file says of one was never built."""
        return any(device.driver == TPM_DRIVER for device in self.devices)
