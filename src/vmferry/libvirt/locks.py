"""What keeps a domain's disks from being written by two hosts, as far as anybody can know. Pure.

A daemon says nowhere which lock manager it has: neither its capabilities nor those of domains, and an empty `<lease>`
starts without one as well (the driver that locks nothing takes it). The only thing that can be seen is that libvirt
refuses a move between two that differ. So the operator says it (`host add --lock-manager`), and it is told as that.

Source: libvirt src/locking/lock_driver_nop.c, src/qemu/qemu_migration_cookie.c ("Source host lock driver ...").
"""

from __future__ import annotations

from dataclasses import dataclass

from vmferry.core.errors import Blocker

#: What may be said of a host: libvirt's own words, and none.
LOCK_MANAGERS = ("lockd", "sanlock", "none")
_KINDS = {"lockd": "virtlockd", "sanlock": "sanlock", "none": "no lock manager"}
_QEMUS = "QEMU's own image locks, where the storage has locks"


@dataclass(frozen=True, slots=True)
class Fence:
    """What is known, and what stands against a move."""

    text: str
    blockers: tuple[Blocker, ...] = ()


def fence_of(hosts: tuple[str, str], declared: tuple[str | None, str | None], *, copied: bool) -> Fence:
    """Return what fences the disks of a domain that moves.

    Args:
        hosts: names of source and destination.
        declared: what was said of each, one of `LOCK_MANAGERS`; None: nothing.
        copied: the disks are copied, so that each host has its own.
    """
    here, there = declared
    if here is not None and there is not None and here != there:
        what = f"{hosts[0]} is said to have {_KINDS[here]}, and {hosts[1]} {_KINDS[there]}"
        blocker = Blocker(
            "lock.differs",
            f"{what}: libvirt refuses a move between two that differ",
            "set lock_manager in qemu.conf of both hosts alike, and say so: `vmferry host add NAME --libvirt URI"
            " --lock-manager ...`",
        )
        return Fence(f"unlike: {what}", (blocker,))
    if here is None or there is None:
        unsaid = " and ".join(name for name, said in zip(hosts, declared, strict=True) if said is None)
        locks = f"{_QEMUS}; whether {unsaid} has a lock manager libvirt does not tell (host add --lock-manager)"
    else:
        locks = _QEMUS if here == "none" else f"{_KINDS[here]}, as was said of both hosts; {_QEMUS}"
    return Fence(f"separate copies; for each: {locks}" if copied else locks)
