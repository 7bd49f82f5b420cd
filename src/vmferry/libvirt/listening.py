"""Whom a connection tells what happens to domains; libvirt calls from its event loop's thread.

Bindings are an argument here: adapter.py alone imports them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vmferry.libvirt.moves.happenings import Happening, Lost, RoundBegan, job_ended, turned

Tell = Callable[[Happening], None]
#: How long closing waits for a call that is under way.
_LOCK_S = 2.0


class Listeners:
    """Those of one connection. `add` and `remove` call the daemon and may take long; from any thread.

    Args:
        connection: libvirt's own object.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._domains: dict[str, _Told] = {}
        self._hears_of_loss = False

    def add(self, libvirt: Any, name: str, tell: Tell) -> None:
        """Have everything told of one domain, and the loss of the connection. Raises what the bindings raise."""
        with self._lock:
            if not self._hears_of_loss:  # libvirt takes one such call per connection,
                self._connection.registerCloseCallback(self._lost, None)
                self._hears_of_loss = True
            if name not in self._domains:  # and one per domain and event
                domain, told = self._connection.lookupByName(name), _Told()
                try:
                    for event, call in _calls(libvirt, told).items():
                        told.numbers.append(self._connection.domainEventRegisterAny(domain, event, call, None))
                except libvirt.libvirtError:
                    self._take_back(libvirt, told)
                    raise
                self._domains[name] = told
            self._domains[name].listeners += (tell,)

    def remove(self, libvirt: Any, name: str, tell: Tell) -> None:
        """Tell nothing more to one of them; raises nothing. A daemon that is dead has forgotten whom to tell."""
        with self._lock:
            told = self._domains.get(name)
            if told is None:  # closed meanwhile
                return
            told.listeners = tuple(listener for listener in told.listeners if listener is not tell)
            if not told.listeners:
                del self._domains[name]
                self._take_back(libvirt, told)

    def close(self, libvirt: Any) -> None:
        """Let the connection go: as long as libvirt may call, it holds it. Idempotent, raises nothing.

        Whoever hangs in `add` or `remove` has the lock, so it is not waited for long.
        """
        has_lock = self._lock.acquire(timeout=_LOCK_S)
        try:
            told, hears = list(self._domains.values()), self._hears_of_loss
            self._domains.clear()
            self._hears_of_loss = False
            for each in told:
                self._take_back(libvirt, each)
            if hears:
                with contextlib.suppress(libvirt.libvirtError):
                    self._connection.unregisterCloseCallback()
        finally:
            if has_lock:
                self._lock.release()

    def _take_back(self, libvirt: Any, told: _Told) -> None:
        """Take a domain's events back: each holds the connection until then."""
        numbers, told.numbers = told.numbers, []
        for number in numbers:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.domainEventDeregisterAny(number)

    def _lost(self, _connection: Any, _reason: int, _opaque: None) -> None:
        for told in tuple(self._domains.values()):
            told(Lost())


@dataclass(slots=True)
class _Told:
    """One domain's listeners."""

    listeners: tuple[Tell, ...] = ()
    numbers: list[int] = field(default_factory=list)  #: what takes the events back

    def __call__(self, happening: Happening) -> None:
        for tell in self.listeners:
            tell(happening)


def _calls(libvirt: Any, tell: Tell) -> dict[int, Callable[..., None]]:
    """Return what libvirt calls at each event; the last argument is our own, None."""
    return {
        libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE: lambda _c, _d, event, detail, _o: tell(turned(event, detail)),
        libvirt.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION: lambda _c, _d, number, _o: tell(RoundBegan(number)),
        libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED: lambda _c, _d, stats, _o: tell(job_ended(stats)),
    }
