"""Mirrors of images in memory, stricter than QEMU: no copy may be used that is not whole, nobody writes one behind.

What is mirrored and served is kept in the processes of the link, so that an agent that is restarted finds it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vmferry.core.disks import ImageCopy, written_images
from vmferry.core.errors import Broken, Refused
from vmferry.core.ids import HandoverId
from vmferry.core.migration import RunState
from vmferry.core.units import MIB, Bytes, BytesPerSecond
from vmferry.ports.disks import MirrorState, Waiting, nodes_of
from vmferry.ports.hypervisor import GuestEventKind
from vmferry.testing.fake_qemu import FakeLink, FakeQemu

IMAGE_BYTES = Bytes(8 * MIB)
#: What one look moves.
_STEP = Bytes(4 * MIB)
_STANDS_STILL = frozenset({RunState.PAUSED, RunState.FINISH_MIGRATE, RunState.POSTMIGRATE})


@dataclass(eq=False)
class FakeMirror:
    """One image's copy on its way."""

    node: str
    destination: FakeQemu
    done: int = 0
    total: int = IMAGE_BYTES
    through: bool = False  #: each write goes to both
    error: str | None = None

    @property
    def in_step(self) -> bool:
        """Whether the copy is what the image is."""
        return self.done >= self.total and self.error is None


class FakeMirrors:
    """Mirrors of one process.

    Args:
        qemu: the process.
        link: what hosts share.
        call: records a call; raises when the process does not answer.
    """

    def __init__(self, qemu: FakeQemu, link: FakeLink, call: Callable[[str], None]) -> None:
        self._qemu = qemu
        self._link = link
        self._call = call

    async def size_of(self, node: str) -> Bytes:
        """Return the size of every image that the guest writes."""
        self._call("size_of")
        self._require(node in nodes_of(written_images(self._qemu.guest.spec)), "size_of", f"no image {node}")
        return IMAGE_BYTES

    async def serve(self, nodes: Sequence[str], address: str, port: int, *, encrypted: bool) -> None:
        """Serve images of an arrival that has not loaded."""
        self._call("serve")
        self._require(self._qemu.incoming and self._qemu.state is RunState.INMIGRATE, "serve", "it does not receive")
        self._require((address, port) not in self._link.taken_ports, "serve", "Address already in use")
        has_key = self._qemu.setup is not None and self._qemu.setup.encrypted
        self._require(has_key or not encrypted, "serve", "no such object")
        self._qemu.exports, self._qemu.exports_at = set(nodes), (address, port)
        self._qemu.exports_encrypted = encrypted
        self._qemu.empty = set(nodes)

    async def stop_serving(self) -> None:
        """Serve nothing any more; a mirror that still runs fails."""
        self._call("stop_serving")
        self._qemu.exports, self._qemu.exports_at = set(), None

    async def begin(
        self, nodes: Sequence[str], address: str, port: int, *, encrypted: bool, bandwidth: BytesPerSecond | None
    ) -> bool:
        """Begin mirrors to a process that serves all of these images."""
        self._call("begin_mirrors")
        self._require(not self._qemu.mirrors, "begin_mirrors", "there are mirrors already")
        found = [qemu for qemu in self._link.processes.values() if qemu.alive and qemu.exports_at == (address, port)]
        self._require(found and not self._link.is_cut, "begin_mirrors", "Connection refused")
        self._require(set(nodes) <= found[0].exports, "begin_mirrors", "no such export")
        self._require(found[0].exports_encrypted is encrypted, "begin_mirrors", "TLS negotiation failed")
        self._qemu.mirror_bandwidth = bandwidth
        self._qemu.mirrors = [FakeMirror(node, found[0]) for node in nodes]
        return False

    async def look(self) -> tuple[MirrorState, ...]:
        """Move every mirror on, and tell how far it is."""
        self._call("look")
        for mirror in self._qemu.mirrors:
            if self._link.is_cut or not mirror.destination.exports:
                self.fail(mirror, "Input/output error")
            elif mirror.error is None:
                if self._qemu.writes_much and not mirror.through:  # as much as is copied
                    mirror.total += _STEP
                mirror.done = min(mirror.total, mirror.done + _STEP)
        return tuple(
            MirrorState(each.node, Bytes(each.done), Bytes(each.total), each.in_step, each.error)
            for each in self._qemu.mirrors
        )

    async def write_through(self) -> None:
        """Have writes go to both."""
        self._call("write_through")
        for mirror in self._qemu.mirrors:
            mirror.through = True

    async def waiting(self) -> frozenset[Waiting]:
        """Return what the test said; the same again when it is stuck."""
        self._call("waiting")
        if self._qemu.disk_answers:
            self._qemu.disk_answered += 1
        return frozenset({Waiting("disk0:0", self._qemu.disk_answered)})

    async def end(self, nodes: Sequence[str]) -> None:
        """End the mirrors of a guest that stands still."""
        self._call("end_mirrors")
        still = self._qemu.state in _STANDS_STILL
        self._require(still, "end_mirrors", f"the guest writes: {self._qemu.state}")
        found = {each.node: each for each in self._qemu.mirrors}
        for node in nodes:
            mirror = found.get(node)
            usable = mirror is not None and mirror.in_step and mirror.through and mirror.destination.alive
            if not usable or self._link.is_cut:
                raise Broken(f"Copy of image {node} of guest {self._qemu.guest.spec.name} cannot be used")
        for mirror in self._qemu.mirrors:
            mirror.destination.empty.discard(mirror.node)
        self._qemu.mirrors = []

    async def cut(self, nodes: Sequence[str]) -> None:
        """Break the mirrors of these images; QEMU goes on answering when it hung for one."""
        self._call("cut_mirrors")
        for mirror in self._qemu.mirrors:
            if mirror.node in nodes:
                self.fail(mirror, "Input/output error")
        if self._qemu.hangs_for_a_mirror:
            self._qemu.deaf = self._qemu.hangs_for_a_mirror = False

    async def drop(self) -> None:
        """Give all of them up."""
        self._call("drop_mirrors")
        self._qemu.mirrors = []

    def fail(self, mirror: FakeMirror, error: str) -> None:
        """End a mirror with an error, and tell it."""
        if mirror.error is None:
            mirror.error = error
            self._qemu.emit(GuestEventKind.MIRROR_FAILED, detail=f"copy of image {mirror.node} failed: {error}")

    def _require(self, holds: object, name: str, why: str) -> None:
        if not holds:
            raise Broken(f"QEMU of guest {self._qemu.guest.spec.name} refused {name}: {why}")


class FakeDiskFiles:
    """Files of images in memory; refuses to make what is there."""

    def __init__(self) -> None:
        self.arriving: dict[str, HandoverId] = {}
        self.own: set[str] = set()
        self.aside: list[str] = []
        self.dropped: list[str] = []
        self.left: list[str] = []
        self.locked: set[str] = set()  #: by strangers

    def make(self, handover: HandoverId, copies: Sequence[ImageCopy]) -> None:
        """Make images for a hand-over."""
        for copy in copies:
            path = copy.image.path
            if path in self.arriving or path in self.own:
                raise Refused(f"Image {path} cannot be made: a file is there already")
            self.arriving[path] = handover

    def keep(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """Make them this host's own."""
        for path in paths:
            if path not in self.own and self.arriving.pop(path, None) != handover:
                raise AssertionError(f"{path} is kept by another hand-over than it was made for")
            self.own.add(path)

    def leave(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """Keep what came of them under the second name only."""
        for path in paths:
            if self.arriving.get(path) == handover:
                del self.arriving[path]
                self.left.append(path)

    def drop(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """Remove those of this hand-over."""
        for path in paths:
            if self.arriving.get(path) == handover:
                del self.arriving[path]
                self.dropped.append(path)

    def why_locked(self, paths: Sequence[str]) -> str | None:
        """Return why one of them is locked."""
        return next((f"image {path} is locked by another" for path in paths if path in self.locked), None)

    def put_aside(self, handover: HandoverId, paths: Sequence[str]) -> None:
        """Rename them."""
        for path in paths:
            self.own.discard(path)
            self.aside.append(f"{path}.left-{handover}")
