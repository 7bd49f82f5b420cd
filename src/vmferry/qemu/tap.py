"""Taps on a bridge, opened by the agent: QEMU gets a descriptor and needs no rights on the network.

A tap lives as long as a descriptor of it is open: closing it is its whole undo.
Source: Linux Documentation/networking/tuntap.rst, include/uapi/linux/{if_tun,sockios}.h.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from vmferry.core.errors import Broken

TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_UP = 0x1
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
SIOCGIFMTU = 0x8921
SIOCSIFMTU = 0x8922
SIOCGIFINDEX = 0x8933
SIOCBRADDIF = 0x89A2

#: The kernel puts the first free number in.
NAME_PATTERN = b"vftap%d"


def open_tap(bridge: str) -> int:
    """Return a descriptor of a new tap that is up, attached to the bridge and has the bridge's MTU.

    On failure no tap is left.

    Raises:
        Broken: no right to make taps, or no such bridge.
    """
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Broken(
            f"/dev/net/tun cannot be opened for a tap on bridge {bridge}: {error.strerror}",
            fix="run the agent as root, or use network = user",
        ) from error
    try:
        _attach(_create(fd), bridge)
    except OSError as error:
        os.close(fd)
        raise Broken(
            f"tap on bridge {bridge} cannot be made: {error.strerror}",
            fix=f"make the bridge (ip link add {bridge} type bridge) and run the agent as root",
        ) from error
    return fd


def _create(fd: int) -> bytes:
    request = struct.pack("16sH22x", NAME_PATTERN, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    reply = fcntl.ioctl(fd, TUNSETIFF, request)
    return reply[:16].rstrip(b"\0")


def _attach(tap: bytes, bridge: str) -> None:
    bridge_name = bridge.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        index = _get(control, SIOCGIFINDEX, tap)
        mtu = _get(control, SIOCGIFMTU, bridge_name)
        _set(control, SIOCSIFMTU, tap, mtu)
        _set(control, SIOCBRADDIF, bridge_name, index)
        flags = _get(control, SIOCGIFFLAGS, tap) & 0xFFFF
        _set(control, SIOCSIFFLAGS, tap, flags | IFF_UP)


def _get(control: socket.socket, request: int, name: bytes) -> int:
    reply = fcntl.ioctl(control, request, struct.pack("16si20x", name, 0))
    return int(struct.unpack("16xi20x", reply)[0])


def _set(control: socket.socket, request: int, name: bytes, value: int) -> None:
    fcntl.ioctl(control, request, struct.pack("16si20x", name, value))
