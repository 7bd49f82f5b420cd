"""libvirt's event loop never ends once it has begun (vmferry.libvirt.event_loop): no test's own, so it begins first."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vmferry.libvirt import event_loop


@pytest.fixture(scope="session", autouse=True)
def running_event_loop() -> None:
    """Have the loop of this process running, with its descriptors; without the bindings there is none."""
    try:
        import libvirt
    except ImportError:
        return
    event_loop.ensure_running(libvirt)
    libvirt.openReadOnly("test:///default").close()
    deadline = time.monotonic() + 10
    while not any(map(_is_eventfd, Path("/proc/self/fd").iterdir())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_eventfd(file: Path) -> bool:
    try:
        return str(file.readlink()) == "anon_inode:[eventfd]"
    except FileNotFoundError:  # closed meanwhile
        return False
