"""Leases of the images of this host's guests: taken before a guest can run or write, given back when it has left.

A lease belongs to the guest's QEMU, whatever becomes of the agent. docs/design/disk-leases.md says why in this order.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

import structlog

from vmferry.core.errors import Refused, VmferryError
from vmferry.core.guest import FrozenGuest
from vmferry.core.ids import GuestName
from vmferry.ports.disk_leases import DiskLeases
from vmferry.ports.hypervisor import GuestProcess, HostResources, Hypervisor
from vmferry.ports.store import GuestRow

#: For how long an arrival waits for a lease that another still has: a QEMU that has just died may.
_PATIENCE_S = 5.0
_AGAIN_S = 0.1

_log = structlog.get_logger(__name__)


class GuestLeases:
    """Those of one host's guests.

    Args:
        leases: of this host.
        row: what the journal says of a guest, or of an arrival; None: there is none.
        process: its live process; None: there is none.
    """

    def __init__(
        self,
        leases: DiskLeases,
        row: Callable[[GuestName], GuestRow | None],
        process: Callable[[GuestName], GuestProcess | None],
    ) -> None:
        self._leases = leases
        self._row = row
        self._process = process

    async def start(
        self, hypervisor: Hypervisor, guest: FrozenGuest, resources: HostResources, *, incoming: bool
    ) -> GuestProcess:
        """Start a guest's process; one that does not wait for a stream has its leases before it opens an image.

        Raises:
            Refused: there are no leases on this host now, or another host has one of the guest's.
            VmferryError: as the hypervisor raises it.
        """
        through = await self._leases.starting(guest.spec, taking=not incoming)
        resources = dataclasses.replace(resources, start_through=through)
        try:
            return await hypervisor.start(guest, resources, incoming=incoming)
        except VmferryError as error:
            why = await self._leases.why_refused(guest.spec, error.what) if through else None
            if why is None:
                raise
            raise Refused(
                f"guest {guest.spec.name} did not start: {why}",
                fix="stop the guest that uses it there; the lease of a host that is off ends by itself",
                retry=True,
            ) from error

    async def take(self, name: GuestName) -> None:
        """Take the leases of a guest's images for its process; nothing happens without one. Idempotent.

        Raises:
            Refused: another host has one.
            Broken, TimedOut: the lock manager or its storage does not answer.
        """
        row, process = self._row(name), self._process(name)
        if row is not None and process is not None:
            await self._leases.take(row.guest.spec, process.record.pid)

    async def take_patiently(self, name: GuestName) -> None:
        """As `take`, and wait some seconds for a lease that another has."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE_S
        while True:
            try:
                await self.take(name)
            except Refused as error:
                if not error.retry or loop.time() > until:
                    raise
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    async def take_again(self, name: GuestName) -> None:
        """Take what a guest that goes on should have.

        A process that was started without leases, or whose lock manager was started anew, can have none any more: it
        goes on without, as such guests do until they are started anew, unless another has one of its leases.

        Raises:
            Refused, Broken, TimedOut: as `take`.
        """
        row, process = self._row(name), self._process(name)
        if row is None or process is None:
            return
        if await self._leases.is_registered(process.record.pid):
            await self.take(name)
        elif (why := await self._leases.why_not(row.guest.spec)) is not None:
            raise Refused(why, fix="wait until that one has ended, or end it", retry=True)

    async def give(self, name: GuestName) -> None:
        """Give back what a guest's process has; one that is dead has none any more. Idempotent.

        Raises:
            Broken, TimedOut: the lock manager or its storage does not answer.
        """
        process = self._process(name)
        if process is not None:
            await self._leases.give(process.record.pid)

    async def why_not(self, name: GuestName) -> str | None:
        """Return which lease of a guest's images is another's now; None when none is, or nobody can tell."""
        row = self._row(name)
        return None if row is None else await self._leases.why_not(row.guest.spec)

    async def unleased(self, name: GuestName) -> tuple[str, ...]:
        """Return the images of a guest that runs without their leases; empty where nobody can tell."""
        row, process = self._row(name), self._process(name)
        if row is None or process is None:
            return ()
        try:
            return await self._leases.missing(row.guest.spec, process.record.pid)
        except VmferryError as error:
            _log.warning("leases of a guest's images are not known", guest=name, error=str(error))
            return ()

    async def why_not_held(self, name: GuestName) -> str | None:
        """Return why it is not certain that a guest's process has its leases now; None when it has them all."""
        row, process = self._row(name), self._process(name)
        if row is None or process is None:
            return None
        try:
            missing = await self._leases.missing(row.guest.spec, process.record.pid)
        except VmferryError as error:
            return error.what
        return f"the source does not have the lease of {', '.join(missing)} any more" if missing else None
