"""The kernel's own back-end of virtio network cards, which a guest's process gets as a descriptor.

Source: Linux drivers/vhost/net.c: whoever has a descriptor of /dev/vhost-net has one card's back-end, and nothing else.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from vmferry.core.errors import Broken

DEVICE = Path("/dev/vhost-net")
_FIX = {errno.ENOENT: "`modprobe vhost_net`", errno.ENODEV: "`modprobe vhost_net`"}
_MAY_NOT = "let the agent open it: it runs as root, with CAP_DAC_OVERRIDE and the device allowed"


def open_vhost(device: Path = DEVICE) -> int:
    """Return a descriptor of a back-end that nobody has yet.

    Raises:
        Broken: this host has none, or the agent may not open it.
    """
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Broken(
            f"The kernel's back-end of a network card, {device}, cannot be opened: {error.strerror}",
            fix=_FIX.get(error.errno or 0, _MAY_NOT),
        ) from error


def why_no_vhost(device: Path = DEVICE) -> str | None:
    """Return why no card can have the kernel's back-end on this host, with the fix; None: it can."""
    try:
        os.close(open_vhost(device))
    except Broken as error:
        return f"{error.what}: {error.fix}"
    return None
