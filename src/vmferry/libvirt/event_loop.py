"""libvirt's event loop in a thread of its own: events are told, and keepalive finds a daemon that is dead.

libvirt has one loop per process, and connections that were opened before it is registered never use it. So it is
started before the first one opens, and never ends: there is no way to take it back.
"""

from __future__ import annotations

import threading
import time
from typing import Any

_lock = threading.Lock()
_threads: list[threading.Thread] = []
#: After a round of the loop that failed: it would fail again at once.
_PAUSE_S = 1.0


def ensure_running(libvirt: Any) -> None:
    """Start the loop unless it runs. From any thread; returns at once.

    Args:
        libvirt: the bindings.
    """
    with _lock:
        if _threads:
            return
        libvirt.virEventRegisterDefaultImpl()
        # A daemon thread: it sleeps in libvirt for as long as the process lives.
        thread = threading.Thread(target=_run, args=(libvirt,), name="libvirt-events", daemon=True)
        _threads.append(thread)
        thread.start()


def _run(libvirt: Any) -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            time.sleep(_PAUSE_S)
