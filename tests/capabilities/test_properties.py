"""Whatever is wished, of whatever QEMUs: what is chosen goes together, and nothing gets lost."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from tests.capabilities.conftest import make_qemu

from vmferry.core.capabilities import (
    BY_NAME,
    EXCLUSIONS,
    FEATURES,
    HOST_NEEDS,
    REQUIREMENTS,
    CapabilitySet,
    Level,
    Resource,
    Transport,
    Wanted,
    Wish,
    choose,
)
from vmferry.core.capabilities.features import Value
from vmferry.core.host import QemuFacts

_NAMES = sorted(BY_NAME)
_VALUES: st.SearchStrategy[Value | None] = st.one_of(
    st.none(), st.integers(-1, 300), st.sampled_from([4096, 2**20, "none", "multifd", True, False])
)


@st.composite
def _wanted(draw: st.DrawFn) -> Wanted:
    """Draw a wish, mostly one with a value that is allowed."""
    name = draw(st.one_of(st.sampled_from(_NAMES), st.text(max_size=4)))
    level = draw(st.sampled_from(Level))
    feature = BY_NAME.get(name)
    sane: st.SearchStrategy[Value | None] = st.just(None if feature is None else feature.default)
    return Wanted(name, level, draw(st.one_of(sane, sane, sane, _VALUES)))


_WISHES = st.builds(
    Wish,
    st.lists(_wanted(), max_size=12, unique_by=lambda one: one.name).map(tuple),
    st.sampled_from(Transport),
    st.booleans(),
)
_QEMUS = st.sampled_from([(7, 2), (8, 0), (8, 1), (8, 2), (9, 0), (9, 1), (10, 0), (10, 1), (10, 2)]).map(
    lambda version: make_qemu(*version)
)
_SOME = st.frozensets(st.sampled_from(Resource))
_FULL = st.one_of(st.just(frozenset(Resource)), _SOME)


def _on(found: CapabilitySet) -> set[str]:
    """Return everything that is on, also what is given."""
    given = {str(found.transport)} | ({"tls"} if found.encrypted else set())
    return given | {one.name for one in found.chosen}


@given(_WISHES, _QEMUS, _QEMUS, _FULL)
def test_chosen_sets_are_free_of_exclusions(
    wish: Wish, source: QemuFacts, destination: QemuFacts, offered: frozenset[Resource]
) -> None:
    """No two of a set exclude each other on either QEMU, none lacks what it needs, both QEMUs have them all."""
    found = choose(wish, source, destination, offered)
    if any(blocker.code == "stream.transport" for blocker in found.blockers):
        assert found.chosen == ()
        return
    on = _on(found)
    for rule, qemu in itertools.product(EXCLUSIONS, (source, destination)):
        together = {rule.one, rule.other} <= on and (rule.unless is None or rule.unless not in on)
        assert not (together and rule.verdict(qemu.version)), rule
    assert [r for r in REQUIREMENTS if r.user in on and r.needs not in on] == []
    assert [need for need in HOST_NEEDS if need.user in on and need.resource not in offered] == []
    for qemu in (source, destination):
        assert set(found.capabilities) <= qemu.capabilities
        assert set(found.parameters) <= qemu.parameters


@given(_WISHES, _QEMUS, _QEMUS, _FULL)
def test_nothing_gets_lost(wish: Wish, source: QemuFacts, destination: QemuFacts, offered: frozenset[Resource]) -> None:
    """Every wish is chosen or left out with a reason and a fix, never both; a required one that is left out blocks."""
    found = choose(wish, source, destination, offered)
    both = [*found.chosen, *(left.wanted for left in found.left_out)]
    assert sorted(both, key=repr) == sorted(wish.wanted, key=repr)
    assert all(left.why and left.fix for left in found.left_out)
    missing = [left for left in found.left_out if left.wanted.level is Level.REQUIRED]
    assert not missing or found.blockers
    assert all(blocker.what and blocker.fix for blocker in found.blockers)


@given(_WISHES, _QEMUS, _QEMUS, _FULL, st.randoms(use_true_random=False))
def test_the_order_of_the_wishes_does_not_matter(
    wish: Wish, source: QemuFacts, destination: QemuFacts, offered: frozenset[Resource], random: object
) -> None:
    """The same wishes in another order give the same set."""
    mixed = list(wish.wanted)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    again = Wish(tuple(mixed), wish.transport, wish.encrypted)
    assert choose(again, source, destination, offered) == choose(wish, source, destination, offered)


@given(_WISHES, st.from_type(QemuFacts), st.from_type(QemuFacts), _SOME)
def test_any_qemu_gives_an_answer(
    wish: Wish, source: QemuFacts, destination: QemuFacts, offered: frozenset[Resource]
) -> None:
    """Nothing that a host says makes the choice raise."""
    found = choose(wish, source, destination, offered)
    assert set(found.capabilities) <= source.capabilities & destination.capabilities


def test_every_wishable_capability_can_be_had_somewhere() -> None:
    """A row that no QEMU with every resource could ever be granted would be dead."""
    full = frozenset(Resource)
    dead = []
    for feature in FEATURES:
        if feature.never is not None or feature.kind in {"transport", "given"}:
            continue
        wanted = (feature.name, *_needs(feature.name))
        ways = [way for way in Transport if way in wanted] or [Transport.TCP]
        wish = [Wanted(name, Level.REQUIRED, BY_NAME[name].default) for name in wanted if name not in ways]
        if choose(Wish(tuple(wish), ways[0], encrypted=False), make_qemu(10, 1), make_qemu(10, 1), full).blockers:
            dead.append(feature.name)
    assert dead == []


def _needs(name: str) -> list[str]:
    direct = [rule.needs for rule in REQUIREMENTS if rule.user == name]
    return direct + [deeper for one in direct for deeper in _needs(one)]
