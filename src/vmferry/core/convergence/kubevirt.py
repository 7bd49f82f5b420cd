"""`kubevirt`: QEMU's rule between two time-outs."""

from __future__ import annotations

from vmferry.core.convergence.facts import Description, Facts, Wishes
from vmferry.core.convergence.observations import Observation, Round, Sample
from vmferry.core.convergence.orders import Cancel, Orders, SetDowntimeLimit
from vmferry.core.convergence.policy import Policy
from vmferry.core.units import Milliseconds

LIMIT_MS = Milliseconds(300.0)
TIMEOUT_S_PER_GIB = 150
NO_PROGRESS_S = 150
WISHES = Wishes(tls=True, multifd_channels=8)


class Kubevirt(Policy):
    """Aborts when it takes too long, or when what is left has not been less for a while."""

    description = Description(
        name="kubevirt",
        what="Lets QEMU decide with its default limit, and aborts by time.",
        rules=(
            f"after {TIMEOUT_S_PER_GIB} s per GiB of RAM: abort",
            f"what is left was not less than ever before for {NO_PROGRESS_S} s: abort",
        ),
        qemu="decides, with 300 ms",
        source="kubevirt, virt-launcher/virtwrap/live-migration-source.go and virt-config.go (150 s/GiB, once 800)",
        parameters=(("post-copy, auto-converge", "off"), ("channels", "8, with TLS")),
    )

    def wishes(self, facts: Facts) -> Wishes:  # noqa: ARG002 - the same for every guest
        """Return eight encrypted channels."""
        return WISHES

    def started(self) -> Orders:
        """Leave QEMU its default."""
        self._least: int | None = None
        self._least_at_ms = 0.0
        return (SetDowntimeLimit(LIMIT_MS, "QEMU's default"),)

    def on_sample(self, sample: Sample) -> Orders:
        """Look at the progress and the time."""
        if self._least is None or sample.remaining_bytes < self._least:
            self._least, self._least_at_ms = sample.remaining_bytes, self.elapsed_ms
        return self._look(sample)

    def on_round(self, ended: Round) -> Orders:
        """Look at the time."""
        return self._look(ended)

    def _look(self, _: Observation) -> Orders:
        limit_s = TIMEOUT_S_PER_GIB * self.facts.ram_gib
        if self.elapsed_ms > limit_s * 1000:
            return (Cancel(f"not completed after {limit_s:.0f} s ({TIMEOUT_S_PER_GIB} s per GiB)"),)
        if self.elapsed_ms - self._least_at_ms > NO_PROGRESS_S * 1000:
            return (Cancel(f"no progress for {NO_PROGRESS_S} s"),)
        return ()
