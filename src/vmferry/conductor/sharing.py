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
        self._members: dict[Member, tuple[str, int]] = {}  #: with the device, and among how many it shares it now
        self._dividing = asyncio.Lock()

    async def begins(self, member: Member) -> None:
        """Count a stream in; the others make room."""
        device = await asyncio.to_thread(self._device, member.destination)
        if device is not None:
            self._members[member] = (device, 1)
            await self._divide(device)

    async def ends(self, member: Member) -> None:
        """Count it out; the others take its share. Idempotent."""
        device, _ = self._members.pop(member, (None, 0))
        if device is not None:
            await self._divide(device)

    async def _divide(self, device: str) -> None:
        async with self._dividing:
            sharing = [member for member, (of, _) in self._members.items() if of == device]
            for member in sharing:
                if member in self._members and self._members[member][1] != len(sharing):
                    self._members[member] = (device, len(sharing))
                    try:
                        await member.share(len(sharing))
                    except VmferryError as error:  # it ends a moment from now, and is counted out then
                        _log.info(
                            "a stream keeps its share of the link", destination=member.destination, error=str(error)
                        )
