"""What a source's hand-over needs of the agent around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from vmferry.conductor.brake import Brake
from vmferry.conductor.guest_devices import GuestDevices
from vmferry.core.errors import Blocker
from vmferry.core.progress import Guarantee
from vmferry.core.units import BytesPerSecond
from vmferry.ports.disks import DiskFiles
from vmferry.ports.stream import StreamWays

if TYPE_CHECKING:
    from vmferry.conductor.source import Source


@dataclasses.dataclass(frozen=True, slots=True)
class Calls:
    """What a source's hand-over needs of the agent around it.

    Args:
        check: collects the facts; returns every blocker, and what is promised when there is none.
        leaving: called before the source's guest is forgotten: what is measured here must be taken now.
        over: called when all is done but the report: the guest may be moved again at once, by anybody.
        report: measures and publishes the end.
        passed: called when the checks have passed: measures of the guest begin; must return at once.
        brake: slows the guest's writes; the steering's too.
        ways: how a stream travels that the agents connect.
        link: what the link to the destination gives; None: nobody knows.
        disk_files: this host's images.
        devices: this host's devices, which its guests have.
    """

    check: Callable[[], Awaitable[tuple[tuple[Blocker, ...], Guarantee | None]]]
    leaving: Callable[[Source], None]
    over: Callable[[], Awaitable[None]]
    report: Callable[[Source], Awaitable[None]]
    passed: Callable[[Source], None]
    brake: Brake
    ways: StreamWays
    link: Callable[[], BytesPerSecond | None]
    disk_files: DiskFiles
    devices: GuestDevices
