"""What the guest's network cards are plugged into at the destination.

User networking is no blocker: QEMU's own stack exists on both sides. Its connections end with the move, which the
guest file's documentation says where the choice is made.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case, name_list
from vmferry.core.errors import Blocker
from vmferry.core.guest import IoPath, NetworkKind


def check_network(case: Case) -> Iterator[Blocker]:
    """Every bridge that the guest is plugged into exists at the destination under the same name, and what serves it."""
    there, name = case.destination, case.guest.spec.name
    served = [index for index, nic in enumerate(case.guest.spec.nics) if nic.front_end is IoPath.VHOST]
    if served and there.why_no_vhost is not None:
        yield Blocker(
            "network.no-vhost",
            f"network card {served[0]} of guest {name} is served by the kernel (vhost); that of {there.name} cannot:"
            f" {there.why_no_vhost}",
            f"have the kernel of {there.name} serve it, or give the guest virtio cards and start it anew",
        )
    for index, nic in enumerate(case.guest.spec.nics):
        if nic.network is not NetworkKind.BRIDGE or nic.bridge in there.bridges:
            continue
        yield Blocker(
            "network.bridge-missing",
            f"network card {index} of guest {case.guest.spec.name} is on bridge {nic.bridge}, which {there.name} does"
            f" not have; it has {name_list(there.bridges)}",
            f"create bridge {nic.bridge} on {there.name} and join it to the same network, or choose another host",
        )
