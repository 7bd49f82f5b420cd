"""The price of a change of mind: what is lost was measured, what comes again says how it is known."""

from __future__ import annotations

from vmferry.core.capabilities import Basis, Figure, FirstRound, restart_price
from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.units import MIB, Bytes, BytesPerSecond, Milliseconds

RUNNING = MigrationSample(
    status=MigrationStatus.ACTIVE,
    rounds=4,
    transferred_bytes=Bytes(900 * MIB),
    remaining_bytes=Bytes(100 * MIB),
    total_bytes=Bytes(512 * MIB),
    bandwidth=BytesPerSecond(100 * MIB),
    total_ms=Milliseconds(9200.0),
    setup_ms=Milliseconds(12.0),
)
FIRST = FirstRound(Bytes(480 * MIB), Milliseconds(4800.0))


def test_after_the_first_round_it_is_that_round_again() -> None:
    """Lost is what was measured; the first round and the set-up come again as they were."""
    price = restart_price(RUNNING, FIRST)
    assert price.lost_bytes == Figure(900 * MIB, Basis.MEASURED, "ram.transferred")
    assert price.lost_ms == Figure(9200.0, Basis.MEASURED, "total-time")
    assert price.again_setup_ms == Figure(12.0, Basis.REPEATED, "setup-time")
    assert price.again_bytes == Figure(480 * MIB, Basis.REPEATED, "the first round of this attempt")
    assert price.again_ms == Figure(4800.0, Basis.REPEATED, "the first round of this attempt")
    assert price.text() == (
        "900.0 MiB and 9.20 s of this attempt are lost; again: 12.0 ms (as it was the first time) of set-up, then a"
        " first round of 480.0 MiB (as it was the first time) in 4.80 s (as it was the first time)"
    )


def test_during_the_first_round_it_is_an_estimate_and_says_so() -> None:
    """Sent and remaining bytes, at the caller's bandwidth or else QEMU's."""
    early = MigrationSample(
        MigrationStatus.ACTIVE,
        rounds=1,
        transferred_bytes=Bytes(100 * MIB),
        remaining_bytes=Bytes(400 * MIB),
        total_bytes=Bytes(512 * MIB),
        bandwidth=BytesPerSecond(50 * MIB),
    )
    price = restart_price(early, None)
    assert price.again_bytes is not None
    assert price.again_ms is not None
    assert (price.again_bytes.value, price.again_bytes.basis) == (500 * MIB, Basis.ESTIMATED)
    assert (price.again_ms.value, price.again_ms.basis) == (10_000.0, Basis.ESTIMATED)
    measured = restart_price(early, None, BytesPerSecond(100 * MIB))
    assert measured.again_ms is not None
    assert measured.again_ms.value == 5_000.0
    assert "an unknown time of this attempt are lost" in price.text()
    assert "(estimated)" in price.text()


def test_what_nothing_speaks_for_is_missing() -> None:
    """Later rounds whose first one was not seen, and no bandwidth, give no figure rather than a wrong one."""
    unseen = restart_price(RUNNING, None)
    assert unseen.again_bytes is None
    assert unseen.again_ms is None
    assert "a first round of an unknown amount in an unknown time" in unseen.text()
    silent = MigrationSample(MigrationStatus.SETUP, total_bytes=Bytes(MIB), remaining_bytes=Bytes(MIB))
    assert restart_price(silent, None).again_ms is None
    assert restart_price(MigrationSample(MigrationStatus.NONE), None).again_bytes is None
