"""Divides a link between the streams that leave by it at the same time: each gets as much as any other.

Without it a stream of several channels would take several shares, and a policy would reckon with a link that it does
not have. A share that its guest has no use for is lost to the others while it lasts; TCP still divides what is left of
a link that others use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from vmferry.core.errors import VmferryError
from vmferry.core.ids import HostName

_log = structlog.get_logger(__name__)


class Member(Protocol):
    """A stream that leaves by a device."""

    @property
    def destination(self) -> HostName:
        """Return where it goes."""

    async def share(self, among: int) -> None:
        """Take so manieth part of the link from now on."""


class Sharing:
    """Knows which streams leave by which device.

    Args:
        device: by which device packets to a host leave; None: nobody knows, and nothing is divided.
    """

    def __init__(self, device: Callable[[HostName], str | None]) -> None:
        self._device = device
        self._members: dict[Member, int] = {}  #: with among how many it shares its device now
        self._dividing = asyncio.Lock()

    async def begins(self, member: Member, *, new: bool) -> None:
        """Count a stream in; the others make room.

        Args:
            member: the stream.
            new: it began under this agent; else it may still be held to a share of another time.
        """
        self._members[member] = 1 if new else 0
        await self._divide()

    async def ends(self, member: Member) -> None:
        """Count it out; the others take its share. Idempotent."""
        self._members.pop(member, None)
        await self._divide()

    async def _divide(self) -> None:
        async with self._dividing:
            if len(self._members) < 2 and set(self._members.values()) <= {1}:
                return  # alone, as most are: nothing is looked up, nothing is ordered
            devices = await asyncio.to_thread(self._devices, list(self._members))
            for member, device in devices.items():
                among = 1 if device is None else list(devices.values()).count(device)
                if self._members.get(member) not in (None, among):
                    await self._share(member, among)

    def _devices(self, members: list[Member]) -> dict[Member, str | None]:
        found: dict[Member, str | None] = {}
        for member in members:
            try:
                found[member] = self._device(member.destination)
            except VmferryError:  # a host that is in the fleet no more
                found[member] = None
        return found

    async def _share(self, member: Member, among: int) -> None:
        try:
            await member.share(among)
        except VmferryError as error:  # it ends a moment from now, or is tried again when the next one does
            _log.info("a stream keeps its share of the link", destination=member.destination, error=str(error))
        else:
            if member in self._members:
                self._members[member] = among
