"""What a migration is to be, worked out before anything is touched: policy and goal, stream, first orders. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vmferry.core.bandwidth import Bandwidth, expect
from vmferry.core.capabilities import (
    DEFAULT_STREAM,
    HANDOVER,
    CapabilitySet,
    LeftOut,
    Level,
    Resource,
    StreamWish,
    Transport,
    Wanted,
    Wish,
    choose,
)
from vmferry.core.convergence import DEFAULT, Facts, Goal, Policy, Throttle, Wishes, check_goal
from vmferry.core.convergence.facts import MAX_GAP_MS, AtDeadline, gap_with, limit_within
from vmferry.core.convergence.orders import (
    MAX_DOWNTIME_MS,
    TRIGGER,
    Order,
    SetBandwidth,
    SetDowntimeLimit,
    SetThrottle,
    SwitchNow,
    ThrottleOff,
)
from vmferry.core.convergence.registry import find
from vmferry.core.convergence.throttle import most_stall_ms
from vmferry.core.errors import BadInput, Blocker
from vmferry.core.host import QemuFacts
from vmferry.core.rounds.following import may_follow
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds
from vmferry.ports.hypervisor import MigrationSetup

#: `max-bandwidth` when the link does not say how fast it is: QEMU's own default of 128 MiB/s would be a silent cap.
UNLIMITED = BytesPerSecond(16 * 1024**3)
#: It is a downtime limit of 30 ms (`limit_within`). With 40 ms, 42 moves of a guest that writes 20 MiB/s on a fast link
#: had a pause of 80 ms in the median and 132 ms at the most; with 80 ms there were pauses of 209 ms.
DEFAULT_MAX_GAP = Milliseconds(90.0)
#: Where a policy sets none: QEMU's own default.
_QEMU_LIMIT = Milliseconds(300.0)
NO_THROTTLE = "none"
#: Whichever of the brakes does the least harm; the policy says which.
ANY_THROTTLE = "any"
POSTCOPY = "postcopy-ram"
#: A pipe has none; the destination's own word comes over its agent in any case.
_WAY_BACK = "return-path"
#: A check (core/checks) tells these better than the rules of streams, which would tell them too.
_TOLD_ALREADY = {"qemu.capability-missing", "postcopy.capability-missing", "stream.rdma-in-the-clear"}
_FOLLOWING = "max-postcopy-bandwidth"
#: The lightest brake that QEMU has: 0.1 ms of sleep in 10 ms. A capability cannot be switched off under way.
_AT_REST = 1
#: What QEMU must be set to for a brake; those that are not here need nothing of it.
_CAPABILITY = {Throttle.AUTO_CONVERGE: "auto-converge"}

Qemus = tuple[QemuFacts, QemuFacts]  #: source and destination


@dataclass(frozen=True, slots=True)
class Choice:
    """Which policy, and what it shall reach; None leaves it to the default."""

    policy: str = DEFAULT
    max_gap_ms: Milliseconds | None = None
    deadline_ms: Milliseconds | None = None
    at_deadline: str | None = None  #: an `AtDeadline`
    throttle: str | None = None  #: a `Throttle`, `ANY_THROTTLE` or `NO_THROTTLE`


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, with what it concerns."""

    choice: Choice
    ram_bytes: Bytes
    bandwidth: BytesPerSecond | None  #: asked for, or the link's; None: nobody knows
    downtime_limit_ms: Milliseconds | None  #: no policy sets a longer one, except when it forces the switchover
    postcopy: bool = False  #: allowed, and both hosts can do it: the checks have looked
    stream: StreamWish = DEFAULT_STREAM
    measured: Bandwidth | None = None  #: what a probe of the link saw; it limits nothing

    @property
    def link(self) -> BytesPerSecond | None:
        """Return what the stream can count on; None: nobody knows."""
        return expect(self.bandwidth, self.measured)

    @property
    def first_limit_ms(self) -> Milliseconds:
        """Return the downtime limit of the default policy, before it has ordered one."""
        return self.downtime_limit_ms or limit_within(self.goal.max_gap_ms)

    @property
    def goal(self) -> Goal:
        """Return the goal; a downtime limit is one too: no longer a pause than it makes."""
        gaps = [] if self.choice.max_gap_ms is None else [self.choice.max_gap_ms]
        if self.downtime_limit_ms is not None:
            gaps.append(gap_with(self.downtime_limit_ms))
        goal = Goal(
            max_gap_ms=min(gaps, default=DEFAULT_MAX_GAP),
            deadline_ms=self.choice.deadline_ms,
            at_deadline=AtDeadline(self.choice.at_deadline or AtDeadline.CANCEL),
            allow_postcopy=self.postcopy,
        )
        if self.choice.throttle is None:
            return goal
        return dataclasses.replace(goal, throttles=_allowed(self.choice.throttle))

    @property
    def may_hold_writes(self) -> bool:
        """Whether a policy may order 40-writes; in force from the first round, it is none of a policy's."""
        return Throttle.FORTY_WRITES in self.goal.throttles

    @property
    def most_hold_ms(self) -> Milliseconds:
        """Return for how long 40-writes may hold a write.

        Where a policy orders it, it is what the policy reckons with; else no more than the gap of the goal.
        """
        if self.may_hold_writes:
            return most_stall_ms(limit_within(self.goal.max_gap_ms))
        return min(self.goal.max_gap_ms, MAX_GAP_MS)

    def bound(self, order: Order) -> Order:
        """Return an order with what the person asked for as its bound."""
        limit = self.downtime_limit_ms
        if isinstance(order, SetDowntimeLimit) and limit is not None and order.limit_ms > limit:
            return dataclasses.replace(order, limit_ms=limit)
        if isinstance(order, SetBandwidth):
            return dataclasses.replace(order, bandwidth=self.capped(order.bandwidth))
        return order

    def capped(self, wished: BytesPerSecond | None) -> BytesPerSecond:
        """Return a bandwidth that is no more than was asked for, or than the link gives."""
        return min(wished or UNLIMITED, self.bandwidth or UNLIMITED)


def _allowed(throttle: str) -> frozenset[Throttle]:
    """Return which brakes a policy may use."""
    if throttle == ANY_THROTTLE:
        return frozenset(Throttle)
    if throttle in (NO_THROTTLE, Throttle.FORTY_WRITES):  # the last: in force from the first round, whatever it says
        return frozenset()
    return frozenset({Throttle(throttle)})


def check_asked(asked: Asked) -> None:
    """Return if there is such a policy and it can do what is asked of it.

    Raises:
        NotFound: there is no such policy; its names are told.
        BadInput: the goal cannot be met, or this policy does not look at it, or never uses this throttle.
    """
    choice, kind = asked.choice, find(asked.choice.policy)
    brake = None if choice.throttle == Throttle.FORTY_WRITES else choice.throttle  # it works under any policy
    given = {
        "--max-gap": choice.max_gap_ms,
        "--deadline": choice.deadline_ms,
        "--at-deadline": choice.at_deadline,
        "--throttle": brake,
    }
    if not kind.heeds_goal and (idle := [name for name, value in given.items() if value is not None]):
        raise BadInput(
            f"policy {kind.description.name} has its own idea of when to switch over: {', '.join(idle)} does nothing",
            fix=f"leave that out, or take policy {DEFAULT}; --time-limit ends any migration",
        )
    if choice.at_deadline is not None and choice.deadline_ms is None:
        raise BadInput("--at-deadline says what happens at a deadline, and there is none", fix="give --deadline too")
    if kind.heeds_goal:
        check_goal(asked.goal, Facts(asked.ram_bytes))


def make_facts(asked: Asked, qemus: Qemus | None, *, holds_writes: bool = False) -> Facts:
    """Return what a policy is told of the guest and its link, and which means there are.

    Args:
        asked: what was asked for.
        qemus: None: not known any more; what was asked for counts as there, and QEMU has the last word.
        holds_writes: the guest's helper was asked, and can hold writes.
    """
    common = None if qemus is None else qemus[0].capabilities & qemus[1].capabilities
    brakes = {brake for brake, name in _CAPABILITY.items() if common is None or name in common}
    return Facts(
        ram_bytes=asked.ram_bytes,
        link=asked.link,
        throttles=frozenset(brakes | ({Throttle.FORTY_WRITES} if holds_writes else set())),
        postcopy=asked.postcopy and (common is None or POSTCOPY in common),
    )


def choose_stream(asked: Asked, wishes: Wishes, qemus: Qemus) -> CapabilitySet:
    """Return what both QEMUs are set to, and what of the policy's wishes is left out, with reasons."""
    postcopy = (Wanted(POSTCOPY, Level.REQUIRED), Wanted("postcopy-preempt")) if asked.postcopy else ()
    named = asked.stream.wanted
    theirs = {one.name for one in named}
    policys = (one for one in _wanted(wishes) if one.name not in theirs)
    stream = asked.stream
    handover = tuple(one for one in HANDOVER if one.name != _WAY_BACK) if stream.one_way else HANDOVER
    wish = Wish((*handover, *postcopy, *named, *policys), stream.transport, encrypted=stream.qemu_encrypts)
    return choose(wish, qemus[0], qemus[1], _looked_at(asked))


def all_blockers(found: tuple[Blocker, ...], chosen: CapabilitySet) -> tuple[Blocker, ...]:
    """Return every reason at once: those of guest and hosts, and those of the stream that are not among them."""
    told = {blocker.code for blocker in found}
    return found if told & _TOLD_ALREADY else found + chosen.blockers


def _looked_at(asked: Asked) -> frozenset[Resource]:
    """Return what the checks (core/checks) have found on the hosts, or have told to be missing."""
    postcopy = {Resource.USERFAULTFD} if asked.postcopy else set()
    rdma = {Resource.RDMA_DEVICE, Resource.LOCKED_MEMORY} if asked.stream.transport is Transport.RDMA else set()
    return frozenset(postcopy | rdma)


def _wanted(wishes: Wishes) -> list[Wanted]:
    wanted = {
        "auto-converge": wishes.auto_converge,
        "xbzrle": wishes.xbzrle,
        "multifd": wishes.multifd_channels > 1,
    }
    channels = [Wanted("multifd-channels", value=wishes.multifd_channels)] if wanted["multifd"] else []
    return [*(Wanted(name) for name, is_wanted in wanted.items() if is_wanted), *channels]


def granted(facts: Facts, chosen: CapabilitySet) -> Facts:
    """Return the facts without the means that the stream will not have."""
    on = {name for name, is_on in chosen.capabilities.items() if is_on}
    usable = {brake for brake in facts.throttles if _CAPABILITY.get(brake) in {None, *on}}
    postcopy = facts.postcopy and bool(chosen.capabilities.get(POSTCOPY))
    return dataclasses.replace(facts, throttles=frozenset(usable), postcopy=postcopy, compressed=_is_compressed(chosen))


def _is_compressed(chosen: CapabilitySet) -> bool:
    return bool(chosen.capabilities.get("xbzrle")) or chosen.parameters.get("multifd-compression", "none") != "none"


def make_setup(
    asked: Asked, chosen: CapabilitySet, wishes: Wishes, orders: Iterable[Order], psk_key: str | None
) -> MigrationSetup:
    """Return the set-up with a policy's first orders in it, so that they hold from the first page on."""
    limit, bandwidth = _QEMU_LIMIT, asked.capped(wishes.max_bandwidth)
    parameters = dict(chosen.parameters)
    if asked.postcopy and asked.bandwidth is not None:
        parameters[_FOLLOWING] = asked.bandwidth
    for order in orders:
        if isinstance(order, SetDowntimeLimit):
            limit = order.limit_ms
        elif isinstance(order, SwitchNow):
            limit = MAX_DOWNTIME_MS
        elif isinstance(order, SetBandwidth):
            bandwidth = asked.capped(order.bandwidth)
        elif isinstance(order, SetThrottle | ThrottleOff):
            known = {name: value for name, value in throttle_parameters(order).items() if name in parameters}
            parameters.update(known)
    return MigrationSetup(dict(chosen.capabilities), bandwidth, limit, parameters=parameters, psk_key=psk_key)


def following_parameters(asked: Asked, since_ms: Milliseconds, link: BytesPerSecond) -> Mapping[str, int]:
    """Return how fast post-copy's pages may follow, in QEMU's parameters; `may_follow` says what since and link are.

    A link that carried nothing yet is as fast as it was measured.
    """
    measured = asked.link if asked.measured is not None else None
    limit = may_follow(since_ms, link or measured or BytesPerSecond(0))
    return {_FOLLOWING: asked.capped(limit) if limit or asked.bandwidth else 0}  # 0: no limit


def throttle_parameters(order: SetThrottle | ThrottleOff) -> Mapping[str, int]:
    """Return a brake in QEMU's parameters; a step as large as the level, so that one pull does.

    Raises:
        BadInput: it is not QEMU's.
    """
    level = order.level if isinstance(order, SetThrottle) else _AT_REST
    if order.throttle is Throttle.AUTO_CONVERGE:
        trigger = order.trigger if isinstance(order, SetThrottle) else TRIGGER
        levels = {"cpu-throttle-initial": level, "cpu-throttle-increment": level, "max-cpu-throttle": level}
        return {**levels, "throttle-trigger-threshold": trigger}
    raise BadInput(f"throttle {order.throttle} is none of QEMU's", fix="take another policy or throttle")


def left_out_text(left: LeftOut) -> str:
    """Return what a policy cannot have, and why."""
    return f"{left.wanted.name}: {left.why}"


def policy_of(asked: Asked) -> Policy:
    """Return a new policy; raises as `find`."""
    return find(asked.choice.policy)(asked.goal)
