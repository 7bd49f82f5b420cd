"""`qemu`: QEMU as it comes, which is also what libvirt does."""

from __future__ import annotations

from vmferry.core.convergence.facts import Description, Facts, Wishes
from vmferry.core.convergence.orders import Orders, SetBandwidth, SetDowntimeLimit
from vmferry.core.convergence.policy import Policy
from vmferry.core.units import MIB, BytesPerSecond, Milliseconds

BANDWIDTH = BytesPerSecond(128 * MIB)
LIMIT_MS = Milliseconds(300.0)


class Qemu(Policy):
    """Sets QEMU's defaults and leaves it alone."""

    description = Description(
        name="qemu",
        what="QEMU's own rule with its defaults; never forces and never gives up.",
        rules=("the rest fits bandwidth x 300 ms",),
        qemu="decides alone",
        source="QEMU 10.0, migration/options.c and migration_iteration_run in migration/migration.c",
        parameters=(("downtime limit", "300 ms"), ("bandwidth", "128 MiB/s")),
    )

    def wishes(self, facts: Facts) -> Wishes:  # noqa: ARG002 - the same for every guest
        """Return its cap of 128 MiB/s."""
        return Wishes(max_bandwidth=BANDWIDTH)

    def started(self) -> Orders:
        """Set the defaults."""
        return SetBandwidth(BANDWIDTH, "QEMU's default"), SetDowntimeLimit(LIMIT_MS, "QEMU's default")
