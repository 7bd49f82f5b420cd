"""`proxmox`: Proxmox VE's loop, which doubles the downtime until it fits."""

from __future__ import annotations

from vmferry.core.convergence.facts import Description
from vmferry.core.convergence.observations import Sample
from vmferry.core.convergence.orders import MAX_DOWNTIME_MS, Orders, SetBandwidth, SetDowntimeLimit
from vmferry.core.convergence.policy import Policy
from vmferry.core.units import GIB, BytesPerSecond, Milliseconds

FIRST_MS = 100.0
PATIENCE = 5
POLL_MS, FAST_POLL_MS = 1000.0, 100.0
BANDWIDTH = BytesPerSecond(16 * GIB)


class Proxmox(Policy):
    """Counts polls that see more left than the poll before."""

    description = Description(
        name="proxmox",
        what="Lets QEMU decide, doubles the limit when polls see no progress, and never gives up.",
        rules=("after more than 5 polls at which more was left than at the one before, or nothing: twice the limit",),
        qemu="decides, with the doubled limit",
        source="proxmox/qemu-server, PVE/QemuMigrate.pm, phase2",
        parameters=(
            ("downtime limit", "100 ms, doubled up to 2000 s"),
            ("poll", "1 s, 100 ms when less is left than is sent in a second"),
            ("bandwidth", "16 GiB/s"),
        ),
        forces=True,
    )

    def started(self) -> Orders:
        """Set the first limit."""
        self._limit_ms = FIRST_MS
        self._count = 0
        self._left: int | None = None
        self._next_ms = 0.0
        return SetBandwidth(BANDWIDTH, "no cap"), SetDowntimeLimit(Milliseconds(FIRST_MS), "its first limit")

    def on_sample(self, sample: Sample) -> Orders:
        """Poll when it is time to."""
        if self.elapsed_ms < self._next_ms:
            return ()
        fast = sample.remaining_bytes < sample.bandwidth
        self._next_ms = self.elapsed_ms + (FAST_POLL_MS if fast else POLL_MS)
        before, self._left = self._left, sample.remaining_bytes
        if (before and sample.remaining_bytes > before) or sample.remaining_bytes == 0:
            self._count += 1
        if self._count <= PATIENCE or self._limit_ms >= MAX_DOWNTIME_MS:
            return ()
        self._count = 0
        self._limit_ms = min(2 * self._limit_ms, MAX_DOWNTIME_MS)
        return (SetDowntimeLimit(Milliseconds(self._limit_ms), f"{PATIENCE + 1} polls without progress"),)
