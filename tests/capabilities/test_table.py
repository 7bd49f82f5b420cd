"""The table is in order: every name is known, needs stand before their users, and spans do not overlap."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vmferry.core.capabilities import BY_NAME, EXCLUSIONS, FEATURES, HOST_NEEDS, REQUIREMENTS, Kind, Version
from vmferry.core.capabilities.rules import Exclusion, Requirement, Span

VERSIONS: tuple[Version, ...] = ((7, 2, 22), (8, 0, 0), (8, 1, 0), (8, 2, 9), (9, 1, 0), (10, 0, 2), (10, 1, 0))


def test_every_name_is_a_row() -> None:
    """No rule speaks of something that the first table does not explain."""
    names = [name for rule in EXCLUSIONS for name in (rule.one, rule.other, rule.unless) if name is not None]
    names += [name for need in REQUIREMENTS for name in (need.user, need.needs)] + [n.user for n in HOST_NEEDS]
    assert set(names) <= set(BY_NAME)
    assert len(BY_NAME) == len(FEATURES)


def test_what_is_needed_is_granted_first() -> None:
    """What another one needs, or what makes a pair possible, stands before it: one pass in table order is enough."""
    order = list(BY_NAME)
    assert [r for r in REQUIREMENTS if order.index(r.needs) >= order.index(r.user)] == []
    late = [r for r in EXCLUSIONS if r.unless and order.index(r.unless) > max(map(order.index, (r.one, r.other)))]
    assert late == []


def test_no_pair_stands_twice() -> None:
    """Two rows about one pair could say two things."""
    pairs = [frozenset((rule.one, rule.other)) for rule in EXCLUSIONS]
    assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize("rule", [*EXCLUSIONS, *REQUIREMENTS], ids=str)
def test_every_rule_has_a_reason_a_source_and_one_verdict_per_version(rule: Exclusion | Requirement) -> None:
    """A version finds at most one span, and a person finds the reason and where it is from."""
    assert rule.why
    assert rule.source
    assert all(len(_covering(rule.spans, version)) <= 1 for version in VERSIONS)


def test_parameters_take_their_own_default() -> None:
    """The default is one of the values."""
    for feature in FEATURES:
        if feature.kind is Kind.PARAMETER:
            assert feature.values is not None
            assert feature.values.allows(feature.default), feature


def _covering(spans: Sequence[Span], version: Version) -> list[Span]:
    return [span for span in spans if span.covers(version)]
