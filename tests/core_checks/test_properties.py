"""Whatever two hosts say, the checks answer, and each answer helps."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmferry.core.checks import Case, find_blockers, guarantee, memory_needed
from vmferry.core.guest import FrozenGuest
from vmferry.core.host import GuestProbe, GuestRuntime, HostFacts

FEW = settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)


@FEW
@given(
    guest=st.from_type(FrozenGuest),
    runtime=st.from_type(GuestRuntime),
    source=st.from_type(HostFacts),
    destination=st.from_type(HostFacts),
    probe=st.from_type(GuestProbe),
    copy_disks=st.booleans(),
)
def test_any_input_gives_an_answer_and_every_blocker_a_fix(
    guest: FrozenGuest,
    runtime: GuestRuntime,
    source: HostFacts,
    destination: HostFacts,
    probe: GuestProbe,
    copy_disks: bool,
) -> None:
    """The checks never raise, are deterministic, and no blocker lacks a code, a sentence or a fix."""
    case = Case(guest, runtime, source, destination, probe, copy_disks=copy_disks)
    blockers = find_blockers(case)
    assert blockers == find_blockers(case)
    assert all(b.code and "." in b.code and b.what.strip() and b.fix.strip() for b in blockers)
    assert all("{guest}" not in b.fix for b in blockers)


@FEW
@given(guest=st.from_type(FrozenGuest), runtime=st.from_type(GuestRuntime), probe=st.from_type(GuestProbe))
def test_any_input_gives_a_guarantee(guest: FrozenGuest, runtime: GuestRuntime, probe: GuestProbe) -> None:
    """A guarantee is always given, with a fence from the known words."""
    promise = guarantee(guest, runtime, probe)
    assert promise.disk_fence in {
        "not needed",
        "image locks (same kernel)",
        "image locks (NFSv4)",
        "none",
    }
    assert memory_needed(guest) >= guest.spec.memory_bytes or guest.spec.memory_bytes < 0
