"""Setups and readings: our names and units here, QAPI's there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmferry.core.errors import BadInput
from vmferry.core.units import MIB, BytesPerSecond, Milliseconds
from vmferry.ports.hypervisor import MigrationSetup, MigrationStatus
from vmferry.qemu.migration import (
    EXCLUSIONS,
    NO_BANDWIDTH_LIMIT,
    REQUIREMENTS,
    TLS_OBJECT,
    Exclusion,
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
    pairs = [(rule.one, rule.other) for rule in EXCLUSIONS] + list(REQUIREMENTS)
    return frozenset(name for pair in pairs for name in pair)


@pytest.mark.parametrize("rule", EXCLUSIONS, ids=lambda rule: f"{rule.one}+{rule.other}")
def test_exclusions(rule: Exclusion) -> None:
    """Every pair of the table is refused with its reason, and each half alone is not."""
    needs = {user: needed for needed, user in REQUIREMENTS}
    both = {name: True for one in (rule.one, rule.other) for name in (one, needs.get(one, one))}
    with pytest.raises(BadInput, match=rule.one):
        check_setup(replace(SETUP, capabilities=both), known_capabilities(), OLD)
    for alone in (rule.one, rule.other):
        check_setup(replace(SETUP, capabilities={alone: True}), known_capabilities(), OLD)


def test_an_exclusion_ends_with_its_version() -> None:
    """Multifd with post-copy is refused up to 10.0 and allowed from 10.1."""
    setup = replace(SETUP, capabilities={"multifd": True, "postcopy-ram": True})
    with pytest.raises(BadInput):
        check_setup(setup, known_capabilities(), (10, 0, 2))
    check_setup(setup, known_capabilities(), (10, 1, 0))


@pytest.mark.parametrize(("needed", "user"), REQUIREMENTS)
def test_requirements(needed: str, user: str) -> None:
    """A capability without the one that it needs is refused, naming it."""
    with pytest.raises(BadInput, match=needed):
        check_setup(replace(SETUP, capabilities={user: True, needed: False}), known_capabilities(), OLD)


def test_off_is_no_conflict() -> None:
    """A capability that is switched off may be unknown and excludes nothing."""
    check_setup(
        replace(SETUP, capabilities={"multifd": True, "xbzrle": False, "new": False}), known_capabilities(), OLD
    )


def test_zero_copy_is_plain() -> None:
    """Zero-copy with a key is refused."""
    setup = replace(SETUP, capabilities={"multifd": True, "zero-copy-send": True})
    check_setup(setup, known_capabilities(), OLD)
    with pytest.raises(BadInput, match="encrypted"):
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
        "tls-creds": TLS_OBJECT,
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
