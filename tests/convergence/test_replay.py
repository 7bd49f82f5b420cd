"""A dry run says what would have been ordered, and where the trace stops being the story of that policy."""

from __future__ import annotations

from tests.convergence.kit import FACTS, ended, rounds, sample, stored

from vmferry.core.convergence import Goal, Policy, make_policy
from vmferry.core.convergence.facts import Throttle
from vmferry.core.convergence.orders import Orders, SetDowntimeLimit, SetThrottle
from vmferry.core.convergence.qemu import Qemu
from vmferry.core.convergence.recorder import Recorder
from vmferry.core.convergence.replay import replay
from vmferry.core.convergence.trace import Trace
from vmferry.core.units import MIB, BytesPerSecond, Milliseconds


def trace_of(*seen: object, policy: str = "none") -> Trace:
    """Return a trace of these observations."""
    recorder = Recorder(policy, FACTS, Goal())
    for one in seen:
        recorder.saw(one)  # type: ignore[arg-type]
    recorder.ended(Milliseconds(1e6), "cut")
    return recorder.trace()


def test_qemus_rule_is_played_at_the_round_before_the_policy_is_asked() -> None:
    """A round that leaves no more than bandwidth x limit is where QEMU would have switched."""
    result = replay(stored("no-gain"), make_policy("qemu", Goal()))
    last = result.fired[-1]
    assert (last.line, last.round, last.what) == (4, 3, "QEMU switches over")
    assert last.rule == "the rest takes 295.8 ms, limit 300.0 ms"
    assert (result.decided, result.uncertain_line) == (True, None)


def test_the_end_of_the_trace_is_the_end_of_what_can_be_told() -> None:
    """A policy that did not decide would have seen something that nobody recorded."""
    result = replay(stored("live-faster"), make_policy("xen-3.0-default-build", Goal()))
    assert not result.decided
    assert result.end == (
        "the trace ends here (cut, policy qemu); it cannot tell what this policy would have seen next"
    )


def test_a_cap_below_what_the_trace_ran_at_makes_all_of_it_uncertain() -> None:
    """At 32 MiB/s this would have been another migration from the first page on."""
    result = replay(stored("few-pages"), make_policy("kvm-2007", Goal()))
    assert (result.uncertain_line, result.uncertain_why) == (1, "it would have run at 32.0 MiB/s, not 119.2 MiB/s")
    assert [fired.certain for fired in result.fired] == [True, True, False]


def test_a_cap_above_changes_nothing() -> None:
    """QEMU's 128 MiB/s do not matter to a trace of 1 Gbit/s."""
    assert replay(stored("few-pages"), make_policy("qemu", Goal())).uncertain_line is None


class Brakes(Qemu):
    """Brakes at the second round."""

    def on_round(self, ended: object) -> Orders:
        """Brake."""
        if getattr(ended, "round", 0) != 2:
            return ()
        return (SetThrottle(Throttle.AUTO_CONVERGE, 40, "because"),)


def test_a_brake_that_was_not_recorded_makes_the_rest_uncertain() -> None:
    """The order itself is certain, what is seen after it is not."""
    result = replay(trace_of(*rounds(90_000, 80_000, 5000)), Brakes(Goal()))
    assert (result.uncertain_line, result.uncertain_why) == (3, "the guest would have been throttled")
    assert [(fired.line, fired.certain) for fired in result.fired] == [
        (None, True),
        (None, True),
        (3, True),
        (4, False),
    ]


def test_a_brake_that_was_recorded_too_is_the_same_story() -> None:
    """Replaying the policy that steered never makes its own trace uncertain."""
    policy: Policy = Brakes(Goal())
    recorder = Recorder("brakes", FACTS, Goal())
    recorder.ordered(Milliseconds(0.0), policy.begin(FACTS))
    for seen in rounds(90_000, 80_000, 5000):
        recorder.saw(seen)
        recorder.ordered(seen.at_ms, policy.on(seen))
    result = replay(recorder.trace(), Brakes(Goal()))
    assert result.uncertain_line is None
    assert [fired.line for fired in result.fired] == [None, None, 5, 7]


def test_a_higher_limit_would_have_ended_a_round_early() -> None:
    """Where the rest fits this policy's limit and not the recorded one, QEMU would have looked; then nobody knows."""
    recorder = Recorder("qemu", FACTS, Goal())
    recorder.ordered(Milliseconds(0.0), [SetDowntimeLimit(Milliseconds(100.0), "as run")])
    recorder.saw(sample(1, 200 * MIB))
    recorder.saw(sample(2, 30 * MIB))
    recorder.saw(sample(3, 10 * MIB))
    result = replay(recorder.trace(), make_policy("qemu", Goal()))
    assert result.uncertain_line == 4
    assert result.uncertain_why is not None
    assert "ended the round here" in result.uncertain_why


def test_a_policy_that_fails_is_a_cancel_as_live() -> None:
    """The dry run does not break either."""

    class Fails(Qemu):
        def on_round(self, ended: object) -> Orders:
            raise KeyError("x")

    result = replay(trace_of(ended(1, 9, 90_000, bandwidth=BytesPerSecond(1))), Fails(Goal()))
    assert result.fired[-1].what == "cancel"
    assert "failed with KeyError: 'x'" in result.fired[-1].rule
