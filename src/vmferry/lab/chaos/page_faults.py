"""Lets the lab's unprivileged QEMUs catch page faults: without that no guest can come to them by post-copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vmferry.qemu.userfault import DEVICE

_EVERYBODY = 0o666


@contextmanager
def page_faults_for_all() -> Iterator[None]:
    """Open the device to everybody, as the udev rule of docs would, and close it again; without it, do nothing."""
    if not DEVICE.exists():
        yield
        return
    before = DEVICE.stat().st_mode & 0o777
    DEVICE.chmod(_EVERYBODY)
    try:
        yield
    finally:
        DEVICE.chmod(before)
