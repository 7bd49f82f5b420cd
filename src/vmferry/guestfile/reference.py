"""Writes docs/guest-file.md from the model: `python -m vmferry.guestfile.reference > docs/guest-file.md`."""

from __future__ import annotations

import enum
import json
import sys

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vmferry.guestfile.model import BootTable, DiskTable, GuestTable, HostDeviceTable, NicTable
from vmferry.guestfile.words import CACHES_REFUSED, CPU_REFUSED, LATER_PATHS

_INTRODUCTION = """\
# The guest file

<!-- Written by `python -m vmferry.guestfile.reference`; a test keeps it current. -->

A guest is described by one TOML file, and started with `vmferry guest run FILE.toml --on HOST`. The file is read
strictly: an unknown key, a value of another type, a value out of range or keys that contradict each other are refused.
All mistakes are told at once, each with file, line, key, what was seen and what is allowed, and nothing is touched.

What the file leaves open (PCI addresses, MAC addresses, the expanded CPU) is decided at the guest's first start and
frozen: a destination builds the very same hardware. Examples are in `examples/`.

```toml
name = "web-7"
memory = "512 MiB"

[boot]
kernel = "/srv/vmferry/vmlinuz"
initrd = "/srv/vmferry/initrd.img"
cmdline = "console=ttyS0"

[[disk]]
image = "/srv/vmferry/web-7.qcow2"   # the same path on every host
io_path = "virtio"

[[nic]]
path = "virtio"
network = "bridge"
bridge = "br0"
```
"""

_TABLES: tuple[tuple[str, type[BaseModel]], ...] = (
    ("At the top", GuestTable),
    ("`[boot]`", BootTable),
    ("`[[disk]]`", DiskTable),
    ("`[[nic]]`", NicTable),
    ("`[[host_device]]`", HostDeviceTable),
)


def json_schema() -> dict[str, object]:
    """Return the JSON Schema of the guest file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **GuestTable.model_json_schema()}


def render() -> str:
    """Return the page about the guest file; the same text each time."""
    parts = [_INTRODUCTION]
    parts += [_table(title, model) for title, model in _TABLES]
    parts += [_refused(), _schema_section()]
    return "\n".join(parts)


def _table(title: str, model: type[BaseModel]) -> str:
    rows = [f"## {title}", "", "| Key | Default | Meaning |", "|---|---|---|"]
    for key, field in model.model_fields.items():
        rows.append(f"| `{key}` | {_default(field)} | {field.description} |")
    return "\n".join([*rows, ""])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, enum.Enum):
        value = value.value
    return f"`{json.dumps(value)}`"


def _refused() -> str:
    rows = ["## What is refused, and why", ""]
    rows += [f'- `cpu = "{model}"`: {why}.' for model, why in CPU_REFUSED.items()]
    rows += ['- `machine = "q35"` or another alias: it means another machine in each QEMU version.']
    rows += [f'- `cache = "{mode}"`: {why}.' for mode, why in CACHES_REFUSED.items()]
    later = ", ".join(f"`{path}`" for path in LATER_PATHS)
    rows += [f"- The I/O paths {later}: known words, not yet in this version."]
    rows += ["- A relative path: the agents of two hosts have no common directory to start from.", ""]
    return "\n".join(rows)


def _schema_section() -> str:
    schema = json.dumps(json_schema(), indent=2, sort_keys=True)
    return f"## JSON Schema for editors\n\n```json\n{schema}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(render())
