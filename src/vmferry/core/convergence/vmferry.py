"""`vmferry`, the default: a goal (largest gap, deadline), and whatever of the allowed means gets there soonest.

1. QEMU's limit is the goal's gap less the fixed cost, and less a quarter since QEMU overshoots and the guest has to
   catch up, so that QEMU itself switches at the first moment at which the rest fits: the soonest switchover within the
   goal is the least total time. When it underestimates the link and the rest fits by our measure (a local minimum, for
   example), the limit is raised to four fifths for one round.
2. After each round: can pre-copy get there at all (outlook.py), and within four times what it takes to send what is
   left, or two and a half times where post-copy is allowed? After the first round only the straight line is asked,
   which is the least that shorter rounds dirty. If it seems not, post-copy starts at once if it is allowed, except that
   a second round which takes less than a second is looked at first. If it is proven or seen twice, a brake is put on.
3. The brakes in order of harm, one at a time: 40-writes slows the programs that the guest's owner has put under it and
   nothing else; where it does not do, it is released, and auto-converge slows the whole guest, as hard as may be: a
   softer brake takes as much of the guest's work in the end, for longer, and nothing at all from a guest that leaves
   its CPU idle most of the time. Neither brake holds anything for more than half of the limit, and where one works the
   limit shrinks by that stall: a vCPU may be asleep, or a write held, when the guest is stopped.
   QEMU pulls auto-converge only when a round ends, and only at every second bad one. So round 1 is made to count, and
   after it the brake is armed: QEMU pulls it by itself at the end of the next round that dirtied three quarters of what
   it sent, from which the end is four times as far as what is left (2.), a round before our verdict could.
4. At the deadline: post-copy if allowed, else what the goal says: cancel, or the switchover whatever the gap.
"""

from __future__ import annotations

from vmferry.core.convergence import throttle
from vmferry.core.convergence.facts import (
    AtDeadline,
    Description,
    Facts,
    Throttle,
    Wishes,
    check_goal,
    limit_within,
    raised_limit_within,
)
from vmferry.core.convergence.observations import Observation, Round, Sample
from vmferry.core.convergence.orders import (
    NEARLY_ZERO_MS,
    TRIGGER,
    Cancel,
    Orders,
    SetDowntimeLimit,
    SetThrottle,
    StartPostcopy,
    SwitchNow,
    ThrottleOff,
)
from vmferry.core.convergence.outlook import Outlook, outlook
from vmferry.core.convergence.policy import Policy
from vmferry.core.rounds.curve import DirtyCurve, DirtyPoint, fit, until_switchover
from vmferry.core.units import Milliseconds, Percent, format_bytes, format_ms, format_rate

#: From reading a round's end to QEMU's next look, the guest goes on writing for about this long.
LATENCY_MS = 100.0
#: The rest fits only if it does with this much to spare: bandwidth is measured, not promised.
MARGIN = 0.9
FIRST_VERDICT = 2
#: A brake works from the second round on: what takes longer than this many times the rest is shorter with one.
SLOW_PASSES = 4.0
#: Post-copy takes as long as the rest, and half a second for its quiet beginning.
SLOW_BESIDE_POSTCOPY = 2.5
#: Before the first verdict post-copy waits for a round that is shorter than this: round 1 tells little of a fast link.
SHORT_ROUND_MS = 1000.0
#: Percent of what a round sent: one that dirtied as much leaves SLOW_PASSES times its rest to send, or more.
SLOW_SHARE = Percent(75)
#: The trigger with which a round is bad whatever it dirtied.
ANY_SHARE = Percent(1)
#: 40-writes is in force at once: the first round under it shows what it does, a second one shows it again.
WRITES_PATIENCE = 2
#: The article's slot allows this many writes.
WRITES = 40


class Vmferry(Policy):
    """Meets the goal in the least time that the allowed means give."""

    heeds_goal = True
    description = Description(
        name="vmferry",
        what="Meets the goal (largest gap, deadline) in the least time that the allowed means give.",
        rules=(
            "the rest fits bandwidth x 0.75 x (gap - fixed cost): QEMU switches at that moment",
            "post-copy is allowed, and no end within two and a half times what is left to send: post-copy",
            "that seems so after round 1 already, and the rest takes less than a second: one more look first",
            "no end within four times, proven or seen twice, no post-copy: 40-writes, where it may be used",
            "without it, or two rounds later still no end: auto-converge, as strong as the gap has room for",
            "that after round 1 already, if QEMU sees a round that dirtied three quarters of what it sent",
            "no end under it: a stronger one, whose stalls take half of the limit, which shrinks first",
            "the deadline has come: post-copy if allowed, else cancel with the reason, or switch whatever the gap",
        ),
        qemu="decides within the goal: limit = 0.75 x (gap - fixed cost) - stall of the brake",
        source="design note in docs/policies.md; stalls: QEMU 10.0, migration/cpu-throttle.c",
        parameters=(
            ("--max-gap", "90 ms (simulate: 300 ms)"),
            ("--deadline", "none; --at-deadline: cancel"),
            ("post-copy", "when allowed"),
            ("throttle", "auto-converge, bounded; with --throttle any 40-writes before it"),
        ),
    )

    def wishes(self, facts: Facts) -> Wishes:
        """Return what the allowed means need; several channels exclude post-copy on QEMU up to 10.0."""
        return Wishes(
            postcopy=self.goal.allow_postcopy and facts.postcopy,
            auto_converge=self._may_use(Throttle.AUTO_CONVERGE, facts),
        )

    def started(self) -> Orders:
        """Set the goal as QEMU's limit.

        Raises:
            BadInput: no switchover of this guest is that short; the least possible is told.
        """
        check_goal(self.goal, self.facts)
        self._budget_ms = limit_within(self.goal.max_gap_ms, self.facts.fixed_cost_ms)
        self._most_stall_ms = throttle.most_stall_ms(self._budget_ms)
        self._stall_ms = 0.0
        self._points: list[DirtyPoint] = []
        self._doubts = 0
        self._level = throttle.unattended(self.goal.max_gap_ms, self.facts.fixed_cost_ms)
        self._armed = self._braked = self._works = False  #: the brake: QEMU may pull it, it was ordered, it was seen
        self._writes_in = 0  #: the round after which 40-writes was ordered; 0: not yet
        self._raised = False
        self._last: Round | None = None
        gap, cost = format_ms(self.goal.max_gap_ms), format_ms(self.facts.fixed_cost_ms)
        rule = f"goal: gap {gap} less {cost} of fixed cost and a quarter"
        return (SetDowntimeLimit(self._limit_ms(), rule), *self._brake_at_rest())

    def on_sample(self, sample: Sample) -> Orders:
        """Look at the deadline, and whether QEMU has pulled the brake."""
        if orders := self._at_deadline(sample):
            return orders
        if self._works or not self._may_brake() or sample.throttle <= throttle.LEAST:
            return ()
        self._works, self._doubts = True, 0
        return self._leave_room()

    def on_round(self, ended: Round) -> Orders:
        """Judge the round: does the rest fit, can it ever, what else is there."""
        if orders := self._at_deadline(ended):
            return orders
        self._last = ended
        if ended.duration_ms <= 0 or ended.sent_pages <= 0:
            return ()
        page = self.facts.page_bytes
        self._points.append(DirtyPoint(ended.duration_ms / ended.covers, ended.dirtied_pages * page / ended.covers))
        speed = ended.sent_pages * page / ended.duration_ms if ended.round > 1 else ended.bandwidth / 1000
        armed = self._arm()
        view = outlook(self._points, ended.dirtied_pages / ended.sent_pages, self._limit_ms(), speed)
        limit = self._limit(ended, view)
        # The straight line through the last round is the least that shorter ones dirty: what it tells needs no curve.
        line = fit(self._points[-1:])
        no_end = self._is_slow(ended, line, speed, without_end=True)
        if ended.round >= FIRST_VERDICT:
            no_end = no_end or view.doubtful or self._is_slow(ended, view.curve, speed, without_end=False)
        if not no_end or self._raised:
            self._doubts = 0
            return (*armed, *limit)
        self._doubts += 1
        return (*armed, *limit, *self._other_means(ended, view, speed))  # a means' own limit is the last word

    # -- the limit ------------------------------------------------------------------------------------------------

    def _limit_ms(self) -> Milliseconds:
        return Milliseconds(max(self._budget_ms - self._stall_ms, NEARLY_ZERO_MS))

    def _limit(self, ended: Round, view: Outlook) -> Orders:
        """Raise the limit while the rest fits by our measure and QEMU has not seen it."""
        rest = ended.remaining_pages * self.facts.page_bytes + view.curve.bytes_after(LATENCY_MS)
        fits = ended.bandwidth > 0 and rest <= MARGIN * ended.bandwidth * self._limit_ms() / 1000
        if fits is self._raised:
            return ()
        self._raised = fits
        if not fits:
            return (SetDowntimeLimit(self._limit_ms(), "the rest no longer fits"),)
        rule = f"fits: {format_bytes(int(rest))} at {format_rate(ended.bandwidth)}, and QEMU has not seen it"
        most_ms = raised_limit_within(self.goal.max_gap_ms, self.facts.fixed_cost_ms) - self._stall_ms
        return (SetDowntimeLimit(Milliseconds(max(most_ms, NEARLY_ZERO_MS)), rule),)

    def _is_slow(self, ended: Round, curve: DirtyCurve, speed: float, *, without_end: bool) -> bool:
        """Tell whether the rounds would go on for longer than a brake takes to work.

        Args:
            ended: the last round.
            curve: what the guest dirties.
            speed: bytes of guest memory sent per millisecond.
            without_end: the answer where the curve shows no end at all.
        """
        rest = float(ended.remaining_pages * self.facts.page_bytes)
        left_ms = until_switchover(rest, 0.0, speed, speed * self._limit_ms(), curve)
        passes = SLOW_BESIDE_POSTCOPY if self._may_postcopy() else SLOW_PASSES
        return without_end if left_ms is None else left_ms > passes * rest / speed

    # -- other means ----------------------------------------------------------------------------------------------

    def _other_means(self, ended: Round, view: Outlook, speed: float) -> Orders:
        if self._may_postcopy():
            return self._behind(ended, speed)
        if ended.round < FIRST_VERDICT or (not view.proven and self._doubts < 2):
            return ()
        if self._writes_in == 0 and not self._braked and self._may_hold_writes():
            return self._hold_writes(ended)
        if not self._may_brake() or (self._writes_in and ended.round < self._writes_in + WRITES_PATIENCE):
            return ()
        if not self._braked and not self._works:
            return self._brake(ended)
        strongest = throttle.strongest(self._most_stall_ms)
        return self._brake_harder(ended, strongest) if self._works and self._level < strongest else ()

    def _behind(self, ended: Round, speed: float) -> Orders:
        rest = ended.remaining_pages * self.facts.page_bytes
        if ended.round < FIRST_VERDICT and rest < SHORT_ROUND_MS * speed:
            return ()
        return (StartPostcopy(f"no end soon: {_dirtied(ended)}"),)

    def _hold_writes(self, ended: Round) -> Orders:
        self._writes_in = ended.round
        self._stall_ms = self._most_stall_ms
        held = f"a write may be held for {format_ms(self._stall_ms)} when the guest is stopped"
        limit = SetDowntimeLimit(self._limit_ms(), held)  # first: the helper may take its time
        return limit, SetThrottle(Throttle.FORTY_WRITES, WRITES, f"no end: {_dirtied(ended)}")

    def _brake(self, ended: Round) -> Orders:
        """Have QEMU brake, if it has not, when the next round ends or the one after; what it replaces goes first."""
        rule = f"no end: {_dirtied(ended)}; stalls of {format_ms(throttle.stall_ms(self._level))}"
        release: Orders = (ThrottleOff(Throttle.FORTY_WRITES, rule),) if self._writes_in and not self._braked else ()
        self._braked = True
        return (*release, SetThrottle(Throttle.AUTO_CONVERGE, self._level, rule, ANY_SHARE))

    def _brake_harder(self, ended: Round, level: Percent) -> Orders:
        self._level = level
        return (*self._leave_room(), *self._brake(ended))

    def _brake_at_rest(self) -> Orders:
        """Keep QEMU's own auto-converge from braking by itself: it is switched on before the start or never."""
        if not self._may_use(Throttle.AUTO_CONVERGE, self.facts):
            return ()
        trigger = ANY_SHARE if self._arms() else TRIGGER
        return (SetThrottle(Throttle.AUTO_CONVERGE, throttle.LEAST, "at rest until it is needed", trigger),)

    def _arm(self) -> Orders:
        """After the first round let QEMU brake by itself."""
        if self._armed or not self._arms():
            return ()
        self._armed = True
        rule = f"for a round that dirties {SLOW_SHARE} % of what it sends"
        return (SetThrottle(Throttle.AUTO_CONVERGE, self._level, rule, SLOW_SHARE),)

    def _leave_room(self) -> Orders:
        """Shrink the limit by the stall of the brake."""
        stall_ms = throttle.stall_ms(self._level)
        self._stall_ms, self._raised = stall_ms, False
        return (
            SetDowntimeLimit(self._limit_ms(), f"a vCPU may be asleep for {format_ms(stall_ms)} when it is stopped"),
        )

    def _arms(self) -> bool:
        """Tell whether the brake may be QEMU's to pull.

        Not where something else goes first, nor where QEMU's measure is none: it compares pages with bytes on the wire.
        """
        return self._may_brake() and not (self._may_postcopy() or self._may_hold_writes() or self.facts.compressed)

    def _may_brake(self) -> bool:
        return self._level >= throttle.LEAST and self._may_use(Throttle.AUTO_CONVERGE, self.facts)

    def _may_use(self, brake: Throttle, facts: Facts) -> bool:
        return brake in self.goal.throttles & facts.throttles

    def _may_hold_writes(self) -> bool:
        fits = self._most_stall_ms >= throttle.SHORTEST_SLOT_MS
        return fits and self._may_use(Throttle.FORTY_WRITES, self.facts)

    def _may_postcopy(self) -> bool:
        return self.goal.allow_postcopy and self.facts.postcopy

    # -- the deadline ---------------------------------------------------------------------------------------------

    def _at_deadline(self, seen: Observation) -> Orders:
        deadline = self.goal.deadline_ms
        if deadline is None or self.elapsed_ms < deadline:
            return ()
        rule = f"deadline of {format_ms(deadline)} in round {seen.round}"
        if self._may_postcopy():
            return (StartPostcopy(rule),)
        if self.goal.at_deadline is AtDeadline.SWITCH:
            return (SwitchNow(rule),)
        return (Cancel(f"{rule}: {self._why()}"),)

    def _why(self) -> str:
        """Return what stood in the way, and what would have helped."""
        if self._last is None:
            return "the first round had not ended; allow more time or a faster link"
        rest = self._last.remaining_pages * self.facts.page_bytes
        now = f"{_dirtied(self._last)}, {format_bytes(rest)} were left"
        if self._last.bandwidth > 0:
            gap_ms = self.facts.fixed_cost_ms + rest * 1000 / self._last.bandwidth
            now += f", a gap of {format_ms(gap_ms)}"
        helps = "a larger gap, or more time"
        return f"{now}; allow {helps}" if self.goal.allow_postcopy else f"{now}; allow post-copy, {helps}"


def _dirtied(ended: Round) -> str:
    if ended.round == 1:  # most of what it sent may have been empty pages
        return f"round 1 dirtied {ended.dirtied_pages} pages in {format_ms(ended.duration_ms)}"
    return f"round {ended.round} dirtied {ended.dirtied_pages} pages while it sent {ended.sent_pages}"
