"""Breaking the stream of a post-copy off on one side, so that both can go on with another.

By `yank`, and not by the `migrate-pause` that is there for it: a QEMU that notices the break by itself meanwhile frees
its stream before it says postcopy-paused, and `migrate-pause` then uses what was freed. 7.2 and 10.0 die of that at the
destination (SIGSEGV), and with them a guest that runs nowhere else. `yank` shuts down the sockets that are registered
with it, under a lock of its own; the migration's thread closes none that is not taken out of there first.

`yank` would end a pre-copy just as well, so the status is asked for.

Source: QEMU migration/{migration,savevm,yank_functions}.c, util/yank.c; docs/design/postcopy.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from vmferry.core.errors import Broken, VmferryError
from vmferry.ports.hypervisor import GuestEvent, MigrationSample, MigrationStatus
from vmferry.qemu.qmp import SaidNo

COMMAND = "yank"
ARGUMENTS: Mapping[str, object] = {"instances": [{"type": "migration"}]}

_BREAKABLE = frozenset({MigrationStatus.POSTCOPY_ACTIVE, MigrationStatus.POSTCOPY_RECOVER})
#: A QEMU that answers no question for so long waits for a page: it is in post-copy.
_ANSWER_S = 1.0


class Breaker:
    """Breaks one guest's stream off.

    Args:
        guest: the guest's name, for messages.
        order: says something to QEMU out of band.
        query: asks in band how the migration goes.
    """

    def __init__(
        self,
        guest: str,
        order: Callable[[str, Mapping[str, object]], Awaitable[None]],
        query: Callable[[], Awaitable[MigrationSample]],
    ) -> None:
        self._guest = guest
        self._order = order
        self._query = query
        self._status: MigrationStatus | None = None  #: as the last event told; None: an earlier agent heard it

    def saw(self, event: GuestEvent) -> None:
        """Take note of an event."""
        self._status = event.status or self._status

    async def break_off(self) -> None:
        """Break it off; QEMU says postcopy-paused a moment later.

        Raises:
            Broken: there is no stream of a post-copy; nothing was touched.
        """
        status = self._status or await self._ask()
        if status is not None and status not in _BREAKABLE:
            raise self._not_there(f"the status is {status}")
        try:
            await self._order(COMMAND, ARGUMENTS)
        except SaidNo as error:
            raise self._not_there(error.what) from error

    async def _ask(self) -> MigrationStatus | None:
        try:
            async with asyncio.timeout(_ANSWER_S):
                return (await self._query()).status
        except (VmferryError, TimeoutError):
            return None

    def _not_there(self, why: str) -> Broken:
        return Broken(
            f"stream of guest {self._guest} cannot be broken off: {why}; expected {' or '.join(sorted(_BREAKABLE))}, "
            "since only a post-copy can go on with another stream"
        )
