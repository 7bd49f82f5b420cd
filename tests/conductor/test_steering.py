"""Policies steer hand-overs: orders reach QEMU in order, and whatever a policy does, the guest is safe."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar

import pytest
from tests.conductor.fakes import WatchedLink, qemu_of
from tests.conductor.pair import GUEST, Host, follow, wait_finished, wait_until

from vmferry.conductor import asking
from vmferry.conductor.plan import DEFAULT_MAX_GAP, UNLIMITED, Choice
from vmferry.core.convergence import Facts, Goal, Policy, Throttle, Wishes, registry
from vmferry.core.convergence.facts import Description, limit_within
from vmferry.core.convergence.observations import Sample
from vmferry.core.convergence.orders import (
    MAX_DOWNTIME_MS,
    NEARLY_ZERO_MS,
    Orders,
    Pause,
    Resume,
    SetBandwidth,
    SetDowntimeLimit,
    SetThrottle,
    StartPostcopy,
    SwitchNow,
    ThrottleOff,
)
from vmferry.core.convergence.replay import replay
from vmferry.core.convergence.trace import Ended, Ordered, decode, encode
from vmferry.core.errors import BadInput, Broken, NotFound
from vmferry.core.handover.states import SourceState
from vmferry.core.migration import MigrationStatus, RunState
from vmferry.core.progress import Finished, PolicyBegan, PolicyOrdered
from vmferry.core.rounds.unsent import most_unsent
from vmferry.core.units import MIB, Bytes, BytesPerSecond, Milliseconds
from vmferry.testing.fake_hypervisor import FAKE_FACTS, FakeGuestProcess, FakeHypervisor, Fault, FaultAction
from vmferry.testing.fake_qemu import FAKE_BANDWIDTH

MADE = "made-up"
SET = "set_parameters"


class MadeUp(Policy):
    """Does what the test says."""

    heeds_goal = True
    description = Description(MADE, "A policy of a test.", ("none",), "decides", "a test")
    first: ClassVar[Orders] = ()
    on_first: ClassVar[Callable[[Sample], Orders]] = staticmethod(lambda _: ())
    wished: ClassVar[Wishes] = Wishes()

    def wishes(self, facts: Facts) -> Wishes:
        return self.wished

    def started(self) -> Orders:
        self._asked = False
        return self.first

    def on_sample(self, sample: Sample) -> Orders:
        if self._asked:
            return ()
        self._asked = True
        return type(self).on_first(sample)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Choice]:
    """Give the made-up policy what it does, and return the choice of it."""

    def make(first: Orders = (), then: object = (), wished: Wishes | None = None) -> Choice:
        answer = then if callable(then) else lambda _: then
        members = {"first": first, "on_first": staticmethod(answer), "wished": wished or Wishes()}
        kind = type("Made", (MadeUp,), members)
        monkeypatch.setattr(registry, "POLICIES", {**registry.POLICIES, MADE: kind})
        return Choice(MADE)

    return make


@pytest.fixture
def slow_link(link: WatchedLink) -> WatchedLink:
    """Streams stay in their first round until the test lets them go (`release`)."""
    link.script(Fault(MigrationStatus.ACTIVE, FaultAction.HANG))
    return link


def calls(host: Host, *names: str) -> list[str]:
    """Return the calls of these names that the host's hypervisor saw, in order."""
    assert isinstance(host.hypervisor, FakeHypervisor)
    return [call.name for call in host.hypervisor.calls if call.name in names]


async def end_of(here: Host, handover: str) -> tuple[Finished, list[object]]:
    """Wait for the end and return it with every event."""
    events = await follow(here, handover)  # type: ignore[arg-type]
    await wait_finished(*here.pair.hosts.values())
    last = events[-1]
    assert isinstance(last, Finished)
    return last, events


def ordered(events: list[object]) -> list[PolicyOrdered]:
    """Return the orders that watchers saw."""
    return [event for event in events if isinstance(event, PolicyOrdered)]


def assert_stayed(here: Host, there: Host) -> None:
    """The guest runs at the source and nowhere else."""
    assert here.guests.row(GUEST).token.owner == here.name
    link = here.hypervisor.link  # type: ignore[attr-defined]
    qemu = qemu_of(here, link)
    assert qemu is not None
    assert qemu.state is RunState.RUNNING
    assert there.journal.guest(GUEST) is None


async def test_first_orders_are_in_the_set_up_of_both_qemus(
    hosts: tuple[Host, Host], link: WatchedLink, made: Callable[..., Choice]
) -> None:
    """Limit, bandwidth and brake that a policy begins with hold from the first page on, alike on both sides."""
    here, there = hosts
    first = (
        SetDowntimeLimit(Milliseconds(123.0), "a rule"),
        SetBandwidth(BytesPerSecond(7 * MIB), "a rule"),
        SetThrottle(Throttle.AUTO_CONVERGE, 30, "a rule"),
    )
    choice = made(first, wished=Wishes(auto_converge=True, multifd_channels=4, xbzrle=True))
    end, events = await end_of(here, (await here.migrate(there, choice=choice)).request.handover)
    assert end.outcome == "moved"
    qemu = qemu_of(there, link)
    assert qemu is not None
    assert qemu.setup is not None
    on = {name for name, is_on in qemu.setup.capabilities.items() if is_on}
    assert {"auto-converge", "multifd", "events", "return-path", "late-block-activate"} <= on
    assert "xbzrle" not in on
    assert (qemu.setup.downtime_limit_ms, qemu.setup.max_bandwidth) == (123.0, 7 * MIB)
    assert (qemu.parameters["multifd-channels"], qemu.parameters["cpu-throttle-initial"]) == (4, 30)
    assert [event.order for event in ordered(events)] == [
        "downtime limit 123.0 ms",
        "bandwidth 7.0 MiB/s",
        "auto-converge 30",
    ]
    (began,) = [event for event in events if isinstance(event, PolicyBegan)]
    assert began.again is None
    assert [text.partition(":")[0] for text in began.left_out] == ["xbzrle"]
    assert "multifd excludes xbzrle" in began.left_out[0]


async def test_orders_reach_qemu_in_order_and_a_forced_switchover_ends_the_rounds(
    hosts: tuple[Host, Host], slow_link: WatchedLink, made: Callable[..., Choice]
) -> None:
    """Each kind of order is one call, in the order of the answer; what is told has rule, round and pages."""
    here, there = hosts
    then = (
        SetThrottle(Throttle.AUTO_CONVERGE, 50, "brake"),
        ThrottleOff(Throttle.AUTO_CONVERGE, "let go"),
        SetBandwidth(None, "all of it"),
        Pause("hold"),
        Resume("go on"),
        SetDowntimeLimit(Milliseconds(50.0), "limit"),
        SwitchNow("enough"),
    )
    choice = made((), then)
    source = await here.migrate(there, choice=choice)
    qemu = qemu_of(here, slow_link)
    assert qemu is not None
    await wait_until(lambda: qemu.downtime_limit_ms == MAX_DOWNTIME_MS, "the switchover is forced")
    names = (SET, "set_bandwidth", "set_downtime_limit", "stop", "cont")
    first_cont = calls(here, "cont")  # the start of the guest itself
    assert calls(here, *names)[1:] == [
        SET,
        SET,
        "set_bandwidth",
        "stop",
        "cont",
        "set_downtime_limit",
        "set_downtime_limit",
    ]
    assert first_cont
    assert qemu.bandwidth == UNLIMITED
    assert {qemu.parameters[name] for name in ("cpu-throttle-initial", "max-cpu-throttle")} == {1}
    slow_link.release()
    end, events = await end_of(here, source.request.handover)
    assert end.outcome == "moved"
    told = ordered(events)
    assert [event.rule for event in told] == ["brake", "let go", "all of it", "hold", "go on", "limit", "enough"]
    assert all(event.round is not None and event.left_pages is not None for event in told)
    decision = source.steering.trail.decision
    assert decision is not None
    assert (decision.rule, decision.pages) == ("enough", told[-1].left_pages)


async def test_qemus_own_rule_is_told_as_the_one_that_fired(hosts: tuple[Host, Host]) -> None:
    """Without a forced switchover the report names QEMU's rule with the limit in force, and the pages left then."""
    here, there = hosts
    source = await here.migrate(there)
    end, events = await end_of(here, source.request.handover)
    assert end.outcome == "moved"
    limit = limit_within(DEFAULT_MAX_GAP)
    assert f"downtime limit {limit:.1f} ms" in [event.order for event in ordered(events)]
    decision = source.steering.trail.decision
    assert decision is not None
    assert decision.rule == f"QEMU's own: the rest fits the limit of {limit:.1f} ms"
    assert decision.pages is not None


@pytest.mark.parametrize("why", [None, "connections cannot be borrowed: Operation not permitted"])
async def test_what_waits_in_the_kernel_is_bounded(
    hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch, why: str | None
) -> None:
    """Once, by what the link carries; an agent that may not look into its QEMU moves the guest all the same."""
    bounds: list[Bytes] = []

    def bound(_: FakeGuestProcess, most: Bytes) -> None:
        bounds.append(most)
        if why is not None:
            raise Broken(why)

    monkeypatch.setattr(FakeGuestProcess, "bound_unsent", bound)
    here, there = hosts
    source = await here.migrate(there)
    end, _ = await end_of(here, source.request.handover)
    assert end.outcome == "moved"
    assert bounds == [most_unsent(FAKE_BANDWIDTH)]


def raises(_: Sample) -> Orders:
    """Fail."""
    raise ZeroDivisionError("of all things")


@pytest.mark.parametrize(
    ("then", "why"),
    [
        (raises, "policy made-up: failed with ZeroDivisionError: of all things; the guest stays at the source"),
        (lambda _: "now", "policy made-up: answered str instead of orders; the guest stays at the source"),
        (lambda _: (SetDowntimeLimit(Milliseconds(-1.0), "r"),), "downtime limit -1.0 ms is not within"),
        (
            (StartPostcopy("no end"),),
            "start post-copy (no end), and it was refused: Post-copy of guest web-7 is not allowed for this",
        ),
        ((SetThrottle(Throttle.FORTY_WRITES, 40, "r"),), "it was refused: 40-writes is no order of a policy"),
    ],
    ids=["raises", "nonsense", "out of range", "post-copy", "40 writes"],
)
async def test_a_policy_out_of_order_leaves_the_guest_at_the_source(
    hosts: tuple[Host, Host], slow_link: WatchedLink, made: Callable[..., Choice], then: object, why: str
) -> None:
    """Whatever it does, the hand-over ends before the commit and the reason is told."""
    here, there = hosts
    source = await here.migrate(there, choice=made((), then))
    end, _ = await end_of(here, source.request.handover)
    assert end.outcome == "aborted"
    assert why in str(end.reason)
    assert_stayed(here, there)
    assert "of this attempt are lost" in str(source.steering.trail.restart_price())


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """What a hanging policy waits for: set at the end, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_policy_that_never_answers_is_given_up(
    hosts: tuple[Host, Host],
    slow_link: WatchedLink,
    made: Callable[..., Choice],
    released: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The agent goes on beside it, cancels when its time is over, and drops the late answer."""
    monkeypatch.setattr(asking, "BUDGET_MS", 50.0)
    here, there = hosts

    def hang(_: Sample) -> Orders:
        released.wait(60)
        return (SwitchNow("late"),)

    source = await here.migrate(there, choice=made((), hang))
    end, events = await end_of(here, source.request.handover)
    assert "policy made-up: did not answer within" in str(end.reason)
    assert_stayed(here, there)
    released.set()
    assert [event.order for event in ordered(events)] == ["cancel"]


async def test_an_order_that_qemu_refuses_is_told_and_the_guest_stays(
    hosts: tuple[Host, Host], slow_link: WatchedLink, made: Callable[..., Choice]
) -> None:
    """QEMU's own words are in the reason and beside the order, and nothing after it is carried out."""
    here, there = hosts
    assert isinstance(here.hypervisor, FakeHypervisor)
    here.hypervisor.refuse_next("set_downtime_limit", Broken("QEMU refused migrate-set-parameters: not today"))
    then = (SetDowntimeLimit(Milliseconds(50.0), "limit"), SwitchNow("enough"))
    source = await here.migrate(there, choice=made((), then))
    end, events = await end_of(here, source.request.handover)
    assert "ordered: downtime limit 50.0 ms (limit), and it was refused" in str(end.reason)
    assert "not today" in str(end.reason)
    assert [(event.order, event.refused is None) for event in ordered(events)] == [("downtime limit 50.0 ms", False)]
    assert source.steering.trail.decision is None
    assert_stayed(here, there)


async def test_a_policy_that_refuses_at_the_start_touches_nothing(
    hosts: tuple[Host, Host], made: Callable[..., Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says before the stream is a blocker: no destination is asked, no parameter set."""
    here, there = hosts

    def refuse(self: Policy) -> Orders:
        raise BadInput("not with this guest", fix="take a smaller one")

    choice = made()
    monkeypatch.setattr(registry.POLICIES[MADE], "started", refuse)
    source = await here.migrate(there, choice=choice)
    end, _ = await end_of(here, source.request.handover)
    (blocker,) = end.blockers
    assert blocker.code == "policy.refuses"
    assert "not with this guest (take a smaller one)" in blocker.what
    assert calls(here, "prepare_migration") == []
    assert calls(there, "start") == []


@pytest.mark.parametrize(
    ("choice", "limit", "error", "words"),
    [
        (Choice("novaa"), None, NotFound, "choose one of vmferry, article"),
        (Choice(max_gap_ms=Milliseconds(20.0)), None, BadInput, "allow at least 52 ms"),
        (Choice("nova", deadline_ms=Milliseconds(9.0)), None, BadInput, "--deadline does nothing"),
        (Choice("nova", throttle="any"), None, BadInput, "--throttle does nothing"),
        (Choice(at_deadline="switch"), None, BadInput, "give --deadline too"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_touched(
    hosts: tuple[Host, Host], choice: Choice, limit: Milliseconds | None, error: type[BadInput], words: str
) -> None:
    """Unknown policies tell the names, an impossible gap the least possible one; no hand-over is opened."""
    here, there = hosts
    with pytest.raises(error) as raised:
        await here.migrate(there, choice=choice, downtime_limit_ms=limit)
    assert words in str(raised.value)
    assert list(here.journal.handovers()) == []
    assert here.guests.busy_with(GUEST) is None


@pytest.mark.parametrize(("then", "order"), [("switch", "switch now"), ("cancel", "cancel"), (None, "cancel")])
async def test_at_the_deadline_happens_what_was_asked_for(
    hosts: tuple[Host, Host], slow_link: WatchedLink, then: str | None, order: str
) -> None:
    """A guest that must go goes, however long it stands still; any other stays."""
    here, there = hosts
    source = await here.migrate(there, choice=Choice(deadline_ms=Milliseconds(100.0), at_deadline=then))
    trail = source.steering.trail
    await wait_until(lambda: trail.decision is not None or source.runner.why is not None, "the deadline has come")
    slow_link.release()
    end, events = await end_of(here, source.request.handover)
    assert ordered(events)[-1].order == order
    assert end.outcome == ("moved" if then == "switch" else "aborted")


async def test_a_downtime_limit_bounds_the_policy(
    hosts: tuple[Host, Host], slow_link: WatchedLink, made: Callable[..., Choice]
) -> None:
    """No policy sets a longer limit than was asked for; only a forced switchover goes beyond it."""
    here, there = hosts
    then = (SetDowntimeLimit(Milliseconds(500.0), "longer"), SetDowntimeLimit(Milliseconds(20.0), "shorter"))
    source = await here.migrate(there, choice=made((), then), downtime_limit_ms=Milliseconds(60.0))
    limits = source.steering.trail
    await wait_until(lambda: limits.limit_ms == 20.0, "both are carried out")
    await here.handovers.cancel(source.request.handover)
    _, events = await end_of(here, source.request.handover)
    assert [event.order for event in ordered(events)] == ["downtime limit 60.0 ms", "downtime limit 20.0 ms"]


async def test_a_restarted_agent_goes_on_with_the_same_policy_anew(
    hosts: tuple[Host, Host], slow_link: WatchedLink, made: Callable[..., Choice]
) -> None:
    """The policy is in the journal; it begins anew with its first orders, and the feed says that it does."""
    here, there = hosts
    choice = made((SetDowntimeLimit(Milliseconds(77.0), "first"),))
    source = await here.migrate(there, choice=choice)
    await wait_until(lambda: source.runner.machine.state is SourceState.PRECOPY, "it is sending")
    qemu = qemu_of(here, slow_link)
    assert qemu is not None
    await here.stop()
    qemu.downtime_limit_ms = None
    here.build()
    await here.start()
    await wait_until(lambda: qemu.downtime_limit_ms == 77.0, "the policy has begun anew")
    slow_link.release()
    again = here.handovers.source(source.request.handover)
    assert again is not None
    assert again.request.policy == MADE
    end, events = await end_of(here, source.request.handover)
    assert end.outcome == "moved"
    (began,) = [event for event in events if isinstance(event, PolicyBegan)]
    assert (began.policy, began.again) == (
        MADE,
        "the source's agent was restarted; what the policy had seen is gone",
    )
    orders = [item for item in here.traces[source.request.handover].items if isinstance(item, Ordered)]
    assert [order.value for order in orders] == [77.0]


async def test_a_request_of_an_older_journal_goes_on_with_the_default_policy(
    hosts: tuple[Host, Host], slow_link: WatchedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row without the new keys is driven on, within the limit that the older agent had set."""
    here, there = hosts
    source = await here.migrate(there, downtime_limit_ms=Milliseconds(80.0))
    await wait_until(lambda: source.runner.machine.state is SourceState.PRECOPY, "it is sending")
    await here.stop()
    whole = here.journal.handovers

    def older(*, unfinished_only: bool = False) -> list[object]:
        new = ("policy", "max_gap_ms", "deadline_ms", "at_deadline", "throttle")
        rows = whole(unfinished_only=unfinished_only)
        return [replace(row, request={k: v for k, v in row.request.items() if k not in new}) for row in rows]

    monkeypatch.setattr(here.journal, "handovers", older)
    here.build()
    await here.start()
    await wait_until(lambda: here.handovers.source(source.request.handover) is not None, "it is taken up")
    slow_link.release()
    end, events = await end_of(here, source.request.handover)
    assert end.outcome == "moved"
    assert ordered(events)[0].order == "downtime limit 80.0 ms"


async def test_a_policy_that_this_agent_does_not_know_ends_before_the_commit(
    hosts: tuple[Host, Host], slow_link: WatchedLink, made: Callable[..., Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent of another version took the hand-over up: the guest stays at the source, and the reason is told."""
    here, there = hosts
    source = await here.migrate(there, choice=made())
    await wait_until(lambda: source.runner.machine.state is SourceState.PRECOPY, "it is sending")
    await here.stop()
    monkeypatch.setattr(registry, "POLICIES", {k: v for k, v in registry.POLICIES.items() if k != MADE})
    here.build()
    await here.start()
    await wait_until(lambda: here.handovers.source(source.request.handover) is not None, "it is taken up")
    end, _ = await end_of(here, source.request.handover)
    assert end.outcome == "aborted"
    why = [str(row.event) for row in here.journal.events(source.request.handover, "source")]
    assert any("there is no policy 'made-up'" in event for event in why)
    assert_stayed(here, there)


async def test_a_qemu_without_a_capability_leaves_it_out_and_says_why(hosts: tuple[Host, Host]) -> None:
    """The default policy's brake is not there: the migration goes on without it, and without orders to it."""
    here, there = hosts
    bare = replace(FAKE_FACTS, capabilities=FAKE_FACTS.capabilities - {"auto-converge"})
    here.qemus = (FAKE_FACTS, bare)
    source = await here.migrate(there)
    end, events = await end_of(here, source.request.handover)
    assert end.outcome == "moved"
    assert not any("auto-converge" in event.order for event in ordered(events))
    there.qemus = (bare, FAKE_FACTS)
    source = await there.migrate(here, choice=Choice("ovirt"))
    end, events = await end_of(there, source.request.handover)
    (began,) = [event for event in events if isinstance(event, PolicyBegan)]
    assert began.left_out == ("auto-converge: QEMU 10.0.2 at the source has no capability auto-converge (since 1.6)",)


async def test_the_trace_of_a_migration_replays_to_the_same_firing_round(
    hosts: tuple[Host, Host], slow_link: WatchedLink, made: Callable[..., Choice]
) -> None:
    """What was recorded can be stored and read, and the same policy fires on it in the same round, by the same rule."""
    here, there = hosts
    first = (SetDowntimeLimit(NEARLY_ZERO_MS, "not QEMU"),)
    source = await here.migrate(there, choice=made(first, (SwitchNow("enough"),)))
    qemu = qemu_of(here, slow_link)
    assert qemu is not None
    await wait_until(lambda: qemu.downtime_limit_ms == MAX_DOWNTIME_MS, "the rule has fired")
    slow_link.release()
    end, events = await end_of(here, source.request.handover)
    assert end.outcome == "moved"
    fired = ordered(events)[-1]
    assert fired.order == "switch now"
    trace = decode(encode(here.traces[source.request.handover]), "stored")
    assert isinstance(trace.items[-1], Ended)
    assert [item.order for item in trace.items if isinstance(item, Ordered)] == ["SetDowntimeLimit", "SwitchNow"]
    dry = replay(trace, registry.make_policy(MADE, Goal()))
    assert (dry.fired[-1].round, dry.fired[-1].rule) == (fired.round, fired.rule)
    assert dry.fired[-1].remaining_pages == fired.left_pages
