"""The table against real QEMUs, pair by pair: it may refuse more than they do, and says so; never less."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from tests.capabilities.bare_qemu import BareQemu

from vmferry.core.capabilities import (
    BY_NAME,
    EXCLUSIONS,
    FEATURES,
    REQUIREMENTS,
    Kind,
    Level,
    Resource,
    Transport,
    Verdict,
    Wanted,
    Wish,
    choose,
)
from vmferry.core.host import QemuFacts
from vmferry.lab.toolchain import QemuBinary

pytestmark = pytest.mark.real

#: A resource that this machine lacks: QEMU refuses for that reason, before it looks at a pair.
_ABSENT = {"dirty-limit": "dirty-ring-size"}


@pytest.fixture(params=["source", "destination"])
def qemu(request: pytest.FixtureRequest, binary: QemuBinary) -> Iterator[BareQemu]:
    """A fresh process without a guest: QEMU judges capabilities all the same."""
    more = ("-incoming", "defer") if request.param == "destination" else ()
    process = BareQemu(binary, "-machine", "none", "-S", *more)
    yield process
    process.close()


def ask_us(facts: QemuFacts, names: tuple[str, ...]) -> bool:
    """Tell whether our table lets these capabilities be together, over whatever transport suits them best."""
    full = frozenset(Resource)
    wanted = tuple(Wanted(name, Level.REQUIRED) for name in names)
    return any(
        not choose(Wish(wanted, transport, encrypted=False), facts, facts, full).blockers
        for transport in (Transport.TCP, Transport.FILE, Transport.RDMA)
    )


def foretold(version: tuple[int, int, int], names: tuple[str, ...]) -> bool:
    """Tell whether the table says that this QEMU refuses the set when it is set."""
    on = set(names)
    pairs = [rule for rule in EXCLUSIONS if {rule.one, rule.other} <= on]
    lacking = [rule for rule in REQUIREMENTS if rule.user in on and rule.needs not in on and rule.needs != "file"]
    return any(rule.verdict(version) is Verdict.REFUSED for rule in (*pairs, *lacking))


def test_every_pair(qemu: BareQemu, binary: QemuBinary) -> None:
    """QEMU never refuses what we allow; and it refuses exactly what the table says that it refuses."""
    known = qemu.capabilities()
    facts = QemuFacts(
        binary.version,
        frozenset(),
        frozenset(),
        frozenset(known),
        frozenset(qemu.query("query-migrate-parameters")),
        frozenset(),
    )
    assert set(known) <= set(BY_NAME), "a capability that the table does not know"
    seen = {"refused by both": 0, "refused by us only": 0, "allowed by both": 0}
    for names in [*((name,) for name in known), *itertools.combinations(known, 2)]:
        refusal = qemu.set_on(names, known)
        qemu.set_on((), known)
        if refusal is not None and any(_ABSENT.get(name, "?") in refusal for name in names):
            continue
        allowed = ask_us(facts, names)
        assert not (allowed and refusal), f"{names}: we allow it, QEMU says {refusal}"
        if not any(BY_NAME[name].never for name in names):
            assert foretold(binary.version, names) is (refusal is not None), f"{names}: QEMU says {refusal}"
        kind = "refused by both" if refusal else "allowed by both" if allowed else "refused by us only"
        seen[kind] += 1
    assert all(seen.values()), seen
    print(f"QEMU {binary.version}: {seen}")  # noqa: T201 - the counts are what the run is for


def test_defaults_and_history(qemu: BareQemu, binary: QemuBinary) -> None:
    """A fresh QEMU has the table's defaults, and has exactly what the table says that its version has."""
    parameters = qemu.query("query-migrate-parameters")
    capabilities = set(qemu.capabilities())
    for feature in FEATURES:
        there = feature.since <= binary.version and (feature.removed is None or binary.version < feature.removed)
        if feature.kind is Kind.CAPABILITY:
            assert (feature.name in capabilities) is there, feature
        if feature.kind is Kind.PARAMETER:
            assert (feature.name in parameters) is there, feature
            assert not there or parameters[feature.name] == feature.default, feature
    assert parameters["multifd-compression"] == "none"


def test_values(qemu: BareQemu, binary: QemuBinary) -> None:
    """QEMU takes the first and the last value of every parameter, and the table refuses what it refuses beyond them."""
    parameters = qemu.query("query-migrate-parameters")
    for feature in FEATURES:
        if feature.kind is not Kind.PARAMETER or feature.name not in parameters:
            continue
        for value in edges(feature.values):
            start = {"cpu-throttle-initial": 1} if feature.name == "max-cpu-throttle" else {}
            refusal = qemu.ask("migrate-set-parameters", **{**start, feature.name: value})
            assert refusal is None, f"{feature.name}={value}: {refusal}"
            qemu.ask("migrate-set-parameters", **{feature.name: feature.default})
    for name, value in (("multifd-channels", 0), ("xbzrle-cache-size", 5000)):
        values = BY_NAME[name].values
        assert values is not None
        assert not values.allows(value)
        assert qemu.ask("migrate-set-parameters", **{name: value}) is not None


def edges(values: object) -> tuple[object, ...]:
    """Return what lies at the edges; a size at most a GiB, since QEMU allocates it."""
    if hasattr(values, "words"):
        return tuple(values.words)
    assert hasattr(values, "low")
    assert hasattr(values, "high")
    return values.low, min(values.high, 1 << 30)
