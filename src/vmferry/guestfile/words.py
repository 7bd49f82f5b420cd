"""What each word of the guest file may say, and why the others are refused.

Each function takes what stood in the file, returns the value, and raises ValueError with what is allowed.
"""

from __future__ import annotations

import re

from vmferry.core.errors import BadInput
from vmferry.core.functions import MOST_VLAN
from vmferry.core.guest import DIRECT_CACHES, TPM_VERSION, IoPath, echo_address
from vmferry.core.ids import NAME_PATTERN
from vmferry.core.pci import PciAddress
from vmferry.core.units import GIB, KIB, MIB

MEMORY_MIN = 2 * MIB
MEMORY_MAX = 16 * 1024 * GIB
_UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*$")
_MEMORY_ALLOWED = 'bytes as a number, or text with a unit such as "512 MiB"; from 2 MiB to 16 TiB, whole MiB'

_CPU = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(,([+-][a-z0-9._-]+|[a-z0-9._-]+=(on|off)))*$")
#: Models that are another CPU on each host.
CPU_REFUSED = {
    "host": "it is the CPU of the host where the guest starts, and no other host has exactly that one",
    "max": "it is everything that one host and one QEMU offer, which is another CPU elsewhere",
    "base": "it is a CPU without features, for QEMU's own queries",
}

_MACHINE = re.compile(r"^pc-q35-\d+\.\d+(\.\d+)?$")
_MACHINE_ALLOWED = "a versioned machine type such as pc-q35-7.2 or pc-q35-10.0"

#: Known words of the vocabulary whose paths are not built yet.
LATER_PATHS = ("vhost_user",)
#: How a guest reaches a function's standby.
STANDBY_PATHS = (IoPath.VIRTIO, IoPath.VHOST)
#: How a guest reaches a disk; the kernel's vhost serves network cards.
DISK_PATHS = (IoPath.EMULATED, IoPath.VIRTIO)

CACHES_REFUSED = {
    "writeback": "written pages may stay in this host's page cache, where the other host does not see them",
    "writethrough": "read pages stay in the host's page cache and go stale when the other host writes",
    "unsafe": "what the guest flushed may never reach the disk",
}

_MAC = re.compile(r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")
_BRIDGE = re.compile(r"^[A-Za-z0-9._-]{1,15}$")
_NAME = re.compile(NAME_PATTERN)
_MODEL = re.compile(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{4}")
UUID_PATTERN = r"^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"
_UUID = re.compile(UUID_PATTERN)


def guest_name(value: str) -> str:
    """Return a guest's name: a DNS label in lower case."""
    if _NAME.fullmatch(value) is None:
        raise ValueError("1 to 63 of a-z, 0-9 and -, not - at either end; the name becomes a file name and an id")
    return value


def guest_uuid(value: str) -> str:
    """Return a machine's UUID in lower case."""
    if _UUID.fullmatch(value) is None or not int(value.replace("-", ""), 16):
        raise ValueError("a UUID such as 6f1c1a1e-0000-4000-8000-000000000007; leave it out to get one")
    return value.lower()


def tpm_version(value: str) -> str:
    """Return what TPM a guest has."""
    if value != TPM_VERSION:
        raise ValueError(f'"{TPM_VERSION}": the state of a TPM is kept by the agent')
    return value


def memory(value: object) -> int:
    """Return RAM in bytes, from a number of bytes or a text with a binary unit."""
    size = value if isinstance(value, int) and not isinstance(value, bool) else _size(value)
    if size is None or not MEMORY_MIN <= size <= MEMORY_MAX or size % MIB:
        raise ValueError(_MEMORY_ALLOWED)
    return size


def _size(value: object) -> int | None:
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None or found.group(2) not in _UNITS:
        return None
    size = float(found.group(1)) * _UNITS[found.group(2)]
    return int(size) if size.is_integer() else None


def cpu(value: str) -> str:
    """Return a named CPU model with features switched on or off."""
    model = value.split(",", maxsplit=1)[0]
    if model in CPU_REFUSED:
        raise ValueError(f"a named model such as qemu64, Nehalem or EPYC; not {model}: {CPU_REFUSED[model]}")
    if _CPU.fullmatch(value) is None:
        raise ValueError("a named model, then features as +NAME, -NAME or NAME=on|off, e.g. EPYC,-svm")
    return value


def machine(value: str) -> str:
    """Return a versioned machine type."""
    if value in {"q35", "pc", "pc-q35"}:
        raise ValueError(f"{_MACHINE_ALLOWED}; not the alias {value}, which means another machine in each QEMU version")
    if _MACHINE.fullmatch(value) is None:
        raise ValueError(f"{_MACHINE_ALLOWED}: a guest's frozen hardware is a PCI Express one")
    return value


def absolute_path(value: str) -> str:
    """Return an absolute path without control characters."""
    if not value.startswith("/") or any(ord(char) < 32 for char in value) or value.endswith("/"):
        raise ValueError("an absolute path, the same on every host, e.g. /srv/vmferry/NAME")
    return value


def nic_path(value: object) -> IoPath:
    """Return how the guest reaches a network card."""
    return _path(value, tuple(IoPath))


def standby_path(value: object) -> IoPath:
    """Return how the guest reaches the standby of a virtual function."""
    return _path(value, STANDBY_PATHS)


def physical_network(value: str) -> str:
    """Return the name of a physical network, as the agents' files have it."""
    if _NAME.fullmatch(value) is None:
        raise ValueError("a name of [physical_networks] in agent.toml: 1 to 63 of a-z, 0-9 and -, not - at either end")
    return value


def vlan(value: int) -> int:
    """Return a VLAN."""
    if not 0 <= value <= MOST_VLAN:
        raise ValueError(f"a VLAN from 1 to {MOST_VLAN}, or 0 for none")
    return value


def host_device(value: str) -> str:
    """Return a device of the host: vendor:device, or an address in its whole form."""
    if _MODEL.fullmatch(value):
        return value.lower()
    try:
        return str(PciAddress.parse(value))
    except BadInput as error:
        raise ValueError("vendor:device as `lspci -n` writes it, e.g. 8086:10d3, or a PCI address") from error


def disk_path(value: object) -> IoPath:
    """Return how the guest reaches a disk."""
    return _path(value, DISK_PATHS)


def _path(value: object, allowed: tuple[IoPath, ...]) -> IoPath:
    words = ", ".join(allowed)
    if value == "passthrough":
        raise ValueError(f"{words}; a whole device of the host is a [[host_device]]")
    if value in LATER_PATHS:
        raise ValueError(f"{words}; {value} is not yet in this version")
    if value not in allowed:
        raise ValueError(f"{words} (not yet in this version: {', '.join(LATER_PATHS)})")
    return IoPath(str(value))


def cache(value: str) -> str:
    """Return a cache mode that both hosts see through."""
    if value in CACHES_REFUSED:
        raise ValueError(f"{', '.join(DIRECT_CACHES)}; not {value}: {CACHES_REFUSED[value]}")
    if value not in DIRECT_CACHES:
        raise ValueError(", ".join(DIRECT_CACHES))
    return value


def bridge(value: str) -> str:
    """Return the name of a Linux bridge."""
    if _BRIDGE.fullmatch(value) is None:
        raise ValueError("the name of a bridge on the host, 1 to 15 of letters, digits, '.', '_' and '-'")
    return value


def mac(value: str) -> str:
    """Return a unicast MAC address in lower case."""
    lower = value.lower()
    if _MAC.fullmatch(lower) is None or int(lower[:2], 16) & 1 or lower == "00:00:00:00:00:00":
        raise ValueError(
            "a unicast address, six pairs of hex digits such as 52:54:00:12:34:56; leave it out to get one"
        )
    return lower


def echo(value: str) -> str:
    """Return where the guest echoes UDP."""
    echo_address(value)
    return value
