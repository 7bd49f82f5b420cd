"""`nova`: OpenStack's steps of downtime over time, and what its completion time-out does."""

from __future__ import annotations

from typing import ClassVar

from vmferry.core.convergence.facts import Description
from vmferry.core.convergence.observations import Observation, Round, Sample
from vmferry.core.convergence.orders import Cancel, Orders, Pause, SetDowntimeLimit
from vmferry.core.convergence.policy import Policy
from vmferry.core.units import Milliseconds

MOST_MS = 500
STEPS = 10
STEP_DELAY_S_PER_GIB = 75
TIMEOUT_S_PER_GIB = 800
LEAST_GIB = 2.0
_PARAMETERS = (
    ("downtime", "50 ms, then 45 ms more in each of 10 steps, up to 500 ms"),
    ("step", "75 s per GiB of RAM, at least 2 GiB"),
    ("time-out", "800 s per GiB"),
    ("post-copy, auto-converge", "off"),
)
_SOURCE = "nova/virt/libvirt/migration.py (downtime_steps, should_abort), nova/conf/libvirt.py"


def step_ms(step: int) -> Milliseconds:
    """Return the downtime limit of a step, 0 to 10."""
    base = MOST_MS / STEPS
    return Milliseconds(float(int(base + (MOST_MS - base) / STEPS * step)))


class Nova(Policy):
    """Raises the limit with time; when the time is up, it aborts."""

    force_complete: ClassVar[bool] = False
    description = Description(
        name="nova",
        what="Lets QEMU decide, with a limit that grows with time, and aborts after a long time.",
        rules=("the limit grows by 45 ms every 75 s x GiB", "after 800 s x GiB: abort"),
        qemu="decides, with the limit of the step",
        source=_SOURCE,
        parameters=_PARAMETERS,
    )

    def started(self) -> Orders:
        """Set the first step."""
        self._step = 0
        self._paused = False
        return (SetDowntimeLimit(step_ms(0), "step 0"),)

    def on_sample(self, sample: Sample) -> Orders:
        """Look at the time."""
        return self._look(sample)

    def on_round(self, ended: Round) -> Orders:
        """Look at the time."""
        return self._look(ended)

    def _look(self, _: Observation) -> Orders:
        gib = max(self.facts.ram_gib, LEAST_GIB)
        elapsed_s = self.elapsed_ms / 1000
        if elapsed_s > TIMEOUT_S_PER_GIB * gib:
            return self._time_out(TIMEOUT_S_PER_GIB * gib)
        due = min(int(elapsed_s // int(STEP_DELAY_S_PER_GIB * gib)), STEPS)
        if due <= self._step:
            return ()
        self._step = due
        return (SetDowntimeLimit(step_ms(due), f"step {due}"),)

    def _time_out(self, limit_s: float) -> Orders:
        if not self.force_complete:
            return (Cancel(f"not completed after {limit_s:.0f} s (800 s per GiB)"),)
        if self._paused:
            return ()
        self._paused = True
        return (Pause(f"not completed after {limit_s:.0f} s (800 s per GiB): force_complete"),)


class NovaForceComplete(Nova):
    """With `live_migration_timeout_action=force_complete`."""

    force_complete = True
    description = Description(
        name="nova-force-complete",
        what="As nova, but after a long time the guest is paused until all is sent.",
        rules=("the limit grows by 45 ms every 75 s x GiB", "after 800 s x GiB: pause the guest"),
        qemu="decides, with the limit of the step",
        source=_SOURCE + ", live_migration_timeout_action=force_complete without post-copy",
        parameters=_PARAMETERS,
        forces=True,
    )
