"""Leases of a lock manager for the images that a guest writes: who has them, and for as long as which process lives.

A lease belongs to a QEMU process. It outlives the agent, ends with the process, and is another host's only when it was
given back, or when the lock manager knows that this host cannot use it any more.
"""

from __future__ import annotations

from typing import Protocol

from vmferry.core.disk_leases import DiskLeaseFacts
from vmferry.core.guest import GuestSpec


class DiskLeases(Protocol):
    """Those of this host's guests. Every call may wait for the storage, none for another host's time to run out.

    Raises, wherever nothing else is said: Broken or TimedOut, when the lock manager or its storage does not answer.
    """

    async def starting(self, spec: GuestSpec, *, taking: bool) -> tuple[str, ...]:
        """Return through which program a guest's process is to be started (`HostResources.start_through`).

        Args:
            spec: the guest; one without an image that has a lease is started as ever: an empty tuple.
            taking: whether the process takes the leases before it becomes QEMU, and does not become QEMU without; else
                it can be given them later (`take`).

        Raises:
            Refused: no lease can be had on this host now; says why, and what to do.
        """

    async def why_not(self, spec: GuestSpec) -> str | None:
        """Return which lease of a guest's images is another's; None when none is, or nobody can tell. Never raises."""

    async def why_refused(self, spec: GuestSpec, words: str) -> str | None:
        """Return why a process that ended with these words did not get its leases; None: it ended for another reason.

        Never raises.
        """

    async def take(self, spec: GuestSpec, pid: int) -> None:
        """Take all leases of a guest's images for its process, or none. Idempotent.

        Raises:
            Refused: another host has one; says which and how it is with that host. Or the process was not started
                through the program of `starting`.
        """

    async def is_registered(self, pid: int) -> bool:
        """Tell whether a process can have leases: it was started through the program of `starting`."""

    async def give(self, pid: int) -> None:
        """Give back whatever leases a process has; returns when others can take them. Idempotent, also for the dead."""

    async def missing(self, spec: GuestSpec, pid: int) -> tuple[str, ...]:
        """Return the images of a guest that should have leases here and for which the process has none."""

    async def facts(self) -> DiskLeaseFacts | None:
        """Return how this host takes leases; None: it takes none. Never raises: what is wrong stands in it."""


class NoDiskLeases:
    """What a host without a lock manager has: no image has a lease, and nobody asks for one."""

    async def starting(self, spec: GuestSpec, *, taking: bool) -> tuple[str, ...]:  # noqa: ARG002 - as the port says
        """Return that it is started as ever."""
        return ()

    async def why_not(self, spec: GuestSpec) -> str | None:  # noqa: ARG002 - as the port says
        """Return nothing."""
        return None

    async def why_refused(self, spec: GuestSpec, words: str) -> str | None:  # noqa: ARG002 - as the port says
        """Return nothing."""
        return None

    async def take(self, spec: GuestSpec, pid: int) -> None:
        """Do nothing."""

    async def is_registered(self, pid: int) -> bool:  # noqa: ARG002 - as the port says
        """Return that none can."""
        return False

    async def give(self, pid: int) -> None:
        """Do nothing."""

    async def missing(self, spec: GuestSpec, pid: int) -> tuple[str, ...]:  # noqa: ARG002 - as the port says
        """Return nothing."""
        return ()

    async def facts(self) -> DiskLeaseFacts | None:
        """Return that it takes none."""
        return None
