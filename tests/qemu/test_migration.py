"""Setups and readings: our names and units here, QAPI's there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmferry.core.capabilities.features import BY_NAME, Kind
from vmferry.core.capabilities.rules import EXCLUSIONS, REQUIREMENTS, Exclusion
from vmferry.core.errors import BadInput
from vmferry.core.units import MIB, BytesPerSecond, Milliseconds
from vmferry.ports.hypervisor import MigrationSetup, MigrationStatus
from vmferry.qemu.credentials import PSK_OBJECT
from vmferry.qemu.migration import (
    NO_BANDWIDTH_LIMIT,
    changed_capabilities,
    check_setup,
    parameters,
    sample,
    uri,
)

SETUP = MigrationSetup({}, BytesPerSecond(100 * MIB), Milliseconds(300))
KNOWN = frozenset({"max-bandwidth", "downtime-limit", "multifd-channels", "tls-creds"})
OLD = (7, 2, 0)


def known_capabilities() -> frozenset[str]:
    """Return all that the tables speak of."""
    return frozenset(name for name, feature in BY_NAME.items() if feature.kind is Kind.CAPABILITY)


#: pairs of capabilities that 7.2 does not do, or does wrong
PAIRS = [
    rule for rule in EXCLUSIONS if {rule.one, rule.other} <= known_capabilities() and rule.verdict(OLD) is not None
]


def with_needs(*names: str) -> dict[str, bool]:
    """Return capabilities that are on, with all that they need."""
    needs = {rule.user: rule.needs for rule in REQUIREMENTS if rule.needs in known_capabilities()}
    found = list(names)
    while more := [needs[name] for name in found if name in needs and needs[name] not in found]:
        found += more
    return dict.fromkeys(found, True)


@pytest.mark.parametrize("rule", PAIRS, ids=lambda rule: f"{rule.one}+{rule.other}")
def test_exclusions(rule: Exclusion) -> None:
    """Every pair of the table is refused, and each half alone is not."""
    with pytest.raises(BadInput, match="exclude each other on QEMU 7.2"):
        check_setup(replace(SETUP, capabilities=with_needs(rule.one, rule.other)), known_capabilities(), OLD)
    for alone in (rule.one, rule.other):
        check_setup(replace(SETUP, capabilities=with_needs(alone)), known_capabilities(), OLD)


def test_an_exclusion_ends_with_its_version() -> None:
    """Multifd with post-copy is refused up to 10.0 and allowed from 10.1."""
    setup = replace(SETUP, capabilities={"multifd": True, "postcopy-ram": True})
    with pytest.raises(BadInput):
        check_setup(setup, known_capabilities(), (10, 0, 2))
    check_setup(setup, known_capabilities(), (10, 1, 0))


@pytest.mark.parametrize(
    ("needed", "user"),
    [("postcopy-ram", "postcopy-preempt"), ("return-path", "switchover-ack"), ("multifd", "zero-copy-send")],
)
def test_requirements(needed: str, user: str) -> None:
    """A capability without the one that it needs is refused, naming it."""
    with pytest.raises(BadInput, match=needed):
        check_setup(replace(SETUP, capabilities={user: True, needed: False}), known_capabilities(), OLD)


@pytest.mark.parametrize("name", ["compress", "release-ram", "block", "x-colo"])
def test_what_is_never_used(name: str) -> None:
    """What breaks recovery, or is gone from newer versions, is refused also where QEMU knows it."""
    with pytest.raises(BadInput, match=f"{name} is never used"):
        check_setup(replace(SETUP, capabilities={name: True}), known_capabilities(), OLD)


def test_off_is_no_conflict() -> None:
    """A capability that is switched off may be unknown and excludes nothing."""
    check_setup(
        replace(SETUP, capabilities={"multifd": True, "xbzrle": False, "new": False}), known_capabilities(), OLD
    )


def test_zero_copy_is_plain() -> None:
    """Zero-copy with a key is refused."""
    setup = replace(SETUP, capabilities={"multifd": True, "zero-copy-send": True})
    check_setup(setup, known_capabilities(), OLD)
    with pytest.raises(BadInput, match="zero-copy-send and tls exclude"):
        check_setup(replace(setup, psk_key="00"), known_capabilities(), OLD)


def test_capabilities_of_an_earlier_migration_go_off() -> None:
    """Only differences are set, and what was left on goes off."""
    current = {"events": False, "multifd": True, "return-path": True}
    rows = changed_capabilities({"events": True, "return-path": True}, current)
    assert rows == [{"capability": "events", "state": True}, {"capability": "multifd", "state": False}]


def test_parameters_in_qemus_units() -> None:
    """Bandwidth goes out in bytes/s, the limit in whole ms, the key as its object's name."""
    setup = replace(SETUP, downtime_limit_ms=Milliseconds(299.6), psk_key="00", parameters={"multifd-channels": 4})
    assert parameters(setup, KNOWN) == {
        "max-bandwidth": 100 * MIB,
        "downtime-limit": 300,
        "tls-creds": PSK_OBJECT,
        "multifd-channels": 4,
    }


def test_no_silent_bandwidth_limit() -> None:
    """Without a limit of ours QEMU's own 128 MiB/s is lifted, and without a key TLS is off."""
    chosen = parameters(replace(SETUP, max_bandwidth=None), KNOWN)
    assert (chosen["max-bandwidth"], chosen["tls-creds"]) == (NO_BANDWIDTH_LIMIT, "")


def test_unknown_parameter() -> None:
    """A parameter that this QEMU lacks is bad input."""
    with pytest.raises(BadInput, match="multifd-channels"):
        parameters(replace(SETUP, parameters={"multifd-channels": 2}), KNOWN - {"multifd-channels"})


def test_sample_units() -> None:
    """Megabits become bytes per second, pages become bytes, and nothing that was not said is invented."""
    reading = sample(
        {
            "status": "active",
            "total-time": 1700,
            "setup-time": 5,
            "expected-downtime": 42,
            "ram": {
                "transferred": 1000,
                "remaining": 500,
                "total": 4096,
                "mbps": 800.0,
                "dirty-pages-rate": 10,
                "page-size": 4096,
                "dirty-sync-count": 3,
                "duplicate": 1,
                "normal": 2,
            },
            "cpu-throttle-percentage": 20,
            "blocked-reasons": ["no"],
        }
    )
    assert (reading.status, reading.rounds, reading.bandwidth) == (MigrationStatus.ACTIVE, 3, 100_000_000)
    assert (reading.dirty_bytes_per_second, reading.expected_downtime_ms) == (40960, 42.0)
    assert (reading.downtime_ms, reading.throttle_percent, reading.blocked_reasons) == (None, 20, ("no",))


def test_sample_of_nothing() -> None:
    """A QEMU that never migrated answers an empty object, which is NONE."""
    assert sample({}).status is MigrationStatus.NONE
    assert sample({}).error is None


def test_failure_always_has_a_reason() -> None:
    """7.2 may fail without a word; the reading says that."""
    assert sample({"status": "failed"}).error == "QEMU gave no reason"
    assert sample({"status": "failed", "error-desc": "cut"}).error == "cut"


def test_addresses() -> None:
    """An IPv6 address goes into brackets."""
    assert (uri("10.0.0.1", 5), uri("fe80::1", 5)) == ("tcp:10.0.0.1:5", "tcp:[fe80::1]:5")
