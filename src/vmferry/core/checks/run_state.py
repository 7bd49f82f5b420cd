"""Whether the guest is in a state in which it can leave: nobody else works on it, and there is a guest to move."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case
from vmferry.core.errors import Blocker

#: QEMU's run states from which a guest moves: a paused guest is paused at the destination too.
MOVABLE = frozenset({"running", "paused"})

#: run state -> (stable code, what it means, fix); {guest} is filled in.
STATES = {
    "stopped": (  # the agent's word: there is no QEMU to ask
        "guest.stopped",
        "it has no QEMU process",
        "start it with `vmferry guest start {guest}`, or remove it here and run it on the other host",
    ),
    "shutdown": (
        "guest.powered-off",
        "it has powered itself off",
        "start it again with `vmferry guest start {guest}`, or remove it here and run it on the other host",
    ),
    "guest-panicked": (
        "guest.panicked",
        "its kernel has panicked",
        "look at `vmferry guest console {guest}`, then `vmferry guest stop {guest}` and `vmferry guest start {guest}`",
    ),
    "io-error": (
        "guest.io-error",
        "it is stopped by an I/O error of a disk",
        "repair the storage (full? gone?) and go on with `vmferry guest resume {guest}`",
    ),
    "internal-error": (
        "guest.internal-error",
        "QEMU stopped it after an internal error",
        "see the guest's QEMU log on its host, then `vmferry guest stop {guest}` and `vmferry guest start {guest}`",
    ),
    "prelaunch": (
        "guest.not-started",
        "it was never started",
        "start it with `vmferry guest start {guest}`",
    ),
    "inmigrate": (
        "guest.arriving",
        "it is just arriving here from another host",
        "wait for the end of that migration: `vmferry watch`",
    ),
    "finish-migrate": (
        "guest.leaving",
        "it is just leaving in another migration",
        "wait for the end of that migration: `vmferry watch`",
    ),
    "postmigrate": (
        "guest.left",
        "its memory was already sent away and its ownership is being settled",
        "run `vmferry recover {guest}`, which says where it runs",
    ),
}


def check_busy(case: Case) -> Iterator[Blocker]:
    """One operation at a time holds a guest."""
    if case.runtime.busy_with is None:
        return
    guest = case.guest.spec.name
    yield Blocker(
        "guest.busy",
        f"guest {guest} is held by {case.runtime.busy_with}",
        f"wait for its end (`vmferry watch`), or end it with `vmferry cancel {guest}`",
    )


def check_run_state(case: Case) -> Iterator[Blocker]:
    """Running and paused guests move; others have nothing to move, or need care first."""
    state = case.runtime.run_state
    if state in MOVABLE:
        return
    guest = case.guest.spec.name
    code, meaning, fix = STATES.get(
        state,
        (
            "guest.not-running",
            "QEMU gives a run state from which a guest does not move",
            "bring it to `running` or `paused` (`vmferry guest show {guest}`)",
        ),
    )
    yield Blocker(
        code,
        f"guest {guest} on {case.source.name} is in run state {state!r}: {meaning}; running or paused is needed",
        fix.format(guest=guest),
    )
