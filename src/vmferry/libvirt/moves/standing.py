"""What one daemon says of a domain that moves, or moved: what it does there, why, and which job it has. Pure.

Source: libvirt include/libvirt/libvirt-domain.h (virDomainState and its reasons, VIR_DOMAIN_JOB_OPERATION_*),
src/qemu/qemu_migration.c; seen with 9.0 (docs/libvirt-faults.md).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmferry.core.ids import GuestUuid
from vmferry.libvirt.facts import DomainState


class Run(enum.StrEnum):
    """What a domain does on one host, as far as a move is concerned."""

    SILENT = "silent"  #: its daemon does not answer
    ABSENT = "absent"  #: its daemon knows no such domain
    OFF = "off"  #: defined, without a process
    RUNS = "runs"
    STANDS = "stands"  #: paused by a move: at the destination it has never run
    PAUSED = "paused"  #: by something else
    LEFT = "left"  #: its vCPUs run at the other host, the pages that they lack are still here
    PARTIAL = "partial"  #: runs, while pages that it lacks may still be at the other host
    SPLIT = "split"  #: post-copy broke: each host has a part of its memory


class Job(enum.StrEnum):
    """Which job a domain has."""

    NONE = "none"  #: the daemon said so; a daemon that says nothing has no such answer
    OUT = "out"  #: it leaves
    IN = "in"  #: it arrives
    OTHER = "other"  #: a dump, a snapshot ..., or the daemon does not say which


@dataclass(frozen=True, slots=True)
class Standing:
    """A domain on one host."""

    run: Run
    job: Job = Job.NONE
    uuid: GuestUuid | None = None
    is_persistent: bool = False
    says: str = ""  #: the daemon's own words, or why it does not answer

    @property
    def is_defined(self) -> bool:
        """Whether it is there also when it has no process."""
        return self.run is Run.OFF or self.is_persistent


#: Reasons by their number, in libvirt's order (virDomainRunningReason, virDomainPausedReason, virDomainShutoffReason).
RUNNING = (
    *("unknown", "booted", "migrated", "restored", "from-snapshot", "unpaused", "migration-canceled"),
    *("save-canceled", "wakeup", "crashed", "post-copy", "post-copy-failed"),
)
PAUSED = (
    *("unknown", "user", "migration", "save", "dump", "io-error", "watchdog", "from-snapshot", "shutting-down"),
    *("snapshot", "crashed", "starting-up", "post-copy", "post-copy-failed"),
)
SHUTOFF = (*("unknown", "shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from-snapshot", "daemon"),)
_REASONS = {DomainState.RUNNING: RUNNING, DomainState.PAUSED: PAUSED, DomainState.SHUTOFF: SHUTOFF}
_RUNS: dict[tuple[DomainState, str], Run] = {
    (DomainState.RUNNING, "post-copy"): Run.PARTIAL,  # libvirt makes it "migrated" when the last page is there
    (DomainState.RUNNING, "post-copy-failed"): Run.SPLIT,
    (DomainState.PAUSED, "migration"): Run.STANDS,
    (DomainState.PAUSED, "starting-up"): Run.STANDS,
    (DomainState.PAUSED, "post-copy"): Run.LEFT,
    (DomainState.PAUSED, "post-copy-failed"): Run.SPLIT,
}
#: libvirt's numbers of operations (virDomainJobOperation).
_OPERATIONS = {4: Job.IN, 5: Job.OUT}


def reason_of(state: DomainState, number: int) -> str:
    """Return libvirt's word for why a domain is in a state; its number where there is no word."""
    words = _REASONS.get(state, ())
    return words[number] if 0 <= number < len(words) else str(number)


def run_of(state: DomainState, reason: str) -> Run:
    """Return what a domain does; a state that has vCPUs which may run, or may wake by themselves, runs."""
    if state in (DomainState.SHUTOFF, DomainState.CRASHED):
        return Run.OFF
    if state is DomainState.PAUSED:
        return _RUNS.get((state, reason), Run.PAUSED)
    return _RUNS.get((state, reason), Run.RUNS)


def job_of(kind: int, operation: int) -> Job:
    """Return which job a domain has, by libvirt's type and operation; a job that is over is none."""
    if kind not in (1, 2):  # bounded, unbounded: it runs
        return Job.NONE
    return _OPERATIONS.get(operation, Job.OTHER)


def silent(why: str) -> Standing:
    """Return the standing at a daemon that does not answer."""
    return Standing(Run.SILENT, says=why)


ABSENT = Standing(Run.ABSENT, says="no such domain")
