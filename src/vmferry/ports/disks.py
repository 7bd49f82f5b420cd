"""Copies of disk images: mirrored by the guest's QEMU while it runs, and the files that become them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vmferry.core.disks import Image, ImageCopy
from vmferry.core.ids import HandoverId
from vmferry.core.units import Bytes, BytesPerSecond


@dataclass(frozen=True, slots=True)
class MirrorState:
    """How far the copy of one image is; more to do comes with each write of the guest."""

    node: str
    done_bytes: Bytes
    total_bytes: Bytes
    in_step: bool  #: the copy is what the image is, but for what is being written now
    error: str | None = None  #: why it ended


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queue of a disk with requests that are not answered yet."""

    queue: str
    answered: int  #: how many were, modulo 2**16


class DiskMirrors(Protocol):
    """Mirrors of a guest's images, in its QEMU: at the source to begin and end them, at the destination to serve them.

    Images are named by their nodes (`core.disks`). Every call raises Broken when QEMU says no.
    """

    async def size_of(self, node: str) -> Bytes:
        """Return an image's size as the guest sees it.

        Raises:
            Refused: it holds what no mirror carries over (internal snapshots).
        """

    async def serve(self, nodes: Sequence[str], address: str, port: int, *, encrypted: bool) -> None:
        """Let the other side write these images; encrypted as `prepare_migration` has set it up."""

    async def stop_serving(self) -> None:
        """Let nobody else write them any more; returns when nobody can. Idempotent."""

    async def begin(
        self, nodes: Sequence[str], address: str, port: int, *, encrypted: bool, bandwidth: BytesPerSecond | None
    ) -> bool:
        """Begin to mirror these images; on failure none is mirrored. Returns whether each write goes to both already.

        Args:
            nodes: which.
            address: where the destination's QEMU serves them.
            port: likewise.
            encrypted: as `prepare_migration` has set it up.
            bandwidth: what all of them together may take until they are in step; None: as much as the link gives.
        """

    async def look(self) -> tuple[MirrorState, ...]:
        """Ask how far they are."""

    async def write_through(self) -> None:
        """Have each write of the guest go to both from now on, so that the rest cannot grow again. Idempotent."""

    async def waiting(self) -> frozenset[Waiting]:
        """Return where the guest waits for a disk; what is the same for long is stuck.

        Of virtio disks: others do not say.
        """

    async def end(self, nodes: Sequence[str]) -> None:
        """End the mirrors of a guest that stands still; the copies then are what the images are.

        Raises:
            Broken: one is missing, not in step, or failed: then the copies must not be used.
        """

    async def cut(self, nodes: Sequence[str]) -> None:
        """Break the mirrors' connections at once, although QEMU may be waiting for them and answer no question.

        They fail; `drop` removes them. Nothing happens to one that is not there.
        """

    async def drop(self) -> None:
        """Give all mirrors up at once, also over a link that is dead; the guest's images stay as they are. Idempotent.

        Raises:
            Broken, TimedOut: QEMU still has one.
        """


class DiskFiles(Protocol):
    """The files of copies, on this host. A copy has a second name until the guest is here for good: that proves whose.

    Every call may wait for a disk.
    """

    def make(self, handover: HandoverId, copies: Sequence[ImageCopy]) -> None:
        """Make empty images; on failure those made before are left to `drop`.

        Raises:
            Refused: a file is there already, may not be made, or does not fit.
        """

    def keep(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """Make images that arrived this host's own. Idempotent."""

    def drop(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """Remove the images that `make` made for this hand-over, and nothing else. Idempotent."""

    def leave(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """As `drop`, but what came of an image stays under its second name: its source is gone for good. Idempotent."""

    def why_locked(self, paths: Sequence[str]) -> str | None:
        """Return why a guest that nobody runs could not be given these images now; None when it could.

        An image that cannot be asked about counts as free: what uses it will be told.
        """

    def put_aside(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """Rename images whose guest has left, so that no guest is started with them by accident. Idempotent."""


def nodes_of(images: Sequence[Image]) -> tuple[str, ...]:
    """Return the names of images in QEMU's block layer."""
    return tuple(image.node for image in images)
