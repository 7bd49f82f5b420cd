"""What vmferry promises for one guest: who commits, how long there is a way back, and what fences the disks."""

from __future__ import annotations

from collections.abc import Collection

from vmferry.core.checks.files import LOCAL, NFS4, file_system, is_same_file
from vmferry.core.disks import written_images
from vmferry.core.guest import FrozenGuest
from vmferry.core.host import FileFacts, GuestProbe, GuestRuntime
from vmferry.core.migratable import agreed
from vmferry.core.progress import Guarantee
from vmferry.core.wanted_devices import WantedDevice, wanted_devices

COMMIT_OWNER = "vmferry"
#: The last state from which the guest goes back to the source (design of the hand-over).
ROLLBACK_UNTIL = "LOADED"

NOT_NEEDED = "not needed"
SAME_KERNEL = "image locks (same kernel)"
NFS = "image locks (NFSv4)"
NONE = "none"
COPIES = "separate copies"
SANLOCK = "sanlock"
SANLOCK_ALONE = "sanlock (no watchdog)"

#: disk_fence -> the half sentence that says what it means.
MEANING = {
    NOT_NEEDED: "it writes to no disk, so nothing has to be fenced",
    SAME_KERNEL: "QEMU's image locks hold, since both hosts share one kernel",
    NFS: "QEMU's image locks hold through the NFSv4 server (seen with Linux's), until a host was silent for its lease",
    COPIES: "each host writes a copy of its own, and the copy that the owner does not have is put aside",
    SANLOCK: "each disk has a lease (sanlock) that one host has at a time; a host that cannot renew its own ends its"
    " guests, or is reset, before another host can have them",
    SANLOCK_ALONE: "each disk has a lease (sanlock) that one host has at a time; a host that cannot renew its own ends"
    " its guests, and is not reset (sanlock runs without a watchdog) if that hangs",
    NONE: "only the ownership token keeps two hosts from writing to the disks; no lock reaches across them",
}


#: What post-copy takes away from the promise.
POSTCOPY_RISK = (
    "post-copy is allowed: from its switch on both hosts are needed until the last page is there, and a QEMU that dies"
    " on either of them is a lost guest; a broken link only makes it wait"
)


def guarantee(
    guest: FrozenGuest,
    runtime: GuestRuntime,
    probe: GuestProbe,
    *,
    postcopy: bool = False,
    copied: Collection[str] = (),
    leased: Collection[str] = (),
    watchdogs: bool = False,
) -> Guarantee:
    """Return what is promised for this guest with our own QEMU driver; never more than both hosts' files allow.

    The weakest of the guest's writable files decides. A file that a host does not know gives no fence.

    Args:
        guest: the guest as it was built.
        runtime: the source's view of its files.
        probe: the destination's view of its files.
        postcopy: whether post-copy is allowed: its risk is told before anything begins.
        copied: paths of images of which the destination gets a copy.
        leased: paths of images that have a lease at both hosts, from one lockspace.
        watchdogs: whether both hosts are reset when a guest cannot be ended before its leases are.
    """
    paths = [image.path for image in written_images(guest.spec)]
    by_lease = SANLOCK if watchdogs else SANLOCK_ALONE
    fence = _weakest(
        [COPIES if path in copied else by_lease if path in leased else _fence(runtime, probe, path) for path in paths]
    )
    sentence = (
        f"vmferry commits; until {ROLLBACK_UNTIL} every failure that leaves QEMU at the source alive ends with guest"
        f" {guest.spec.name} running there; {MEANING[fence]}"
    )
    if wanted := wanted_devices(guest):
        go_along = {one.wanted for one in agreed(runtime.migratable, probe.offers, postcopy=postcopy)}
        sentence += f"; {', '.join(_told(one, goes_along=one.id in go_along) for one in wanted)}"
    if postcopy:
        sentence += f"; {POSTCOPY_RISK}"
    return Guarantee(COMMIT_OWNER, ROLLBACK_UNTIL, fence, sentence)


def _told(wanted: WantedDevice, *, goes_along: bool) -> str:
    if goes_along:
        return f"the state of {wanted} goes along, into an equal one there (VFIO migration)"
    if wanted.network is None:
        return f"{wanted} is taken from it before the first round, with what is in it, and it is given one there"
    meanwhile = "runs on its standby" if wanted.has_standby else "has no network"
    return f"{wanted.id} {meanwhile} from before the first round until it has a function of {wanted.network} there"


def _fence(runtime: GuestRuntime, probe: GuestProbe, path: str) -> str:
    here, there = _find(runtime.source_files, path), _find(probe.files, path)
    if here is None or there is None or not is_same_file(here, there):
        return NONE
    kind = file_system(here)
    if kind in LOCAL:
        return SAME_KERNEL
    return NFS if kind in NFS4 else NONE


def _find(files: tuple[FileFacts, ...], path: str) -> FileFacts | None:
    return next((file for file in files if file.path == path), None)


def _weakest(fences: list[str]) -> str:
    return next(
        (fence for fence in (NONE, SANLOCK_ALONE, NFS, SANLOCK, SAME_KERNEL, COPIES) if fence in fences), NOT_NEEDED
    )
