"""`kvm-2007`: the article's rules as KVM's own source had them when the article's sources were written."""

from __future__ import annotations

from vmferry.core.convergence.facts import Description, Facts, Wishes
from vmferry.core.convergence.observations import Round
from vmferry.core.convergence.orders import NEARLY_ZERO_MS, Orders, SetBandwidth, SetDowntimeLimit, SwitchNow
from vmferry.core.convergence.policy import Policy
from vmferry.core.units import KIB, MIB, BytesPerSecond

LEAST_BYTES = 200 * KIB  # 50 pages of 4 KiB
MOST_ROUNDS = 30
RAPID_WRITES = 2
BANDWIDTH = BytesPerSecond(32 * MIB)


class Kvm2007(Policy):
    """Counts pages, rounds and rapid writes."""

    description = Description(
        name="kvm-2007",
        what="The rules that the article tells, as KVM had them in 2007.",
        rules=(
            "less than 200 KiB left, that is fewer than 50 pages of 4 KiB",
            "two rapid writes, not necessarily in a row: rounds that dirtied no fewer pages than the one before",
            f"{MOST_ROUNDS} rounds",
        ),
        qemu="is kept from deciding (downtime limit 1 ms); SwitchNow raises the limit to 2000 s",
        source="KVM's migration.c of 2007",
        parameters=(("bandwidth", "32 MiB/s"), ("rapid writes", "2"), ("rounds", "30")),
        forces=True,
    )

    def wishes(self, facts: Facts) -> Wishes:  # noqa: ARG002 - the same for every guest
        """Return its cap of 32 MiB/s."""
        return Wishes(max_bandwidth=BANDWIDTH)

    def started(self) -> Orders:
        """Cap the bandwidth and keep QEMU from deciding."""
        self._dirtied: int | None = None
        self._rapid = 0
        return (
            SetBandwidth(BANDWIDTH, "KVM's cap of 2007"),
            SetDowntimeLimit(NEARLY_ZERO_MS, "pages are counted, not time"),
        )

    def on_round(self, ended: Round) -> Orders:
        """Apply the three rules."""
        before, self._dirtied = self._dirtied, ended.dirtied_pages
        if before is not None and ended.dirtied_pages >= before:
            self._rapid += 1
        if ended.remaining_pages * self.facts.page_bytes < LEAST_BYTES:
            return (SwitchNow(f"few pages: {ended.remaining_pages} left, less than 200 KiB"),)
        if self._rapid >= RAPID_WRITES:
            return (SwitchNow(f"rapid writes: round {ended.round} is the {RAPID_WRITES}nd that dirtied no less"),)
        if ended.round >= MOST_ROUNDS:
            return (SwitchNow(f"{ended.round} rounds"),)
        return ()
