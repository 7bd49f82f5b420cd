"""Tells who started the agent that it is up: our supervisor by a descriptor, systemd by its socket."""

from __future__ import annotations

import contextlib
import os
import socket

#: Descriptor on which the supervisor waits for one byte.
READY_FD = "VMFERRY_READY_FD"


def tell_ready() -> None:
    """Say that the agent answers; harmless when nobody wants to know, and when it is said again.

    Source: sd_notify(3).
    """
    with contextlib.suppress(OSError, ValueError):
        descriptor = int(os.environ.pop(READY_FD, "-1"))
        if descriptor >= 0:
            os.write(descriptor, b"1")
            os.close(descriptor)
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
