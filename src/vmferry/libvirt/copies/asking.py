"""Asks both daemons what a copy of disks depends on; changes nothing at either host."""

from __future__ import annotations

from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.copies import calls
from vmferry.libvirt.copies.images import Answers, Copies, Pool, chosen, plan_copies, pool_of
from vmferry.libvirt.copies.reading import Disk, read_disks
from vmferry.libvirt.tree import Element


async def ask_copies(
    domain: str,
    here: Element,
    there: Element,
    source: LibvirtConnection,
    destination: LibvirtConnection,
    destination_name: str,
    *,
    targets: tuple[str, ...] | None,
) -> Copies:
    """Return what is copied of a running domain's disks, and what stands against it.

    Args:
        domain: its name.
        here: as it runs.
        there: as it shall be at the destination.
        source: its host's daemon.
        destination: the other one; libvirt there looks anew into the pools that are to get an image.
        destination_name: what it is called in blockers.
        targets: the disks that were named; None: every one that is this host's own and can be written.

    Raises:
        Unreachable, TimedOut, Broken: a daemon does not answer (any more).
        XmlRefused: a daemon said what is no XML.
    """
    disks = read_disks(here, there)
    wanted = [disk for disk in chosen(disks, targets) if disk.in_the_way is None]
    pools = await calls.list_pools(destination)
    sizes = {disk.target: await calls.image_size(source, domain, disk.target) for disk in wanted}
    volumes = {name: await calls.list_volumes(destination, name) for name in _active(wanted, pools or ())}
    return plan_copies(domain, disks, targets, Answers(destination_name, pools, volumes, sizes))


def _active(disks: list[Disk], pools: tuple[Pool, ...]) -> set[str]:
    """Return the active pools that are to get an image."""
    found = (pool_of(disk, pools) for disk in disks)
    return {pool.name for pool in found if pool is not None and pool.is_active}
