"""`agent.toml`: where the agent keeps things, where it listens, and what it gives to guests; read strictly."""

from __future__ import annotations

import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vmferry.core.errors import BadInput, NotFound
from vmferry.core.guest import Acceleration
from vmferry.core.ids import NAME_PATTERN
from vmferry.core.pci import PciAddress
from vmferry.core.units import MIB, Bytes, BytesPerSecond
from vmferry.guestfile.positions import find_lines, line_of
from vmferry.guestfile.words import memory

DEFAULT_PATH = Path("/etc/vmferry/agent.toml")
DEFAULT_PORT = 7716
DEFAULT_STREAM_PORT = 7717
#: Where Debian's packages, libvirt's users and this program's examples keep images and firmware.
DEFAULT_IMAGE_DIRS = (
    *(Path("/srv"), Path("/mnt"), Path("/var/lib/vmferry/images"), Path("/var/lib/libvirt/images")),
    *(Path("/usr/share/OVMF"), Path("/usr/share/qemu")),
)
#: With a lease's name behind it, sanlock takes 1023.
_LONGEST_LEASE_DIR = 900


def _ip(text: str) -> str:
    """Return an IP address as it is written."""
    ip_address(text)
    return text


def _absolute(value: object) -> object:
    """Return an absolute path."""
    if isinstance(value, str | Path) and Path(value).is_absolute():
        return Path(value)
    raise ValueError("expected an absolute path")


def _range(value: object) -> object:
    """Return the range in a text like 49152-49215, both ends included."""
    if isinstance(value, tuple):
        return value
    if isinstance(value, str):
        first, dash, last = value.partition("-")
        if dash and first.strip().isdecimal() and last.strip().isdecimal() and int(first) <= int(last):
            return (int(first), int(last))
    raise ValueError("expected FIRST-LAST, e.g. 49152-49215")


def _acceleration(value: object) -> object:
    """Return the acceleration of a word."""
    try:
        return Acceleration(str(value))
    except ValueError as error:
        raise ValueError(f"expected one of {', '.join(Acceleration)}") from error


IpText = Annotated[str, AfterValidator(_ip)]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]
Range = Annotated[tuple[int, int], BeforeValidator(_range)]


class _Table(BaseModel):
    """Base of all tables: nothing unknown, nothing converted by guessing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Command = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, strict=False)]


class PipelineConfig(_Table):
    """`[migration.pipelines.NAME]`: commands through which a stream may go, without any shell."""

    send: Command  #: reads the stream on standard input, writes to the network on standard output
    receive: Command  #: the other way round
    #: Whether what it sends can be read, and changed, by nobody on the network.
    encrypts: bool = False


class MigrationConfig(_Table):
    """`[migration]`: how guests come and go."""

    #: IP address on which arriving streams are listened for; None: the agent's own.
    address: IpText | None = None
    #: Ports for arriving streams, one per guest that arrives at the same time.
    ports: Range = (49152, 49215)
    #: Port on which other agents connect for streams that they make themselves (`--link fd`); 0 takes a free one.
    stream_port: Annotated[int, Field(ge=0, le=65535)] = DEFAULT_STREAM_PORT
    #: Commands through which a stream may go (`--pipeline NAME`), under the same name on both hosts.
    pipelines: dict[Annotated[str, Field(pattern=NAME_PATTERN)], PipelineConfig] = {}
    #: Certificates for streams (`--encryption x509`), laid out as QEMU's tls-creds-x509 has it; None: there are none.
    tls_dir: AbsolutePath | None = None
    #: Limit of one stream, bytes per second; None: what the link gives.
    max_bandwidth: Annotated[BytesPerSecond | None, Field(gt=0)] = None


class QemuConfig(_Table):
    """`[qemu]`: which QEMU, and as whom it runs."""

    #: The start of the command line: the program, and `-L DIR` for firmware that is not the system's own.
    argv: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = ("qemu-system-x86_64",)
    #: Environment variables to add.
    env: dict[str, str] = {}
    #: User ids, one per guest, when the agent is root; must belong to nobody else.
    uids: Range = (700_000, 700_999)
    #: `auto` finds out what really works.
    acceleration: Annotated[Acceleration, BeforeValidator(_acceleration)] = Acceleration.AUTO


def _plain_path(value: object) -> object:
    """Return an absolute path that sanlock can name: it separates what it is told by blanks."""
    path = _absolute(value)
    if any(sign.isspace() for sign in str(path)) or len(str(path)) > _LONGEST_LEASE_DIR:
        raise ValueError(f"expected an absolute path without blanks, of at most {_LONGEST_LEASE_DIR} characters")
    return path


class SanlockConfig(_Table):
    """`[sanlock]`: leases of disk images, where file locks do not reach the other hosts. All hosts need it, or none."""

    #: Name of the lockspace, the same on all hosts.
    lockspace: Annotated[str, Field(pattern=NAME_PATTERN, max_length=48)]
    #: This host's number in it; each host has another one.
    host_id: Annotated[int, Field(ge=1, le=2000)]
    #: Directory on storage that all hosts mount: file `lockspace`, made once by hand, and one file per image.
    dir: Annotated[Path, BeforeValidator(_plain_path)]
    #: Images that a guest writes below these directories have leases; the same on all hosts.
    image_dirs: Annotated[tuple[AbsolutePath, ...], Field(min_length=1, strict=False)]
    #: Socket of sanlock's daemon.
    socket: AbsolutePath = Path("/run/sanlock/sanlock.sock")


def _card(value: object) -> str:
    """Return a PCI address in its whole form."""
    try:
        return str(PciAddress.parse(str(value)))
    except BadInput as error:
        raise ValueError("expected a PCI address, e.g. 0000:03:00.0") from error


CardAddresses = Annotated[
    tuple[Annotated[str, BeforeValidator(_card)], ...], Field(min_length=1, max_length=64, strict=False)
]


class AgentConfig(_Table):
    """The whole file; every key has a default."""

    #: This host's name in the fleet; None: the one that `vmferry host add` gives it.
    name: Annotated[str | None, Field(pattern=NAME_PATTERN)] = None
    #: IP address to listen on.
    listen: IpText = "0.0.0.0"
    port: Annotated[int, Field(ge=0, le=65535)] = DEFAULT_PORT
    #: Address under which other hosts reach this one; None: the one that `vmferry host add` was given.
    advertise: str | None = None
    state_dir: AbsolutePath = Path("/var/lib/vmferry")
    run_dir: AbsolutePath = Path("/run/vmferry")
    #: Where the fleet's CA directory is, if it is on this host; None: `ca` in the state directory.
    ca_dir: AbsolutePath | None = None
    #: Guests may be given files below these directories, links followed, and below no others: the agent opens files
    #: with its own rights for whoever may run a guest. ["/"] allows all but the agent's own.
    image_dirs: Annotated[tuple[AbsolutePath, ...], Field(strict=False)] = DEFAULT_IMAGE_DIRS
    #: Bridges that guests may be plugged into; None: every bridge of this host.
    bridges: Annotated[tuple[str, ...] | None, Field(strict=False)] = None
    #: Memory that guests never get, e.g. "512MiB".
    memory_reserve: Annotated[Bytes, BeforeValidator(memory)] = Bytes(512 * MIB)
    #: Cards (PF) whose virtual functions reach the same network, by a name that all hosts use: guests whose file has
    #: `path = "sriov_vf"` name it.
    physical_networks: dict[Annotated[str, Field(pattern=NAME_PATTERN)], CardAddresses] = {}
    migration: MigrationConfig = MigrationConfig()
    qemu: QemuConfig = QemuConfig()
    #: None: images have no leases.
    sanlock: SanlockConfig | None = None

    @model_validator(mode="after")
    def _check_ports(self) -> AgentConfig:
        """Hold that the agent's own port is not one of those for streams."""
        first, last = self.migration.ports
        if first < 1 or last > 65535:
            raise ValueError("migration.ports: ports are 1 to 65535")
        for port in (self.port, self.migration.stream_port):
            if first <= port <= last:
                raise ValueError(f"port {port} lies in migration.ports {first}-{last}")
        if self.port and self.port == self.migration.stream_port:
            raise ValueError(f"port {self.port} is migration.stream_port, too")
        return self

    @property
    def cards(self) -> dict[str, tuple[PciAddress, ...]]:
        """The cards of each physical network."""
        return {
            name: tuple(PciAddress.parse(address) for address in addresses)
            for name, addresses in self.physical_networks.items()
        }

    @property
    def own_dirs(self) -> tuple[Path, ...]:
        """Directories below which no guest is given a file: the agent's own, and the leases that fence guests."""
        leases = () if self.sanlock is None else (self.sanlock.dir,)
        return (self.state_dir, self.run_dir, self.authority_dir, *leases)

    @property
    def identity_dir(self) -> Path:
        """Where the agent's identity is."""
        return self.state_dir / "identity"

    @property
    def authority_dir(self) -> Path:
        """Where the CA directory is, if it is on this host."""
        return self.ca_dir or self.state_dir / "ca"


def load_config(path: Path | None) -> AgentConfig:
    """Return the configuration in a file.

    Args:
        path: the file; None: the default one, which may be missing.

    Raises:
        NotFound: there is no such file.
        BadInput: it is wrong; names file, line, key and what is allowed, all mistakes at once.
    """
    where = path or DEFAULT_PATH
    try:
        text = where.read_text("utf-8")
    except FileNotFoundError as error:
        if path is None:
            return AgentConfig()
        raise NotFound(
            f"There is no configuration file {where}", fix="name one that exists, or leave --config out"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"Configuration file {where} cannot be read: {error}", fix="name a UTF-8 text file that the agent may read"
        ) from error
    return parse_config(text, str(where))


def parse_config(text: str, file: str) -> AgentConfig:
    """Return the configuration in a text; raises as `load_config` does."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{file} is not TOML: {error}", fix="correct it and start again") from error
    try:
        return AgentConfig.model_validate(document)
    except ValidationError as error:
        lines = find_lines(text)
        rows = error.errors(include_url=False)
        raise BadInput(
            f"{file} is wrong: {'; '.join(_complain(row, lines) for row in rows)}", fix="correct it and start again"
        ) from None


def _complain(row: Any, lines: dict[tuple[str | int, ...], int]) -> str:
    """Return one mistake: line, key, what is wrong, what is allowed."""
    path = tuple(row["loc"])
    line = line_of(lines, path)
    where = f"line {line}: " if line is not None else ""
    key = ".".join(str(part) for part in path)
    if row["type"] == "extra_forbidden":
        return f"{where}unknown key {key} (known: {', '.join(_keys(path[:-1]))})"
    told = row["msg"].removeprefix("Value error, ")
    return f"{where}{key}: {told}" if key else told


def _keys(table: tuple[str | int, ...]) -> list[str]:
    """Return the keys that a table may have."""
    models: dict[tuple[str | int, ...], type[_Table]] = {
        ("migration",): MigrationConfig,
        ("qemu",): QemuConfig,
        ("sanlock",): SanlockConfig,
    }
    if table[:2] == ("migration", "pipelines"):
        return list(PipelineConfig.model_fields)
    return list(models.get(table, AgentConfig).model_fields)
