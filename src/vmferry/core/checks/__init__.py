"""May this guest move to that host? Every reason why not, at once, each with its fix; and what is promised if it may.

One family of reasons per file. Each family is a generator `Case -> Blocker...` that never raises: what a host said
about itself is judged, not trusted. The codes are stable and listed in docs/checks.md.
"""

from __future__ import annotations

from vmferry.core.checks.case import Case
from vmferry.core.checks.certificates import check_certificates
from vmferry.core.checks.cpu import check_acceleration, check_cpu
from vmferry.core.checks.device import check_devices
from vmferry.core.checks.disk import check_disks, images_to_copy
from vmferry.core.checks.firmware import check_boot_files, check_nvram, check_tpm
from vmferry.core.checks.guarantee import guarantee
from vmferry.core.checks.identity import check_identity
from vmferry.core.checks.leases import check_leases, have_watchdogs, images_with_leases
from vmferry.core.checks.memory import check_memory, memory_needed
from vmferry.core.checks.network import check_network
from vmferry.core.checks.peers import check_ports, check_protocol, check_same_host
from vmferry.core.checks.pipeline import check_pipeline
from vmferry.core.checks.postcopy import check_postcopy
from vmferry.core.checks.qemu import (
    check_capabilities,
    check_known_incompatibilities,
    check_machine,
    check_tcg_source,
)
from vmferry.core.checks.rdma import check_rdma
from vmferry.core.checks.reasons import check_blocked_reasons
from vmferry.core.checks.run_state import check_busy, check_run_state
from vmferry.core.errors import Blocker

__all__ = [
    "Case",
    "find_blockers",
    "guarantee",
    "have_watchdogs",
    "images_to_copy",
    "images_with_leases",
    "memory_needed",
]

#: In the order in which a person reads them: is it the right pair of hosts, is the guest ready, does it fit there.
FAMILIES = (
    check_protocol,
    check_busy,
    check_run_state,
    check_blocked_reasons,
    check_acceleration,
    check_cpu,
    check_machine,
    check_capabilities,
    check_postcopy,
    check_pipeline,
    check_rdma,
    check_certificates,
    check_tcg_source,
    check_known_incompatibilities,
    check_devices,
    check_memory,
    check_disks,
    check_leases,
    check_boot_files,
    check_nvram,
    check_tpm,
    check_network,
    check_identity,
    check_ports,
)


def find_blockers(case: Case) -> tuple[Blocker, ...]:
    """Return every reason why a guest cannot move now; empty means that it can.

    Never raises, whatever the two hosts said. A move to the host on which the guest already runs has that one
    blocker only: everything else (its name, its MACs, its memory) would be the guest clashing with itself.
    """
    same_host = tuple(check_same_host(case))
    if same_host:
        return same_host
    return tuple(blocker for family in FAMILIES for blocker in family(case))
