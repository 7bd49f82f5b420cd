"""Storage pools that the domain's disks come from must be there at the destination."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.errors import Blocker
from vmferry.libvirt.checks.case import Case, first


def check_pools(case: Case) -> Iterator[Blocker]:
    """Each pool is defined and active."""
    known, host = case.destination.pools, case.destination.host
    for name in dict.fromkeys(_pools(case)):
        if known is None or known.get(name):
            continue
        if name in known:
            yield Blocker(
                "pool.inactive",
                f"domain {case.name} has a disk in pool {name}, which is defined on {host} and not active",
                f"virsh pool-start {name} on {host} (and pool-autostart)",
            )
        else:
            yield Blocker(
                "pool.missing",
                f"domain {case.name} has a disk in pool {name}, which {host} does not have"
                f" (it has {', '.join(sorted(known)) or 'none'})",
                f"define it there: virsh pool-dumpxml {name} here, virsh pool-define and pool-start on {host}",
            )


def unseen_pools(case: Case) -> Iterator[str]:
    """Tell when the destination's daemon cannot be asked for pools, and a disk is in one."""
    if case.destination.pools is None and any(_pools(case)):
        yield f"which storage pools {case.destination.host} has: its libvirt does not say"


def _pools(case: Case) -> Iterator[str]:
    for disk in case.every("devices/disk"):
        source = first(disk, "source")
        if disk.attributes.get("type") == "volume" and source is not None:
            yield source.attributes.get("pool", "")
