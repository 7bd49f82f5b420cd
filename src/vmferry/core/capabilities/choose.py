"""Chooses what a migration is set to, before it starts: pure and deterministic, never raises.

The order: what is required first, together with what it needs of the wish, then what is preferred; among equals the
order of `FEATURES`: the hand-over itself, then what makes the guest arrive at all (post-copy, throttling), then what
makes it arrive sooner (several channels, compression, differences). Each is granted unless it clashes with what was
granted before: so of two that exclude each other the earlier one stays, and the later one is told why.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmferry.core.capabilities.features import (
    BY_NAME,
    COMPRESSION_PARAMETER,
    COMPRESSION_PREFIX,
    FEATURES,
    NO_COMPRESSION,
    ORDER,
    Feature,
    Kind,
    Value,
    version_text,
)
from vmferry.core.capabilities.rules import EXCLUSIONS, HOST_NEEDS, REQUIREMENTS, Exclusion, Resource, Verdict
from vmferry.core.capabilities.wish import CapabilitySet, LeftOut, Level, Wanted, Wish
from vmferry.core.errors import Blocker
from vmferry.core.host import QemuFacts

_WISHABLE = (Kind.CAPABILITY, Kind.COMPRESSION, Kind.PARAMETER)
_DEFAULT_THROTTLE = 20  #: `cpu-throttle-initial` where nobody asks for another


@dataclass(frozen=True, slots=True)
class _Reason:
    why: str
    fix: str
    follows: str | None = None


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two QEMUs and what the hosts offer that a feature concerns."""

    source: QemuFacts
    destination: QemuFacts
    offered: frozenset[Resource]

    def why_missing(self, feature: Feature) -> _Reason | None:
        """Return which QEMU lacks it."""
        for side, qemu in (("source", self.source), ("destination", self.destination)):
            if not _has(qemu, feature):
                here = f"QEMU {version_text(qemu.version)} at the {side}"
                return _Reason(f"{here} has no {feature.kind} {feature.name} ({_history(feature)})", _other_qemu(side))
        return None

    def why_not_offered(self, name: str) -> _Reason | None:
        """Return what the hosts do not offer to it."""
        for need in HOST_NEEDS:
            if need.user == name and need.resource not in self.offered:
                where = f"{need.resource} at the {need.where}"
                return _Reason(f"{name} needs {where}, and it was not found there", f"provide {where}")
        return None

    def verdict(self, rule: Exclusion) -> tuple[Verdict, str] | None:
        """Return what the QEMU for which a rule holds does, and which one it is."""
        for side, qemu in (("source", self.source), ("destination", self.destination)):
            if verdict := rule.verdict(qemu.version):
                return verdict, f"QEMU {version_text(qemu.version)} at the {side}"
        return None

    def why_excluded(self, name: str, on: frozenset[str]) -> _Reason | None:
        """Return which of those that are on excludes it."""
        for rule in EXCLUSIONS:
            if name not in (rule.one, rule.other) or (rule.unless is not None and rule.unless in on):
                continue
            other = rule.other if name == rule.one else rule.one
            if other in on and (found := self.verdict(rule)) is not None:
                verdict, where = found
                return _Reason(f"{other} excludes {name}: {rule.why} ({where}: {verdict})", f"choose {name} or {other}")
        return None


def choose(wish: Wish, source: QemuFacts, destination: QemuFacts, offered: frozenset[Resource]) -> CapabilitySet:
    """Return the one set for both sides, and for every wish that is not in it the reason.

    Every wish is in `chosen` or in `left_out`. A required one that is left out, a transport that cannot be used, or
    encryption that would not happen is a blocker; nothing is chosen where what is given does not go together.

    Args:
        wish: what is asked for.
        source: the QEMU in which the guest runs.
        destination: the QEMU that receives it.
        offered: what was looked for, and found at each side that needs it; what nobody looked at is not there.
    """
    pair = _Pair(source, destination, offered)
    given = (str(wish.transport), "tls") if wish.encrypted else (str(wish.transport),)
    blockers = _given_blockers(pair, given)
    chosen: list[Wanted] = []
    left_out: list[LeftOut] = []
    for wanted in _ordered(wish):
        on = frozenset((*given, *(one.name for one in chosen)))
        dead = _Reason(f"{blockers[0].what}", blockers[0].fix) if blockers else None
        if reason := dead or _why_not(pair, wanted, on, wish):
            left_out.append(LeftOut(wanted, reason.why, reason.fix, reason.follows))
        else:
            chosen.append(wanted)
    lacking = {one.wanted.name for one in left_out if one.wanted.level is Level.REQUIRED and not blockers}
    required = [_blocker(one) for one in left_out if one.wanted.name in lacking and one.follows not in lacking]
    return CapabilitySet(
        transport=wish.transport,
        encrypted=wish.encrypted,
        chosen=tuple(chosen),
        capabilities={one.name: True for one in chosen if BY_NAME[one.name].kind is Kind.CAPABILITY},
        parameters=_parameters(pair, chosen),
        left_out=tuple(left_out),
        blockers=(*blockers, *required),
    )


def _given_blockers(pair: _Pair, given: tuple[str, ...]) -> tuple[Blocker, ...]:
    blockers = []
    for place, name in enumerate(given):
        never = BY_NAME[name].never
        reason = (
            (_Reason(f"transport {name} is never used: {never}", "name another transport") if never else None)
            or pair.why_missing(BY_NAME[name])
            or pair.why_not_offered(name)
            or pair.why_excluded(name, frozenset(given[:place]))
        )
        if reason is not None:
            blockers.append(Blocker("stream.transport", f"The stream cannot travel: {reason.why}", reason.fix))
    return tuple(blockers)


def _ordered(wish: Wish) -> list[Wanted]:
    """Return the wishes in the order in which they are granted."""
    first = {one.name for one in wish.wanted if one.level is Level.REQUIRED}
    # Users stand behind what they need in the table, so one pass from its end finds what needs need.
    for rule in sorted(REQUIREMENTS, key=lambda rule: ORDER[rule.user], reverse=True):
        if rule.user in first:
            first.add(rule.needs)
    return sorted(wish.wanted, key=lambda one: (one.name not in first, ORDER.get(one.name, len(ORDER)), one.name))


def _why_not(pair: _Pair, wanted: Wanted, on: frozenset[str], wish: Wish) -> _Reason | None:
    feature = BY_NAME.get(wanted.name)
    if feature is None or feature.kind not in _WISHABLE:
        return _Reason(f"{wanted.name} is nothing that can be wished for a stream", "see docs/capabilities.md")
    if feature.never is not None:
        return _Reason(f"{feature.name} is never used: {feature.never}", "leave it out")
    return (
        _why_bad_value(feature, wanted.value)
        or pair.why_missing(feature)
        or pair.why_not_offered(feature.name)
        or _why_alone(feature.name, on, wish)
        or _why_throttle(wanted, wish)
        or pair.why_excluded(feature.name, on)
    )


def _why_bad_value(feature: Feature, value: Value | None) -> _Reason | None:
    if feature.values is None:
        if value is None:
            return None
        return _Reason(f"{feature.kind} {feature.name} takes no value, seen {value!r}", "leave the value out")
    if feature.values.allows(value):
        return None
    return _Reason(f"{feature.name} is {value!r}, it must be {feature.values}", "name a value that QEMU takes")


def _why_alone(name: str, on: frozenset[str], wish: Wish) -> _Reason | None:
    for rule in REQUIREMENTS:
        if rule.user == name and rule.needs not in on:
            asked = any(one.name == rule.needs for one in wish.wanted)
            state = "is left out" if asked else "was not asked for"
            told = f"{name} needs {rule.needs}, which {state}: {rule.why}"
            return _Reason(told, f"use {rule.needs}", rule.needs if asked else None)
    return None


def _why_throttle(wanted: Wanted, wish: Wish) -> _Reason | None:
    """Return why QEMU would not take the end of the throttle's range: it must not lie before its start."""
    if wanted.name != "max-cpu-throttle" or not isinstance(wanted.value, int):
        return None
    initial = next((one.value for one in wish.wanted if one.name == "cpu-throttle-initial"), None)
    start = initial if isinstance(initial, int) else _DEFAULT_THROTTLE
    if wanted.value >= start:
        return None
    return _Reason(
        f"max-cpu-throttle is {wanted.value} %, below cpu-throttle-initial, {start} %",
        f"raise it to {start} % or more, or start lower",
    )


def _parameters(pair: _Pair, chosen: list[Wanted]) -> dict[str, Value]:
    common = pair.source.parameters & pair.destination.parameters
    values: dict[str, Value] = {
        feature.name: feature.default for feature in FEATURES if feature.name in common and feature.default is not None
    }
    if COMPRESSION_PARAMETER in common:
        values[COMPRESSION_PARAMETER] = NO_COMPRESSION
    for one in chosen:
        if BY_NAME[one.name].kind is Kind.COMPRESSION:
            values[COMPRESSION_PARAMETER] = one.name.removeprefix(COMPRESSION_PREFIX)
        elif one.value is not None:
            values[one.name] = one.value
    return values


def _has(qemu: QemuFacts, feature: Feature) -> bool:
    """Tell whether a QEMU has it; asked, except for transports, which QMP cannot be asked about."""
    if feature.kind is Kind.CAPABILITY:
        return feature.name in qemu.capabilities
    if feature.kind is Kind.PARAMETER:
        return feature.name in qemu.parameters
    if feature.kind is Kind.COMPRESSION:
        return feature.name.removeprefix(COMPRESSION_PREFIX) in qemu.compressions
    return qemu.version >= feature.since


def _history(feature: Feature) -> str:
    until = "" if feature.removed is None else f", removed in {version_text(feature.removed)}"
    built = ", where it is built with it" if feature.kind is Kind.COMPRESSION else ""
    return f"since {version_text(feature.since)}{until}{built}"


def _other_qemu(side: str) -> str:
    restart = " and restart the guest under it" if side == "source" else ""
    return f"update QEMU at the {side}{restart}, or do without"


def _blocker(left: LeftOut) -> Blocker:
    return Blocker("stream.required", f"{left.wanted.name} is required and cannot be had: {left.why}", left.fix)
