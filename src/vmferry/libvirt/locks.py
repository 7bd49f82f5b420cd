"""What keeps a domain's disks from being written by two hosts, as far as anybody can know. Pure.

A daemon says nowhere which lock manager it has: neither its capabilities nor those of domains, and an empty `<lease>`
starts without one as well (the driver that locks nothing takes it). Nor does a move show it: libvirt 9.0 moved a domain
from a host with virtlockd to one without, and said nothing (tests/libvirt/test_real_locks.py). So the operator says it
(`host add --lock-manager`), and it is told as that.

It is also all that keeps a domain from *running* twice when libvirt's move goes wrong at its very end: libvirt's
source takes a Finish that it got no answer to for a failure, and lets its own copy run again, also when the
destination's vCPUs had begun (docs/libvirt-faults.md). QEMU's lock of an image that both hosts share refuses that.
A domain without such an image is held at its arrival instead (docs/design/libvirt.md).

Source: libvirt src/locking/lock_driver_nop.c; QEMU block/file-posix.c (raw_handle_perm_lock): files and host devices
are locked, unless they are shared.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmferry.core.errors import Blocker
from vmferry.libvirt.checks.case import below, first
from vmferry.libvirt.tree import Element

#: What may be said of a host: libvirt's own words, and none.
LOCK_MANAGERS = ("lockd", "sanlock", "none")
_KINDS = {"lockd": "virtlockd", "sanlock": "sanlock", "none": "no lock manager"}
_QEMUS = "QEMU's own image locks, where the storage has locks"


@dataclass(frozen=True, slots=True)
class Fence:
    """What is known, and what stands against a move."""

    text: str
    blockers: tuple[Blocker, ...] = ()
    keeps_one: bool = True  #: of two copies of the domain only one could run


def fence_of(
    hosts: tuple[str, str], declared: tuple[str | None, str | None], domain: Element, *, copied: bool
) -> Fence:
    """Return what fences the disks of a domain that moves.

    Args:
        hosts: names of source and destination.
        declared: what was said of each, one of `LOCK_MANAGERS`; None: nothing.
        domain: its live XML.
        copied: the disks are copied, so that each host has its own.
    """
    here, there = declared
    if here is not None and there is not None and here != there:
        what = f"{hosts[0]} is said to have {_KINDS[here]}, and {hosts[1]} {_KINDS[there]}"
        blocker = Blocker(
            "lock.differs",
            f"{what}: the domain's disks would be locked on one of them only, and libvirt may not mind",
            "set lock_manager in qemu.conf of both hosts alike, and say so: `vmferry host add NAME --libvirt URI"
            " --lock-manager ...`",
        )
        return Fence(f"unlike: {what}", (blocker,))
    if here is None or there is None:
        unsaid = " and ".join(name for name, said in zip(hosts, declared, strict=True) if said is None)
        locks = f"{_QEMUS}; whether {unsaid} has a lock manager libvirt does not tell (host add --lock-manager)"
    else:
        locks = _QEMUS if here == "none" else f"{_KINDS[here]}, as was said of both hosts; {_QEMUS}"
    if copied:
        return Fence(f"separate copies, each of its own host's; for each: {locks}", keeps_one=False)
    if not any(_is_locked(disk) for disk in below(domain, "devices/disk")):
        return Fence("none: it has no disk that QEMU locks", keeps_one=False)
    return Fence(locks)


def _is_locked(disk: Element) -> bool:
    is_local = disk.attributes.get("type") in ("file", "block") and first(disk, "source") is not None
    return is_local and first(disk, "readonly") is None and first(disk, "shareable") is None
