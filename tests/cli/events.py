"""The events of one made-up migration, from its opening to its report."""

from __future__ import annotations

from vmferry.core.progress import (
    Finished,
    Gap,
    Outcome,
    PolicyBegan,
    PolicyOrdered,
    Progress,
    ProgressEvent,
    Report,
    RoundEnded,
    StateEntered,
    Step,
)
from vmferry.core.units import MIB, Bytes, BytesPerSecond, Milliseconds, Pages

RAM = Bytes(512 * MIB)
BANDWIDTH = BytesPerSecond(112 * MIB)
LIMIT = Milliseconds(300)


def state(at: float, name: str, step: Step | None, owner: str = "host-a", why: str | None = None) -> StateEntered:
    """Return an entered state."""
    return StateEntered(Milliseconds(at), name, step, owner, why)


def reading(at: float, number: int, left_mib: int, **more: object) -> Progress:
    """Return a reading."""
    fields: dict[str, object] = {
        "expected_downtime_ms": left_mib * 9.0,
        "verdict": "first round" if number == 1 else "converging",
        "time_left_ms": left_mib * 9.0,
        **more,
    }
    return Progress(
        at_ms=Milliseconds(at),
        round=number,
        transferred_bytes=Bytes((512 - left_mib) * MIB),
        remaining_bytes=Bytes(left_mib * MIB),
        total_bytes=RAM,
        bandwidth=BANDWIDTH,
        dirty_bytes_per_second=BytesPerSecond(20 * MIB),
        downtime_limit_ms=LIMIT,
        **fields,  # type: ignore[arg-type]
    )


def ended(at: float, number: int, duration: float, sent_mib: int, dirtied_mib: int, verdict: str) -> RoundEnded:
    """Return an ended round."""
    return RoundEnded(
        at_ms=Milliseconds(at),
        round=number,
        duration_ms=Milliseconds(duration),
        sent_bytes=Bytes(sent_mib * MIB),
        dirtied_bytes=Bytes(dirtied_mib * MIB),
        bandwidth=BANDWIDTH,
        expected_downtime_ms=Milliseconds(dirtied_mib * 9.0),
        downtime_limit_ms=LIMIT,
        verdict=verdict,
    )


REPORT = Report(
    handover="h-1",
    guest="web-7",
    source="host-a",
    destination="host-b",
    outcome=Outcome.MOVED,
    reason=None,
    guarantee="vmferry commits; it writes to no disk, so nothing has to be fenced",
    acceleration="TCG",
    encrypted=True,
    total_ms=Milliseconds(5730),
    rounds=2,
    transferred_bytes=Bytes(560 * MIB),
    ram_bytes=RAM,
    bandwidth=BANDWIDTH,
    downtime_limit_ms=LIMIT,
    downtime_ms=Milliseconds(41),
    guest_gap=Gap(Milliseconds(47.25), Milliseconds(0.5), Milliseconds(6.1), Milliseconds(3000)),
    in_guest_stall_ms=None,
    network_outage=None,
    commit_ms=Milliseconds(7.5),
    commit_parts_ms={"released": 0.4, "told": 1.9, "cont": 4.2},
    first_byte_ms=Milliseconds(210),
    policy="vmferry",
    switchover_rule="QEMU's own: the rest fits the limit of 300.0 ms",
    pages_at_decision=Pages(1024),
    pages_at_stop=Pages(1100),
)


def ordered(at: float, order: str, rule: str, number: int | None = None, left: int | None = None) -> PolicyOrdered:
    """Return an order of the policy."""
    pages = None if left is None else Pages(left)
    elapsed = Milliseconds(at - 210 if number else 0.0)
    return PolicyOrdered(Milliseconds(at), "vmferry", order, rule, elapsed, number, pages)


MOVE: tuple[ProgressEvent, ...] = (
    state(1, "checking", Step.RESERVE),
    state(40, "reserving", Step.RESERVE),
    state(190, "reserved", Step.RESERVE),
    state(210, "precopy", Step.COPY),
    reading(400, 1, 500),
    reading(2500, 1, 256),
    ended(4900, 1, 4690, 512, 90, "not converging"),
    reading(4950, 2, 90),
    reading(5300, 2, 120, time_left_ms=1080.0, why_longer="the guest writes faster than before"),
    ended(5650, 2, 750, 90, 4, "fits"),
    state(5660, "pre-switchover", Step.PAUSE),
    state(5665, "switchover", Step.LAST_PAGES),
    state(5700, "loaded", Step.HANDOVER),
    state(5702, "committed", Step.HANDOVER, owner="host-b"),
    state(5710, "running", Step.HANDOVER, owner="host-b"),
    Finished(Milliseconds(5730), Outcome.MOVED, "host-b", None, None, (), REPORT),
)

#: The same, with what its policy said.
STEERED: tuple[ProgressEvent, ...] = (
    MOVE[0],
    PolicyBegan(Milliseconds(35), "vmferry", ("xbzrle: QEMU 9.9 at the source has no capability xbzrle",)),
    ordered(36, "downtime limit 300.0 ms", "goal: gap 350.0 ms less 50.0 ms of fixed cost"),
    *MOVE[1:7],
    ordered(4901, "auto-converge 50", "no end: round 1 dirtied 23040 pages", 1, 23_040),
    *MOVE[7:],
)
