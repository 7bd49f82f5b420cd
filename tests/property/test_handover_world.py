"""Whole hand-overs in sim/: every fault between any two steps, and any order of anything; the promises always hold."""

import os
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vmferry.core.handover.states import DestinationState, Side, SourceState
from vmferry.sim.faults import FAULTS
from vmferry.sim.qemu import Fate
from vmferry.sim.world import World

VARIANTS: dict[str, Callable[[], World]] = {
    "running guest": World,
    "paused guest": partial(World, guest_runs=False),
    "one-way channel": partial(World, return_path=False),
    "post-copy": partial(World, postcopy=True),
    "post-copy, paused guest": partial(World, postcopy=True, guest_runs=False),
    "post-copy, QEMU 7.2": partial(World, postcopy=True, strands=False),
    "post-copy, few pages": partial(World, postcopy=True, pages=2),
}
STEPS = 72  #: an undisturbed hand-over takes fewer
SIDES = st.sampled_from(Side)
NUMBERS = st.integers(0, 30)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_undisturbed_handover_arrives(variant: str) -> None:
    """With nothing in its way the guest arrives, in fewer steps than the tests below disturb."""
    world = VARIANTS[variant]()
    world.live(STEPS)
    assert (world.source.state, world.destination.state) == (SourceState.DONE, DestinationState.RUNNING)
    assert world.settle() is Fate.ONE
    assert world.guest.present == int(world.guest.runs)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_fault_anywhere(variant: str, fault: str) -> None:
    """One fault between any two steps: never two, never the past, and it ends as the states' `needs` say."""
    for before in range(STEPS):
        one_fault(variant, before, fault)


def test_late_order_goes_the_way_of_precopy() -> None:
    """Post-copy ordered when QEMU stands in pre-switchover already comes too late; the guest arrives all the same."""
    world = World(postcopy=True)
    world.live_until(lambda: world.source.state is SourceState.POSTCOPY_ORDERED)
    world.stream.converges = True
    assert world.advance_qemu(Side.SOURCE)
    world.live_until(lambda: world.source.state is SourceState.POSTCOPY_CROSSING)
    assert not world.stream.postcopy
    assert world.settle() is Fate.ONE
    assert world.destination.state is DestinationState.RUNNING


@pytest.mark.parametrize("first", FAULTS)
@pytest.mark.parametrize("variant", ["running guest", "post-copy"])
def test_two_faults_in_a_row(variant: str, first: str) -> None:
    """A second fault some steps after the first one breaks no promise either (a sample of all pairs)."""
    two_faults(variant, first, range(0, STEPS, 6), (0, 3, 8))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif("VMFERRY_LONG" not in os.environ, reason="three minutes; set VMFERRY_LONG=1 to run it")
@pytest.mark.parametrize("first", FAULTS)
@pytest.mark.parametrize("variant", ["running guest", "post-copy", "post-copy, QEMU 7.2"])
def test_two_faults_anywhere(variant: str, first: str) -> None:
    """A second fault soon or late after a first one, anywhere, breaks no promise."""
    two_faults(variant, first, range(STEPS), (0, 1, 2, 4, 7, 11, 16))


def one_fault(variant: str, before: int, fault: str) -> None:
    """Live so many steps, have one fault, and hold the promises to the end."""
    world = VARIANTS[variant]()
    world.live(before)
    FAULTS[fault](world)
    world.check()
    world.settle()


def two_faults(variant: str, first: str, befores: range, betweens: tuple[int, ...]) -> None:
    """Have every second fault after a first one."""
    for before in befores:
        for between in betweens:
            for second in FAULTS:
                world = VARIANTS[variant]()
                world.live(before)
                FAULTS[first](world)
                world.live(between)
                FAULTS[second](world)
                world.check()
                world.settle()


class AnyOrder(RuleBasedStateMachine):
    """A hand-over in which the next thing may be anything."""

    world: World

    @initialize(guest_runs=st.booleans(), return_path=st.booleans(), ahead=NUMBERS)
    def begin_precopy(self, guest_runs: bool, return_path: bool, ahead: int) -> None:
        self.world = World(guest_runs=guest_runs, return_path=return_path)
        self.world.live(ahead)

    @initialize(
        guest_runs=st.booleans(),
        converges=st.booleans(),
        strands=st.booleans(),
        few=st.booleans(),
        ahead=st.integers(0, 60),
    )
    def begin_postcopy(self, guest_runs: bool, converges: bool, strands: bool, few: bool, ahead: int) -> None:
        pages = 2 if few else 16
        self.world = World(guest_runs=guest_runs, postcopy=True, converges=converges, strands=strands, pages=pages)
        self.world.live(ahead)

    @rule(number=NUMBERS)
    def something_goes_on(self, number: int) -> None:
        choices = self.world.choices()
        if choices:
            choices[number % len(choices)][1]()

    @rule(side=SIDES)
    def a_qemu_goes_on(self, side: Side) -> None:
        self.world.advance_qemu(side)

    @rule(number=st.integers(1, 6))
    def everything_goes_on(self, number: int) -> None:
        self.world.live(number)

    @precondition(lambda self: self.world.network.messages and self.world.network.up)
    @rule(number=NUMBERS, keep=st.booleans())
    def a_message_arrives(self, number: int, keep: bool) -> None:
        messages = self.world.network.messages
        self.world.deliver(messages[number % len(messages)], keep=keep)

    @precondition(lambda self: self.world.network.messages)
    @rule(number=NUMBERS)
    def a_message_is_lost(self, number: int) -> None:
        messages = self.world.network.messages
        messages.pop(number % len(messages))

    @rule(side=SIDES, death_first=st.booleans())
    def an_agent_returns(self, side: Side, death_first: bool) -> None:
        self.world.restart_agent(side, death_first=death_first)

    @rule(fault=st.sampled_from(sorted(FAULTS)))
    def a_fault_happens(self, fault: str) -> None:
        FAULTS[fault](self.world)

    @invariant()
    def promises_are_kept(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.settle()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.__doc__ = (
    "Whatever happens in whatever order, no promise is broken, and when all heals the guest is found."
)
TestAnyOrder.settings = settings(
    max_examples=20_000 if "VMFERRY_LONG" in os.environ else 400,
    stateful_step_count=40,
    deadline=None,
    derandomize="VMFERRY_LONG" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
