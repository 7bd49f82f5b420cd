"""Which disks of a domain are copied, to where, and what stands against it. Pure: XML and answers in, a plan out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from vmferry.core.errors import Blocker
from vmferry.core.units import Bytes, format_bytes
from vmferry.libvirt.copies.reading import Disk

_FIX = "name the disks to copy (--disk), and have the others on storage that both hosts reach"


@dataclass(frozen=True, slots=True)
class Pool:
    """One storage pool of the destination."""

    name: str
    directory: str  #: where its volumes are; "" where they are in none
    is_active: bool
    available: Bytes
    is_logical: bool = False  #: of LVM's


@dataclass(frozen=True, slots=True)
class Size:
    """How large an image at the source is."""

    capacity: Bytes  #: what the guest sees
    allocation: Bytes  #: what it takes on the host


@dataclass(frozen=True, slots=True)
class Image:
    """An image that the destination needs for a copy."""

    target: str  #: the disk, as the guest's XML names it: vda
    pool: str
    volume: str
    format: str
    size: Size
    here: str = ""  #: the one at the source, for people
    is_logical: bool = False  #: a volume of LVM's

    @property
    def where(self) -> str:
        """The image for people."""
        return f"{self.volume} in pool {self.pool}"


@dataclass(frozen=True, slots=True)
class Copies:
    """What is copied."""

    images: tuple[Image, ...] = ()
    blockers: tuple[Blocker, ...] = ()
    unseen: tuple[str, ...] = ()  #: a sentence each

    @property
    def targets(self) -> tuple[str, ...]:
        """The disks that libvirt is told to copy."""
        return tuple(image.target for image in self.images)


@dataclass(frozen=True, slots=True)
class Answers:
    """What both daemons say of them."""

    host: str  #: what the destination is called
    pools: tuple[Pool, ...] | None  #: None: its libvirt does not say
    volumes: Mapping[str, frozenset[str]]  #: pool -> what is in it now
    sizes: Mapping[str, Size]  #: target -> how large it is at the source


def chosen(disks: Iterable[Disk], targets: tuple[str, ...] | None) -> tuple[Disk, ...]:
    """Return the disks that shall be copied.

    Args:
        disks: of the domain.
        targets: those that were named; None: every one that is this host's own and can be written.
    """
    return tuple(disk for disk in disks if (disk.left_out is None if targets is None else disk.target in targets))


def pool_of(disk: Disk, pools: Iterable[Pool]) -> Pool | None:
    """Return the destination's pool in which an image has its place; None: there is none."""
    if disk.pool is not None:
        return next((pool for pool in pools if pool.name == disk.pool), None)
    directory = str(PurePosixPath(disk.place or "").parent)
    found = [pool for pool in pools if pool.directory and str(PurePosixPath(pool.directory)) == directory]
    return next((pool for pool in found if pool.is_active), next(iter(found), None))


def plan_copies(name: str, disks: tuple[Disk, ...], targets: tuple[str, ...] | None, answers: Answers) -> Copies:
    """Return what is copied, all blockers at once.

    Args:
        name: of the domain.
        disks: all that it has.
        targets: as in `chosen`.
        answers: of both daemons, for the chosen ones.
    """
    blockers = list(_unknown(name, disks, targets))
    images: list[Image] = []
    for disk in chosen(disks, targets):
        found = _place(name, disk, answers)
        if isinstance(found, Image):
            images.append(found)
        elif found is not None:
            blockers.append(found)
    blockers += _too_full(images, answers)
    copied = {image.target for image in images}
    unseen = tuple(
        f"whether {answers.host} has {disk.here} ({disk.target} of {name}), which is not copied:"
        f" {disk.left_out or 'it was not named'}"
        for disk in disks
        if disk.target not in copied and disk.here and disk.in_the_way is None
    )
    return Copies(tuple(images), tuple(blockers), unseen)


def _place(name: str, disk: Disk, answers: Answers) -> Image | Blocker | None:
    """Return the image that a copy needs, or why there can be none."""
    if (why := disk.in_the_way) is not None:
        return Blocker(
            "disk.not-copied", f"{disk.target} of domain {name} ({disk.here or 'nothing in it'}) {why}", _FIX
        )
    host = answers.host
    if answers.pools is None:
        return Blocker(
            "disk.no-pool",
            f"{disk.target} of domain {name} needs an image on {host}, whose libvirt has no storage driver to make it",
            f"install libvirt's storage driver on {host}",
        )
    pool = pool_of(disk, answers.pools)
    if pool is None or not pool.is_active:
        return _no_pool(name, disk, host, pool)
    if disk.volume in answers.volumes.get(pool.name, ()):
        return Blocker(
            "disk.image-there",
            f"{disk.target} of domain {name} is to be copied to {disk.volume} in pool {pool.name}, and {host} has that"
            " already: the hosts share it, or it is left over",
            "if they share it, do not copy it (--disk names the ones to copy); if nobody needs it: virsh vol-delete"
            f" {disk.volume} --pool {pool.name} on {host}",
        )
    size = answers.sizes.get(disk.target)
    if size is None:
        return Blocker("disk.not-copied", f"libvirt does not say how large {disk.here} of domain {name} is", _FIX)
    return Image(disk.target, pool.name, disk.volume, disk.format, size, disk.here, pool.is_logical)


def _no_pool(name: str, disk: Disk, host: str, pool: Pool | None) -> Blocker:
    """Tell that an image would be in no pool, or in one that is not active."""
    place = f"pool {disk.pool}" if disk.place is None else str(PurePosixPath(disk.place).parent)
    what = f"{disk.target} of domain {name} is to be copied to {place}, and {host} has"
    if pool is not None:
        return Blocker(
            "disk.no-pool", f"{what} pool {pool.name} there, not active", f"virsh pool-start {pool.name} on {host}"
        )
    of_name = f"virsh pool-define on {host} as it is here, then pool-start {disk.pool}"
    makes = f"on {host}: virsh pool-define-as NAME dir --target {place}, pool-start NAME; or --map disk:HERE=THERE"
    return Blocker("disk.no-pool", f"{what} no pool there", of_name if disk.pool else makes)


def _unknown(name: str, disks: tuple[Disk, ...], targets: tuple[str, ...] | None) -> Iterator[Blocker]:
    known = [disk.target for disk in disks]
    for target in dict.fromkeys(targets or ()):
        if target not in known:
            has = ", ".join(known) or "none"
            yield Blocker("disk.unknown", f"domain {name} has no disk {target} (it has {has})", "name one that it has")


def _too_full(images: Iterable[Image], answers: Answers) -> Iterator[Blocker]:
    """Yield each pool that has not even the room for what the images take now, or in LVM for the whole of them."""
    needed: dict[str, int] = {}
    for image in images:
        needed[image.pool] = needed.get(image.pool, 0) + (
            image.size.capacity if image.is_logical else image.size.allocation
        )
    for pool in answers.pools or ():
        if needed.get(pool.name, 0) > pool.available:
            yield Blocker(
                "disk.no-room",
                f"pool {pool.name} on {answers.host} has {format_bytes(pool.available)}, and the copies need"
                f" {format_bytes(needed[pool.name])}",
                "make room there, or put an image elsewhere (--map disk:HERE=THERE)",
            )
