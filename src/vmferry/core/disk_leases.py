"""Leases of a lock manager for the images that a guest writes: which images have one, and after what each is called.

A lease is called after the image's path, which is the same on both hosts of a move: so both mean the same lease,
whatever their mount points are links to. Two paths that lead to one image have two leases: name it alike everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmferry.core.disks import written_images
from vmferry.core.errors import Blocker
from vmferry.core.guest import GuestSpec


@dataclass(frozen=True, slots=True)
class DiskLeaseFacts:
    """How a host takes leases of its guests' images (sanlock), as its agent says it now."""

    lockspace: str  #: within which hosts exclude each other
    host_id: int  #: its own there
    image_dirs: tuple[str, ...]  #: images below these have leases
    watchdog: bool  #: it is reset when a guest cannot be ended before its leases are
    #: (host id, how many times that was taken) of those that it sees alive in the lockspace, itself among them
    alive: tuple[tuple[int, int], ...] = ()
    problem: Blocker | None = None  #: why no guest can have a lease here now

    @property
    def itself(self) -> tuple[int, int] | None:
        """Return how others must see it in the lockspace; None: it does not see itself there yet."""
        return next((seen for seen in self.alive if seen[0] == self.host_id), None)


def leased_images(spec: GuestSpec, image_dirs: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of the images that a guest writes and that lie below the directories."""
    paths = [image.path for image in written_images(spec)]
    return tuple(path for path in paths if any(_is_below(path, each) for each in image_dirs))


def plain_path(path: str) -> str:
    """Return an absolute path as its words say it, without doubled signs, `.` and `..`; links are not followed."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def _is_below(path: str, directory: str) -> bool:
    above = plain_path(directory)
    return plain_path(path).startswith(above if above == "/" else f"{above}/")
