"""Behind which port a bridge of this host believes a guest to be.

A bridge learns from each frame's sender. After a move it sends a guest's frames to where the guest was until a frame
from the new place has come by: an announcement, or whatever the guest says first.

Source: Linux Documentation/ABI/testing/sysfs-class-net-bridge; include/uapi/linux/if_bridge.h, `struct __fdb_entry`.
"""

from __future__ import annotations

import struct
from pathlib import Path

SYS_CLASS_NET = Path("/sys/class/net")
#: Address, low byte of the port's number, whether it is the bridge's own, age, high byte of the number.
_ENTRY = struct.Struct("=6sBBIBBH")
#: A bridge of a large network has thousands of entries; no more are looked at.
_MOST_BYTES = _ENTRY.size * 65_536


def learned_port(bridge: str, mac: str, sys_class_net: Path = SYS_CLASS_NET) -> str | None:
    """Return the port behind which a bridge believes an address to be; None: it has not heard of it lately.

    Args:
        bridge: of this host.
        mac: in any spelling with colons.
        sys_class_net: where the kernel tells of devices.

    Raises:
        OSError: there is no such bridge.
    """
    wanted = bytes.fromhex(mac.replace(":", ""))
    with (sys_class_net / bridge / "brforward").open("rb") as file:
        table = file.read(_MOST_BYTES)
    for address, low, is_own, _, high, _, _ in _ENTRY.iter_unpack(table[: len(table) // _ENTRY.size * _ENTRY.size]):
        if address == wanted and not is_own:
            return _port(sys_class_net / bridge / "brif", low | high << 8)
    return None


def _port(ports: Path, number: int) -> str | None:
    for port in ports.iterdir():
        if int((port / "port_no").read_text("ascii"), 16) == number:
            return port.name
    return None
