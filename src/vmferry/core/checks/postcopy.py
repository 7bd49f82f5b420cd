"""Post-copy, where it is to be allowed: both QEMUs have it, and the destination's may catch the page faults."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case
from vmferry.core.errors import Blocker

CAPABILITY = "postcopy-ram"
_WITHOUT = ", or move it without post-copy"


def check_postcopy(case: Case) -> Iterator[Blocker]:
    """Post-copy can be used if it has to be; nothing is asked of the hosts when it is not allowed."""
    if not case.postcopy:
        return
    for host in (case.source, case.destination):
        if CAPABILITY not in host.qemu.capabilities:
            yield Blocker(
                "postcopy.capability-missing",
                f"QEMU on {host.name} has no migration capability {CAPABILITY}",
                f"update QEMU on {host.name}{_WITHOUT}",
            )
    why = case.destination.why_no_postcopy
    if why is not None:
        yield Blocker(
            "postcopy.no-userfaultfd",
            f"QEMU on {case.destination.name} cannot receive guest {case.guest.spec.name} by post-copy: {why}",
            f"do that on {case.destination.name}{_WITHOUT}",
        )
