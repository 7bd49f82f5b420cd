"""`kubevirt-stall`: finds out that the rounds do not get better, and switches at a local minimum of what is left."""

from __future__ import annotations

from typing import ClassVar

from vmferry.core.convergence.facts import Description, Facts, Wishes
from vmferry.core.convergence.kubevirt import LIMIT_MS, TIMEOUT_S_PER_GIB, WISHES
from vmferry.core.convergence.observations import Round, Sample
from vmferry.core.convergence.orders import Cancel, Orders, SetDowntimeLimit, SwitchNow
from vmferry.core.convergence.policy import Policy
from vmferry.core.units import Milliseconds, format_bytes, format_ms

WINDOW_S = 40.0
MARGIN = 0.04
DECAY = 0.5
ALPHA = 0.4
MOST_MS = Milliseconds(900.0)
POSSIBLE = 1.5
SWITCHOVER_S = 60.0
BUDGET_FACTOR = 2.0

_STALL = f"stall: a round leaves no {MARGIN:.0%} less than the best of those that ended {WINDOW_S:.0f} s ago or earlier"
_RELAX = f"no round gets there for {WINDOW_S:.0f} s (then {DECAY} x as long): take the next best as the best"
_SOURCE = "KubeVirt VEP 248 (migration-convergence.md, migration-hyperparameters.md)"
_PARAMETERS = (
    ("window", "40 s"),
    ("margin", "4 %"),
    ("patience decay", "0.5"),
    ("bandwidth", "EWMA, alpha 0.4"),
    ("time-out", "150 s per GiB, 2 x that in all"),
)


class KubevirtStall(Policy):
    """With `allowWorkloadDisruption`: the local minimum is taken whatever the downtime."""

    disrupt: ClassVar[bool] = True
    description = Description(
        name="kubevirt-stall",
        what="Waits until the rounds get no better, then switches over at a local minimum, whatever the downtime.",
        rules=(
            _STALL,
            f"then, at a round that leaves at most {1 + MARGIN:.2f} x the best since: switch",
            _RELAX,
            "after 150 s per GiB: switch",
        ),
        qemu="decides before the stall, with 300 ms",
        source=_SOURCE + ", allowWorkloadDisruption",
        parameters=_PARAMETERS,
        forces=True,
    )

    def wishes(self, facts: Facts) -> Wishes:  # noqa: ARG002 - the same for every guest
        """Return KubeVirt's set-up."""
        return WISHES

    def started(self) -> Orders:
        """Leave QEMU its default."""
        self._records: list[tuple[float, int]] = []  # (when, bytes left) of each round
        self._best: int | None = None  # None: not stalled yet
        self._missed: list[int] = []
        self._patience_ms = WINDOW_S * 1000
        self._until_ms = 0.0
        self._bandwidth = 0.0
        self._soft_since_ms: float | None = None
        return (SetDowntimeLimit(LIMIT_MS, "QEMU's default"),)

    def on_sample(self, sample: Sample) -> Orders:  # noqa: ARG002 - only the time counts
        """Look at the time-outs."""
        limit_ms = TIMEOUT_S_PER_GIB * self.facts.ram_gib * 1000
        if self._soft_since_ms is not None and self.elapsed_ms - self._soft_since_ms > SWITCHOVER_S * 1000:
            return (Cancel(f"QEMU did not switch over within {SWITCHOVER_S:.0f} s of being allowed to"),)
        if self.elapsed_ms <= limit_ms:
            return ()
        rule = f"not completed after {format_ms(limit_ms)} ({TIMEOUT_S_PER_GIB} s per GiB)"
        return (SwitchNow(rule),) if self.disrupt else (Cancel(rule),)

    def on_round(self, ended: Round) -> Orders:
        """Detect the stall, then wait for a local minimum."""
        if self._soft_since_ms is not None:
            return ()
        left = ended.remaining_pages * self.facts.page_bytes
        self._bandwidth = ALPHA * ended.bandwidth + (1 - ALPHA) * (self._bandwidth or ended.bandwidth)
        self._records.append((self.elapsed_ms, left))
        if self._best is None and not self._has_stalled(left):
            return ()
        best = self._best or 0
        if left <= best * (1 + MARGIN):
            return self._at_minimum(left, best)
        self._missed.append(left)
        if self.elapsed_ms >= self._until_ms:
            self._best = min(self._missed)
            self._missed.remove(self._best)
            self._patience_ms *= DECAY
            self._until_ms = self.elapsed_ms + self._patience_ms
        return ()

    def _has_stalled(self, left: int) -> bool:
        before = [record for record in self._records if record[0] <= self.elapsed_ms - WINDOW_S * 1000]
        if not before:
            return False
        least = min(before, key=lambda record: record[1])
        if left < least[1] * (1 - MARGIN):
            return False
        self._best = min(bytes_left for when, bytes_left in self._records if when >= least[0])
        self._until_ms = self.elapsed_ms + self._patience_ms
        return True

    def _at_minimum(self, left: int, best: int) -> Orders:
        if self._bandwidth <= 0:
            return ()
        implied_ms = left * 1000 / self._bandwidth
        budget_ms = TIMEOUT_S_PER_GIB * self.facts.ram_gib * 1000 * BUDGET_FACTOR - self.elapsed_ms
        if implied_ms > budget_ms:
            return ()
        rule = f"stalled, and at a local minimum: {format_bytes(left)} left, best {format_bytes(best)}"
        if self.disrupt:
            return (SwitchNow(rule),)
        if implied_ms > MOST_MS * POSSIBLE:
            return (Cancel(f"{rule}; that is {format_ms(implied_ms)} of downtime, more than {POSSIBLE} x 900 ms"),)
        self._soft_since_ms = self.elapsed_ms
        return (SetDowntimeLimit(MOST_MS, rule),)


class KubevirtStallStrict(KubevirtStall):
    """Without `allowWorkloadDisruption`, KubeVirt's default: at most 900 ms, else it aborts."""

    disrupt = False
    description = Description(
        name="kubevirt-stall-strict",
        what="Waits until the rounds get no better, then allows 900 ms at a local minimum, or aborts.",
        rules=(
            _STALL,
            f"then, at a round that leaves at most {1 + MARGIN:.2f} x the best since:",
            f"if its rest takes at most {POSSIBLE} x 900 ms: allow 900 ms, abort {SWITCHOVER_S:.0f} s later",
            "else abort",
            _RELAX,
            "after 150 s per GiB: abort",
        ),
        qemu="decides, with 300 ms, with 900 ms after the stall",
        source=_SOURCE,
        parameters=_PARAMETERS,
    )
