"""The domain must run, or stand still with its process, and nothing else may work on it."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.errors import Blocker
from vmferry.libvirt.checks.case import Case
from vmferry.libvirt.facts import DomainState

#: A paused one moves, and is paused there: libvirt sees to it. One that has crashed has a process that nothing wakes.
_DEAD = (DomainState.SHUTOFF, DomainState.CRASHED)


def check_state(case: Case) -> Iterator[Blocker]:
    """It has a process whose memory is worth moving, and no job."""
    if case.state in _DEAD:
        ends = f"virsh destroy {case.name}, then " if case.state is DomainState.CRASHED else ""
        yield Blocker(
            "domain.not-running",
            f"domain {case.name} is {_word(case.state)}: there is no memory to move",
            f"{ends}start it first (virsh start {case.name}), or move its definition alone: virsh migrate --offline"
            f" --persistent --undefinesource {case.name}",
        )
    if case.job is not None:
        yield Blocker(
            "domain.job-runs",
            f"a job runs on domain {case.name} already: {case.job}",
            f"wait until it is done (virsh domjobinfo {case.name}); if nobody wants it any more: virsh domjobabort"
            f" {case.name}",
        )


def _word(state: DomainState | None) -> str:
    return "shut off" if state is DomainState.SHUTOFF else "crashed"
