"""`ovirt`: oVirt's convergence schedules, carried out as VDSM does.

VDSM polls, and counts a stall whenever more is left than at the poll before (a new round of QEMU's). The head of the
schedule is carried out at a stall whose count is *above* its limit; the last items have no limit: one at each further
stall. So "stall 1" acts at the second.
"""

from __future__ import annotations

from typing import ClassVar

from vmferry.core.convergence.facts import Description, Facts, Wishes
from vmferry.core.convergence.observations import Sample
from vmferry.core.convergence.orders import Cancel, Order, Orders, SetBandwidth, SetDowntimeLimit, StartPostcopy
from vmferry.core.convergence.policy import Policy
from vmferry.core.units import MIB, BytesPerSecond, Milliseconds

POLL_MS = 10_000.0  # migration_monitor_interval
BANDWIDTH = BytesPerSecond(52 * MIB)  # migration_max_bandwidth
#: Last items: carried out at the next stall, whatever the count.
ALWAYS = -1
ABORT, POSTCOPY = "abort", "postcopy"

#: (stall count to be exceeded, downtime limit in ms or action)
Schedule = tuple[tuple[int, int | str], ...]

_USUAL: Schedule = ((1, 150), (2, 200), (3, 300), (4, 400), (6, 500))
_SOURCE = (
    "ovirt-engine 4.7, MigrationPolicies in dbscripts/upgrade/pre_upgrade/0000_config.sql; vdsm, virt/migration.py"
)


def _describe(name: str, what: str, first_ms: int, schedule: Schedule, *, forces: bool = False) -> Description:
    last = tuple(f"then: {_text(action)}" for stalls, action in schedule if stalls == ALWAYS)
    usual = tuple(
        f"after more than {stalls} stall{'s' * (stalls > 1)}: {_text(action)}"
        for stalls, action in schedule
        if stalls != ALWAYS
    )
    return Description(
        name=name,
        what=what,
        rules=(f"at first {first_ms} ms", *usual, *last),
        qemu="decides, with the schedule's limit; auto-converge is on and QEMU raises it by itself",
        source=_SOURCE,
        parameters=(("bandwidth", "52 MiB/s"), ("poll", "10 s")),
        forces=forces,
    )


def _text(action: int | str) -> str:
    return f"{action} ms" if isinstance(action, int) else {POSTCOPY: "post-copy"}.get(action, action)


class Ovirt(Policy):
    """Minimal downtime, oVirt's default."""

    first_ms: ClassVar[int] = 100
    schedule: ClassVar[Schedule] = (*_USUAL, (ALWAYS, ABORT))
    xbzrle: ClassVar[bool] = False
    description = _describe("ovirt", "oVirt's 'Minimal downtime': up to 500 ms, then it aborts.", 100, schedule)

    def wishes(self, facts: Facts) -> Wishes:
        """Return VDSM's set-up."""
        postcopy = facts.postcopy and any(action == POSTCOPY for _, action in self.schedule)
        return Wishes(max_bandwidth=BANDWIDTH, auto_converge=True, xbzrle=self.xbzrle, postcopy=postcopy)

    def started(self) -> Orders:
        """Set the first limit."""
        self._head = 0
        self._stalls = 0
        self._left: int | None = None
        self._next_ms = 0.0
        first = SetDowntimeLimit(Milliseconds(float(self.first_ms)), "initial")
        return SetBandwidth(BANDWIDTH, "migration_max_bandwidth"), first

    def on_sample(self, sample: Sample) -> Orders:
        """Poll when it is time to."""
        if self.elapsed_ms < self._next_ms:
            return ()
        self._next_ms = self.elapsed_ms + POLL_MS
        before, self._left = self._left, sample.remaining_bytes
        if before is None or sample.remaining_bytes <= before:
            return ()
        self._stalls += 1
        if self._head >= len(self.schedule) or self.schedule[self._head][0] >= self._stalls:
            return ()
        self._head += 1
        return self._act(self.schedule[self._head - 1][1])

    def _act(self, action: int | str) -> Orders:
        rule = f"stalled for {self._stalls} rounds"
        order: Order
        if isinstance(action, int):
            order = SetDowntimeLimit(Milliseconds(float(action)), rule)
        elif action == POSTCOPY:
            if not self.facts.postcopy:  # as in VDSM, the next item follows at the next stall
                return ()
            order = StartPostcopy(rule)
        else:
            order = Cancel(f"{rule}: the schedule is used up")
        return (order,)


class OvirtPostcopy(Ovirt):
    """Post-copy migration."""

    schedule = ((1, 150), (2, 200), (ALWAYS, POSTCOPY), (ALWAYS, ABORT))
    description = _describe(
        "ovirt-postcopy", "oVirt's 'Post-copy migration': up to 200 ms, then post-copy.", 100, schedule
    )


class OvirtSuspend(Ovirt):
    """Suspend workload if needed."""

    schedule = (*_USUAL, (ALWAYS, 5000), (ALWAYS, ABORT))
    xbzrle = True
    description = _describe(
        "ovirt-suspend", "oVirt's 'Suspend workload if needed': 5 s of downtime before it aborts.", 100, schedule
    )


class OvirtVeryLarge(Ovirt):
    """Very large VMs."""

    first_ms = 300
    schedule = ((1, 400), (2, 500), (3, 700), (4, 1000), (6, 1500), (ALWAYS, 5000), (ALWAYS, ABORT))
    description = _describe("ovirt-very-large", "oVirt's 'Very large VMs': up to 1.5 s, then 5 s.", 300, schedule)
