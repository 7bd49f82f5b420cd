"""The shape of the guest file, key by key; what keys say together is in `combinations`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from vmferry.core.guest import (
    DIRECT_CACHES,
    MOST_BACKING,
    TPM_VERSION,
    Acceleration,
    DiskFormat,
    IoPath,
    NetworkKind,
)
from vmferry.core.ids import NAME_PATTERN
from vmferry.guestfile import words

#: Strict: the text "2" is no number and 1 is no truth value; nothing is guessed.
_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


def _word(kind: type[Acceleration | DiskFormat | NetworkKind]) -> BeforeValidator:
    """Return a validator for a key with a few words; TOML has no enums, so the text is turned into one."""

    def convert(value: object) -> object:
        allowed = [member.value for member in kind]
        if value not in allowed:
            raise ValueError(", ".join(allowed))
        return kind(value)

    return BeforeValidator(convert)


def _schema(**more: Any) -> WithJsonSchema:
    """Return what an editor's schema says about a text key."""
    return WithJsonSchema({"type": "string", **more})


GuestName = Annotated[str, AfterValidator(words.guest_name), _schema(pattern=NAME_PATTERN)]
GuestUuid = Annotated[str, AfterValidator(words.guest_uuid), _schema(pattern=words.UUID_PATTERN)]
FilePath = Annotated[str, AfterValidator(words.absolute_path), _schema(pattern="^/.*[^/]$")]
Memory = Annotated[
    int,
    BeforeValidator(words.memory),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\d+(\.\d+)? ?[KMGT]iB$"}]}),
]
Cpu = Annotated[str, AfterValidator(words.cpu), _schema(**{"not": {"enum": sorted(words.CPU_REFUSED)}})]
Machine = Annotated[str, AfterValidator(words.machine), _schema(pattern=r"^pc-q35-\d+\.\d+(\.\d+)?$")]
Cache = Annotated[str, AfterValidator(words.cache), _schema(enum=list(DIRECT_CACHES))]
Bridge = Annotated[str, AfterValidator(words.bridge), _schema(pattern="^[A-Za-z0-9._-]{1,15}$")]
Mac = Annotated[str, AfterValidator(words.mac), _schema(pattern="^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$")]
Echo = Annotated[str, AfterValidator(words.echo), _schema(pattern=r"^\d+(\.\d+){3}:\d+$")]
NicPath = Annotated[IoPath, BeforeValidator(words.nic_path), _schema(enum=[path.value for path in IoPath])]
StandbyPath = Annotated[
    IoPath, BeforeValidator(words.standby_path), _schema(enum=[path.value for path in words.STANDBY_PATHS])
]
PhysicalNetwork = Annotated[str, AfterValidator(words.physical_network), _schema(pattern=NAME_PATTERN)]
HostDeviceWord = Annotated[str, AfterValidator(words.host_device), _schema()]
Vlan = Annotated[int, AfterValidator(words.vlan)]
DiskPath = Annotated[IoPath, BeforeValidator(words.disk_path), _schema(enum=[path.value for path in words.DISK_PATHS])]
AccelerationWord = Annotated[Acceleration, _word(Acceleration)]
FormatWord = Annotated[DiskFormat, _word(DiskFormat)]
NetworkWord = Annotated[NetworkKind, _word(NetworkKind)]
TpmVersion = Annotated[str, AfterValidator(words.tpm_version), _schema(enum=[TPM_VERSION])]
Port = Annotated[int, Field(ge=1, le=65535)]


class BootTable(BaseModel):
    """What the guest boots from: a kernel of the host, UEFI, or BIOS and the first disk."""

    model_config = _STRICT

    firmware: Literal["uefi", "bios"] | None = Field(
        None, description='`"uefi"` (with `code` and `nvram`) or `"bios"` (from the first disk); not with `kernel`'
    )
    kernel: FilePath | None = Field(None, description="Linux or multiboot kernel, started directly")
    initrd: FilePath | None = Field(None, description="initial RAM disk of `kernel`")
    cmdline: str | None = Field(None, description="command line of `kernel`")
    code: FilePath | None = Field(None, description="UEFI firmware code, read only, the same content on every host")
    nvram: FilePath | None = Field(
        None,
        description="the guest's own UEFI variables, writable; on storage that both hosts see, or copied with"
        " `--copy-disks`",
    )


class BackingTable(BaseModel):
    """One image below another, in a disk's `backing`."""

    model_config = _STRICT

    image: FilePath = Field(description="the image file")
    format: FormatWord = Field(DiskFormat.QCOW2, description="`raw` or `qcow2`")


class DiskTable(BaseModel):
    """One `[[disk]]`: an image."""

    model_config = _STRICT

    image: FilePath = Field(description="the image file")
    format: FormatWord = Field(DiskFormat.QCOW2, description="`raw` or `qcow2`; it is never guessed")
    io_path: DiskPath = Field(IoPath.VIRTIO, description="how the guest reaches it: `virtio` or `emulated`")
    read_only: bool = Field(
        default=False,
        description="whether the guest may only read it; with `emulated`, it is the medium of a CD-ROM drive",
    )
    backing: Annotated[list[BackingTable], Field(max_length=MOST_BACKING)] = Field(
        [],
        description="the images it stands on, the nearest first, each `{ image = , format = }`: what its header and"
        " theirs name; never written, and on every host with the same content",
    )
    cache: Cache = Field("none", description="`none` or `directsync`: modes that keep nothing in one host's page cache")


class NicTable(BaseModel):
    """One `[[nic]]`: a network card and what it is plugged into."""

    model_config = _STRICT

    path: NicPath = Field(
        IoPath.VIRTIO,
        description="how the guest reaches it: `virtio`, `vhost` (virtio served by the host's kernel, with"
        ' `network = "bridge"`), `emulated` (e1000) or `sriov_vf` (a virtual function of a card of the host, with'
        " `physical_network`; docs/devices.md)",
    )
    network: NetworkWord = Field(
        NetworkKind.USER,
        description="`bridge` (a tap on `bridge`; of a virtual function: its standby), `user` (QEMU's own stack:"
        " connections end when the guest moves) or `none` (a virtual function without a standby)",
    )
    bridge: Bridge | None = Field(
        None, description='the host\'s bridge, with `network = "bridge"`; needed on both hosts'
    )
    mac: Mac | None = Field(None, description="unicast MAC address; one is made when it is left out")
    physical_network: PhysicalNetwork | None = Field(
        None,
        description='with `path = "sriov_vf"`: the cards it may be a function of, as `[physical_networks]` of every'
        " host's agent.toml names them",
    )
    standby: StandbyPath = Field(
        IoPath.VIRTIO,
        description='with `path = "sriov_vf"` and `network = "bridge"`: how the guest reaches the card of the same MAC'
        " that carries its traffic while it has no function: `virtio` or `vhost`",
    )
    vlan: Vlan = Field(0, description='with `path = "sriov_vf"`: the VLAN that the card puts it in; 0: none')
    may_detach: bool = Field(
        default=False,
        description='with `path = "sriov_vf"` and `network = "none"`: whether the function may be taken from the'
        " guest while it moves, which has no network meanwhile; it does not move otherwise",
    )
    forward_udp: list[Annotated[list[Port], Field(min_length=2, max_length=2)]] = Field(
        [], description='`[host port, guest port]` pairs from the host\'s loopback, with `network = "user"`'
    )


class HostDeviceTable(BaseModel):
    """One `[[host_device]]`: a device of the host that the guest has for itself (passthrough)."""

    model_config = _STRICT

    device: HostDeviceWord = Field(
        description="`vendor:device`, as `lspci -n` writes it, of which any free one will do, or a PCI address, the"
        " same on every host: a disk or USB controller, a card, sound (docs/devices.md)"
    )
    may_detach: bool = Field(
        default=False,
        description="whether it may be taken from the guest while it moves, and another one given: what is in the"
        " device stays behind; the guest does not move otherwise",
    )


class GuestTable(BaseModel):
    """The whole guest file."""

    model_config = _STRICT

    name: GuestName = Field(description="the guest's name, unique among the hosts: a DNS label in lower case")
    uuid: GuestUuid | None = Field(
        None,
        description="the machine's UUID, which the guest reads from its firmware (SMBIOS); for a guest that had one"
        " elsewhere. One is made when it is left out",
    )
    memory: Memory = Field(description='RAM: `"512 MiB"`, or a number of bytes; whole MiB from 2 MiB to 16 TiB')
    vcpus: Annotated[int, Field(ge=1, le=255)] = Field(1, description="number of virtual CPUs")
    cpu: Cpu = Field("qemu64", description="a named model with features switched on or off; never `host` or `max`")
    machine: Machine = Field(
        "pc-q35-7.2", description="a versioned machine type that every host's QEMU has; never an alias such as `q35`"
    )
    acceleration: AccelerationWord = Field(
        Acceleration.AUTO, description="`auto` (KVM when it really works there), `kvm` or `tcg`"
    )
    beat: bool = Field(
        default=False,
        description="whether the guest beats, a byte at a time on I/O port 0xe9, so that its pause can be measured"
        " from outside",
    )
    control: bool = Field(
        default=False, description="whether it has the built-in guest's channel `org.vmferry.control`"
    )
    echo: Echo | None = Field(
        None,
        description='`"ADDRESS:PORT"` of a UDP echo in the guest (the built-in linux guest has one on port 7007): while'
        " it moves, its host sends it numbered datagrams and measures the network's outage",
    )
    throttle: bool = Field(
        default=False,
        description="whether it has the virtio-serial port `org.vmferry.throttle.0`, through which `vmferry migrate"
        " --throttle 40-writes` slows the writes of programs that run under `vmferry-throttle` in the guest"
        " (docs/write-throttle.md); nothing changes as long as nobody asks for it",
    )
    tpm: TpmVersion | None = Field(
        None,
        description='`"2.0"`: it has a TPM, emulated by swtpm, which every host needs then; its state is kept by the'
        " agent and travels with the guest (docs/tpm.md); not with `initrd`",
    )
    boot: BootTable = Field(description="what it boots from")
    disk: list[DiskTable] = Field([], description="its disks, in this order")
    nic: list[NicTable] = Field([], description="its network cards, in this order")
    host_device: list[HostDeviceTable] = Field([], description="devices of its host, in this order")
