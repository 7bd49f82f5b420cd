"""Guest file -> `GuestSpec`, or every mistake in it at once."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path as FilePath
from typing import Any

from pydantic import BaseModel, ValidationError

from vmferry.core.errors import BadInput
from vmferry.core.guest import Backing, BiosBoot, Boot, Disk, GuestSpec, HostDevice, KernelBoot, Nic, UefiBoot
from vmferry.core.ids import GuestName, GuestUuid
from vmferry.core.units import Bytes
from vmferry.guestfile.combinations import find_combinations
from vmferry.guestfile.model import BackingTable, BootTable, DiskTable, GuestTable, HostDeviceTable, NicTable
from vmferry.guestfile.positions import MOST_PARTS, Path, TooDeep, find_lines, line_of
from vmferry.guestfile.problems import Problem, invalid

#: A guest file is a page of text; more is a mistake, and would be read into memory whole.
MAX_BYTES = 1024 * 1024

_TOML_PLACE = re.compile(r"^(.*) \(at (?:line (\d+), column \d+|end of document)\)$")
_TABLES: dict[str, type[BaseModel]] = {
    "boot": BootTable,
    "disk": DiskTable,
    "nic": NicTable,
    "backing": BackingTable,
    "host_device": HostDeviceTable,
}
_RANGES = {"greater_than_equal", "less_than_equal"}
_TYPES = {
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "a text in quotes",
    "list_type": "a list",
    "model_type": "a table",
}


def load_guest_file(path: str) -> GuestSpec:
    """Return the guest that a file describes. Touches nothing else.

    Raises:
        BadInput: the file cannot be read.
        GuestFileInvalid: it has mistakes; all of them are named with line, key, seen and allowed.
    """
    try:
        with FilePath(path).open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadInput(
            f"guest file {path} cannot be read: {error.strerror}", fix="name an existing TOML file that you may read"
        ) from error
    if len(raw) > MAX_BYTES:
        raise BadInput(f"guest file {path} is larger than 1 MiB", fix="name a guest file, not a disk image")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = Problem(line, "(text)", f"byte 0x{raw[error.start]:02x}", "text in UTF-8")
        raise invalid(path, [problem]) from error
    return parse_guest_file(text, path)


def parse_guest_file(text: str, file: str = "(text)") -> GuestSpec:
    """Return the guest that a text describes.

    Args:
        text: the TOML document.
        file: its name, for messages.

    Raises:
        GuestFileInvalid: it has mistakes; all of them are named with line, key, seen and allowed.
    """
    try:
        lines = find_lines(text)
        document = tomllib.loads(text)
    except TooDeep as error:
        seen = f"a key of more than {MOST_PARTS} parts, or brackets as deep"
        raise invalid(file, [Problem(error.args[0], "(syntax)", seen, "a guest file")]) from error
    except tomllib.TOMLDecodeError as error:
        raise invalid(file, [_syntax(str(error), text)]) from error
    problems = [
        Problem(line_of(lines, path), _dotted(path), seen, allowed)
        for path, seen, allowed in find_combinations(document)
    ]
    table: GuestTable | None = None
    try:
        table = GuestTable.model_validate(document)
    except ValidationError as error:
        problems += [_field_problem(dict(row), lines) for row in error.errors(include_url=False)]
    if table is None or problems:
        raise invalid(file, problems)
    return _spec(table)


def _syntax(message: str, text: str) -> Problem:
    found = _TOML_PLACE.match(message)
    if found is None:
        return Problem(None, "(syntax)", message, "TOML, e.g. key = value")
    line = int(found.group(2)) if found.group(2) else text.count("\n") + 1
    return Problem(line, "(syntax)", found.group(1), "TOML, e.g. key = value")


def _field_problem(row: dict[str, Any], lines: dict[Path, int]) -> Problem:
    """Turn one finding of pydantic into ours."""
    path: Path = tuple(row["loc"])
    line, key, kind = line_of(lines, path), _dotted(path), row["type"]
    if kind == "extra_forbidden":
        return Problem(line, key, "unknown key", _known_keys(path))
    if kind == "missing":
        return Problem(line, key, "missing", _description(path))
    seen = _shorten(row["input"])
    if kind in _TYPES:
        seen += f" ({_type_name(row['input'])})"
    return Problem(line, key, seen, _allowed(kind, key, row))


def _allowed(kind: str, key: str, row: dict[str, Any]) -> str:
    """Say what may stand where a value was refused."""
    context = row.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return str(context["expected"]).replace("'", '"')
    if kind in _RANGES:
        return "1 to 255" if key == "vcpus" else "a port from 1 to 65535"
    if kind in {"too_short", "too_long"}:
        return "[host port, guest port]"
    return _TYPES.get(kind, str(row["msg"]))


def _known_keys(path: Path) -> str:
    """Say which keys the table has, the most similar one first."""
    known = list(_table_of(path).model_fields)
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    return (f"{close[0]}? Known here: " if close else "") + ", ".join(known)


def _table_of(path: Path) -> type[BaseModel]:
    """Return the table in which a key stands; `backing` is one within a disk."""
    tables = [_TABLES[part] for part in path[:-1] if isinstance(part, str) and part in _TABLES]
    return tables[-1] if tables else GuestTable


def _description(path: Path) -> str:
    field = _table_of(path).model_fields.get(str(path[-1]))
    return (field.description or "a value") if field is not None else "a value"


def _dotted(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _type_name(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "a table"}
    return names.get(type(value), type(value).__name__)


def _spec(table: GuestTable) -> GuestSpec:
    return GuestSpec(
        name=GuestName(table.name),
        memory_bytes=Bytes(table.memory),
        boot=_boot(table.boot),
        vcpus=table.vcpus,
        cpu=table.cpu,
        machine=table.machine,
        acceleration=table.acceleration,
        disks=tuple(_disk(disk) for disk in table.disk),
        nics=tuple(_nic(nic) for nic in table.nic),
        host_devices=tuple(HostDevice(one.device, one.may_detach) for one in table.host_device),
        beat=table.beat,
        control=table.control,
        tpm=table.tpm,
        echo=table.echo,
        throttle=table.throttle,
        uuid=None if table.uuid is None else GuestUuid(table.uuid),
    )


def _boot(boot: BootTable) -> Boot:
    if boot.kernel is not None:
        return KernelBoot(boot.kernel, boot.initrd, boot.cmdline or "")
    if boot.code is not None and boot.nvram is not None:
        return UefiBoot(boot.code, boot.nvram)
    return BiosBoot()


def _disk(disk: DiskTable) -> Disk:
    backing = tuple(Backing(below.image, below.format) for below in disk.backing)
    return Disk(disk.image, disk.format, disk.io_path, disk.read_only, disk.cache, backing)


def _nic(nic: NicTable) -> Nic:
    forwards = tuple((host, guest) for host, guest in nic.forward_udp)
    function = (nic.physical_network, nic.standby, nic.vlan, nic.may_detach)
    return Nic(nic.path, nic.network, nic.bridge, nic.mac, forwards, *function)
