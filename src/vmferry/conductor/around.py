"""What hand-overs need of the agent around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from vmferry.conductor.guest_devices import GuestDevices
from vmferry.conductor.plan import Qemus
from vmferry.conductor.rows import Request
from vmferry.conductor.runner import no_hold
from vmferry.conductor.source import Source
from vmferry.core.bandwidth import Bandwidth
from vmferry.core.convergence.trace import Trace
from vmferry.core.errors import Blocker
from vmferry.core.handover.states import AnyState
from vmferry.core.ids import HandoverId, HostName
from vmferry.core.migratable import MigratableDevice
from vmferry.core.progress import Guarantee
from vmferry.core.units import Bytes, BytesPerSecond
from vmferry.ports.compression import Compressing
from vmferry.ports.disks import DiskFiles
from vmferry.ports.hypervisor import Certificates
from vmferry.ports.peer import Peer
from vmferry.ports.stream import StreamWays
from vmferry.ports.write_throttle import WriteThrottle


def _measure_nothing(source: Source) -> None:
    """Do nothing."""


def _none_measured(host: HostName) -> Bandwidth | None:
    """Return nothing."""


def _keep_nothing(handover: HandoverId, trace: Trace) -> None:
    """Do nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Checked:
    """What the checks found."""

    blockers: tuple[Blocker, ...]
    guarantee: Guarantee | None
    qemus: Qemus
    copies: tuple[str, ...] = ()  #: nodes of the images that are to be copied
    certificates: Certificates | None = None  #: by which the stream is encrypted; None: it is not by any
    migratable: tuple[MigratableDevice, ...] = ()  #: devices that go with the guest


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """What hand-overs need of the agent around them.

    Args:
        peer: another host's agent, by name.
        check: asks both hosts: every blocker, what is promised, what both QEMUs can do, what is to be copied.
        leaving: takes what is measured at the source before the guest is forgotten there.
        report: measures a source's hand-over, journals the report and publishes the end.
        link_bandwidth: what the link to an address gives; None when it does not say.
        link_measured: what a probe saw of it, not too long ago; None when nothing was measured.
        link_device: by which device packets to a host leave; None when it is not known.
        free_memory: what this host has now, reservations not subtracted.
        listen_address: where this host's QEMUs listen for streams.
        ports: on which of its ports.
        compressing: tries compressions on pages.
        ways: how streams travel that the agents connect.
        port_is_free: whether nobody listens on a port of an address.
        throttle: slows the writes of this host's guests.
        disk_files: this host's images.
        devices: this host's devices, which its guests have.
        hold: fault injection in the lab.
        opened: begins to measure a hand-over that this agent opened; must return at once.
        passed: as `opened`, when the checks have passed.
        keep_trace: stores what a policy saw and ordered; may wait for the disk, raises nothing.
    """

    peer: Callable[[HostName], Peer]
    check: Callable[[Request], Awaitable[Checked]]
    leaving: Callable[[Source], None]
    report: Callable[[Source], Awaitable[None]]
    link_bandwidth: Callable[[HostName], BytesPerSecond | None]
    link_device: Callable[[HostName], str | None]
    free_memory: Callable[[], Bytes]
    listen_address: str
    ports: range
    port_is_free: Callable[[str, int], bool]
    throttle: WriteThrottle
    ways: StreamWays
    compressing: Compressing
    disk_files: DiskFiles
    devices: GuestDevices
    hold: Callable[[AnyState], Awaitable[object] | None] = no_hold
    opened: Callable[[Source], None] = _measure_nothing
    passed: Callable[[Source], None] = _measure_nothing
    keep_trace: Callable[[HandoverId, Trace], None] = _keep_nothing
    link_measured: Callable[[HostName], Bandwidth | None] = _none_measured
