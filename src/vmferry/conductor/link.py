"""How fast the link to another host is, as far as this host's kernel knows.

It becomes QEMU's `max-bandwidth`, whose default of 128 MiB/s silently caps every link over 1 Gbit/s. The device's own
speed is an upper bound that never slows a migration down: what really gets through is measured in the rounds.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vmferry.core.errors import Broken
from vmferry.core.units import BytesPerSecond

SYS_CLASS_NET = Path("/sys/class/net")
#: The answer comes from the kernel in 2 ms; only a broken `ip` takes longer.
ROUTE_LIMIT_S = 1.0
_MEGABIT = 1_000_000 // 8


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """What the device towards a destination gives; `why` is one clause for the log, in either case."""

    bytes_per_second: BytesPerSecond | None  #: None: no limit is known, the migration is not limited
    device: str | None
    why: str


def link_bandwidth(destination_ip: str, sys_class_net: Path = SYS_CLASS_NET) -> LinkSpeed:
    """Return the speed of the device that the route to an address takes; never raises, takes a few ms.

    Args:
        destination_ip: IPv4 or IPv6 address, with or without a zone (`fe80::1%eth0`).
        sys_class_net: where the kernel tells of devices.

    Source: ip-route(8), Documentation/ABI/testing/sysfs-class-net (`speed`, Mbit/s).
    """
    try:
        device = _route_device(destination_ip)
    except Broken as error:
        return LinkSpeed(None, None, error.what)
    try:
        return LinkSpeed(_speed(sys_class_net / device, device), device, f"speed of {device}")
    except Broken as error:
        return LinkSpeed(None, device, error.what)


def _route_device(destination_ip: str) -> str:
    """Return the device that packets to an address leave by.

    Raises:
        Broken: not an address, no route, or `ip` missing, failing or silent.
    """
    try:
        address = ipaddress.ip_address(destination_ip)
    except ValueError as error:
        raise Broken(f"{destination_ip!r} is not an IP address") from error
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        return address.scope_id
    argv = ["ip", "-j", "route", "get", str(address)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=ROUTE_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Broken(f"route to {address} is not known: {error}") from error
    if done.returncode:
        raise Broken(f"no route to {address}: {done.stderr.strip()}")
    return _device_in(done.stdout, destination_ip)


def _device_in(answer: str, destination_ip: str) -> str:
    """Return the device that `ip -j route get` names."""
    try:
        routes = json.loads(answer)
        device = routes[0]["dev"]
    except (ValueError, LookupError, TypeError) as error:
        raise Broken(f"route to {destination_ip} is not known: ip answered {answer[:80]!r}") from error
    if not isinstance(device, str) or not device or "/" in device or device in {".", ".."}:
        raise Broken(f"route to {destination_ip} is not known: ip named the device {device!r}")
    return device


def _speed(folder: Path, device: str) -> BytesPerSecond:
    """Return the speed that a device tells.

    Raises:
        Broken: it tells none (loopback, no carrier), or one that means nothing.
    """
    try:
        index = int((folder / "ifindex").read_text("ascii"))
        megabits = int((folder / "speed").read_text("ascii"))
        here = socket.if_nametoindex(device)
    except (OSError, ValueError) as error:
        raise Broken(f"{device} tells no speed") from error
    if index != here:  # a namespace that was entered without its own /sys: this is another device of that name
        raise Broken(f"{device} in {folder.parent} is another namespace's")
    if (folder / "tun_flags").exists():  # tun and tap always say 10 Mbit/s
        raise Broken(f"{device} is a tun or tap device, whose speed means nothing")
    if megabits <= 0:
        raise Broken(f"{device} does not know its speed")
    return BytesPerSecond(megabits * _MEGABIT)
