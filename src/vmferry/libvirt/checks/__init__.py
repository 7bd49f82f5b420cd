"""May this libvirt domain move to that host of libvirt's? Every reason why not, at once, each with its fix.

Pure: the domain's XML and what both daemons said in, blockers out. One family of reasons per file, each a generator
`Case -> Blocker...` that never raises. Codes that mean the same as for our own guests are the same (docs/checks.md).
"""

from __future__ import annotations

from vmferry.core.errors import Blocker
from vmferry.libvirt.checks.case import Case, Verdict, XmlBlocker
from vmferry.libvirt.checks.cpu import check_cpu
from vmferry.libvirt.checks.device import check_devices, check_teaming, unseen_devices
from vmferry.libvirt.checks.identity import check_identity
from vmferry.libvirt.checks.machine import check_acceleration, check_emulator, check_machine
from vmferry.libvirt.checks.network import check_networks, unseen_networks
from vmferry.libvirt.checks.offer import Offer, read_offer
from vmferry.libvirt.checks.state import check_state
from vmferry.libvirt.checks.storage import check_pools, unseen_pools

__all__ = ["Case", "Offer", "Verdict", "XmlBlocker", "find_blockers", "read_offer"]

#: In the order in which a person reads them.
FAMILIES = (
    check_state,
    check_identity,
    check_acceleration,
    check_machine,
    check_emulator,
    check_cpu,
    check_devices,
    check_teaming,
    check_networks,
    check_pools,
)
UNSEEN = (unseen_networks, unseen_pools, unseen_devices)


def find_blockers(case: Case) -> Verdict:
    """Return every reason why a domain cannot move now, and what could not be seen. Never raises."""
    blockers: tuple[Blocker, ...] = tuple(blocker for family in FAMILIES for blocker in family(case))
    return Verdict(blockers, tuple(dict.fromkeys(sentence for family in UNSEEN for sentence in family(case))))
