"""What a host offers, as its agent says it; the input of the checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmferry.core.disk_leases import DiskLeaseFacts
from vmferry.core.errors import Blocker
from vmferry.core.guest import Acceleration
from vmferry.core.ids import HostName
from vmferry.core.migratable import MigratableDevice
from vmferry.core.units import Bytes


@dataclass(frozen=True, slots=True)
class QemuFacts:
    """What QEMU on a host can do, asked over QMP of a probe process; versions only as text for people."""

    version: tuple[int, int, int]
    machines: frozenset[str]  #: versioned machine types
    cpu_models: frozenset[str]  #: names usable here with the acceleration in use
    capabilities: frozenset[str]  #: migration capabilities
    parameters: frozenset[str]  #: migration parameters
    devices: frozenset[str]  #: device drivers that exist
    compressions: frozenset[str] = frozenset()  #: of multifd channels, as this QEMU was built; an older agent says none
    #: objects that encrypt by certificates, as this QEMU was built; an older agent says none
    objects: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StreamCertificates:
    """A host's certificates for QEMU's streams, as they lie in its directory now; nothing secret is in it."""

    server: str  #: PEM, shown where guests arrive; empty: unusable
    client: str  #: PEM, shown where guests leave; empty: unusable
    server_name: str  #: that `server` is for: a DNS name or an IP address
    client_name: str  #: the subject of `client`, as QEMU writes it
    problems: tuple[Blocker, ...] = ()  #: whatever makes them unusable, all at once


@dataclass(frozen=True, slots=True)
class HostFacts:
    """A host as its agent sees it now."""

    name: HostName
    agent_version: str
    protocol: int  #: agent-to-agent protocol; N and N-1 work together
    qemu: QemuFacts
    acceleration: Acceleration  #: KVM or TCG, as it was found out
    acceleration_reason: str  #: one sentence: why
    acceleration_tag: str  #: TCG, nested KVM or bare-metal KVM
    memory_total_bytes: Bytes
    memory_free_bytes: Bytes  #: available minus what is reserved for arriving guests
    bridges: frozenset[str]
    migration_ports_free: int
    #: why no post-copy can arrive, with the fix; None: one can. An older agent does not say
    why_no_postcopy: str | None = "its agent does not say whether QEMU may use userfaultfd: update it"
    #: why no stream can leave or arrive by RDMA, with the fix; None: it can. An older agent does not say
    why_no_rdma: str | None = "its agent does not say whether it has an RDMA device: update it"
    #: why no card can have the kernel's back-end, with the fix; None: it can. An older agent does not say
    why_no_vhost: str | None = "its agent does not know cards that the kernel serves: update it"
    #: commands through which a stream may go, by name, and whether they encrypt
    pipelines: Mapping[str, bool] = field(default_factory=dict)
    makes_images: bool = True  #: qemu-img is there; an older agent does not say, and refuses the arrival if it is not
    #: for streams that are encrypted by certificates; None: it has none, or its agent is older
    certificates: StreamCertificates | None = None
    #: version of what emulates a TPM 2.0; None: there is none, or its agent is older and cannot take such a guest
    tpm_emulator: tuple[int, int, int] | None = None
    #: how it takes leases of its guests' images; None: it takes none, or its agent is older
    disk_leases: DiskLeaseFacts | None = None


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One file of the guest as a host sees it; `identity` is equal on two hosts only for the same file."""

    path: str
    exists: bool
    readable: bool
    writable: bool
    size_bytes: Bytes
    identity: str  #: file system type, inode, size; or why it is not known
    sha256: str | None = None  #: only of files that nobody writes, where it can be had (agent/files.py)
    read_bytes: int = 0  #: of it for that; less than all, and no sum yet: the reading goes on when asked again
    error: str | None = None
    #: of a file that is not there: what is free where it would be made; None: it cannot be made, or nobody said so
    room_bytes: Bytes | None = None


@dataclass(frozen=True, slots=True)
class GuestProbe:
    """What a destination says about one guest that may come; nothing was reserved by asking."""

    files: tuple[FileFacts, ...]
    names_taken: frozenset[str]
    macs_taken: frozenset[str]
    uuids_taken: frozenset[str]
    cpu_missing_features: tuple[str, ...]  #: of the guest's expanded CPU, not offered by this host
    cpu_error: str | None = None  #: QEMU's own words, when it refuses the CPU outright
    without_devices: tuple[Blocker, ...] = ()  #: why it could not have there what it is to have of its host
    offers: tuple[MigratableDevice, ...] = ()  #: of what it would have there: that could have another one's state


@dataclass(frozen=True, slots=True)
class GuestRuntime:
    """What the running guest says at the source."""

    run_state: str  #: QEMU's run state
    busy_with: str | None  #: the hand-over or operation that holds the guest
    blocked_reasons: tuple[str, ...]  #: QEMU's own, from query-migrate
    source_files: tuple[FileFacts, ...]
    #: (path, why) of images that no mirror carries over; asked only where images may be copied
    not_mirrored: tuple[tuple[str, str], ...] = ()
    has_lost_tpm: bool = False  #: what emulates its TPM has ended
    attached: tuple[str, ...] = ()  #: addresses of its host's devices that it has
    unleased: tuple[str, ...] = ()  #: images that should have a lease here, and whose lease its process does not have
    functions: tuple[str, ...] = ()  #: addresses of what it is to have of its host and has
    migratable: tuple[MigratableDevice, ...] = ()  #: of these: whose state QEMU can move
