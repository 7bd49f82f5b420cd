"""Images that the hosts do not share, at the source: mirrored before the memory is sent, ended when the guest stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from vmferry.conductor.feed import Feed
from vmferry.conductor.marks import Marks
from vmferry.conductor.runner import Runner
from vmferry.core.disks import ImageCopy, written_images
from vmferry.core.errors import Broken, TimedOut, VmferryError
from vmferry.core.guest import FrozenGuest
from vmferry.core.handover.events import SourceEvent
from vmferry.core.handover.states import SourceState
from vmferry.core.progress import DisksCopied
from vmferry.core.units import Bytes, BytesPerSecond, Milliseconds, format_ms
from vmferry.ports.disks import DiskFiles, MirrorState, Waiting
from vmferry.ports.hypervisor import GuestProcess
from vmferry.ports.peer import ReserveReply

_LOOK_EVERY_S = 0.2
_LISTEN_EVERY_S = 1.0
#: A mirror whose reads or writes hang without the guest's.
_STANDS_STILL_S = 120.0
#: A write of the guest waits for its copy; one that is not answered for so long is not waited for any more.
_MOST_SILENCE_MS = 10_000.0
_NOTHING_COPIED_YET = frozenset({SourceState.CHECKING, SourceState.RESERVING})
#: States with mirrors in which the guest runs, or is about to stop.
_COPYING = (
    *(SourceState.COPYING_DISKS, SourceState.DETACHING, SourceState.RESERVED, SourceState.PRECOPY),
    SourceState.POSTCOPY_ORDERED,
)


class DiskCopying:
    """The copies of one hand-over.

    Args:
        guest: whose; None: it is tidied up already.
        nodes: which images are copied, as the journal has it.
        process: the guest's QEMU; raises when it is gone.
        feed: what watchers see.
        marks: when what happened.
    """

    def __init__(
        self,
        guest: FrozenGuest | None,
        nodes: Callable[[], Sequence[str]],
        process: Callable[[], GuestProcess],
        feed: Feed,
        marks: Marks,
    ) -> None:
        self._written = () if guest is None else written_images(guest.spec)
        self._nodes = nodes
        self._process = process
        self._feed = feed
        self._marks = marks
        self._ended = False
        self._through = False  #: each write of the guest goes to both, and waits for both
        self.copied_bytes: Bytes | None = None  #: None: nothing was, or an earlier agent knew

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the images of which the destination gets a copy."""
        return tuple(image.path for image in self._written if image.node in self._nodes())

    async def why_locked(self, files: DiskFiles) -> str | None:
        """Return why the destination could not take the images that both hosts share; nobody holds them now."""
        shared = [image.path for image in self._written if image.node not in self._nodes()]
        return await asyncio.to_thread(files.why_locked, shared) if shared else None

    async def copies(self) -> tuple[ImageCopy, ...]:
        """Return what the destination must make room for.

        Raises:
            Refused: an image holds what no mirror carries over.
        """
        images = [image for image in self._written if image.node in self._nodes()]
        return tuple([ImageCopy(image, await self._process().mirrors.size_of(image.node)) for image in images])

    async def copy(self, way: ReserveReply | None, *, encrypted: bool, bandwidth: BytesPerSecond | None) -> None:
        """Mirror images until every copy is in step, and have each write go to both from then on.

        Raises:
            Broken: a mirror failed, or nothing moves.
        """
        if way is None or way.disk_port is None:
            raise Broken("The destination serves no images", side="destination")
        nodes, mirrors = self._nodes(), self._process().mirrors
        where = (way.address, way.disk_port)
        self._through = await mirrors.begin(nodes, *where, encrypted=encrypted, bandwidth=bandwidth)
        self._marks.mark("disks_begun")
        moved, moved_at, first_pass = Bytes(-1), _now(), 0
        while not _in_step(states := await mirrors.look(), nodes):
            done = await self._tell(states)
            first_pass = first_pass or sum(state.total_bytes for state in states)
            if not self._through and 0 < first_pass <= done:  # all was copied once: it may write as fast as we copy
                await self._write_through()
            if done != moved:
                moved, moved_at = done, _now()
            elif _now() - moved_at > _STANDS_STILL_S:
                raise Broken(f"Nothing of the disks was copied for {_STANDS_STILL_S:g} s", side="source")
            await asyncio.sleep(_LOOK_EVERY_S)
        await self._tell(states)
        await self._write_through()
        self._marks.mark("disks_mirrored")

    async def _write_through(self) -> None:
        await self._process().mirrors.write_through()
        self._through = True

    async def _tell(self, states: Sequence[MirrorState]) -> Bytes:
        done, total = (sum(state.done_bytes for state in states), sum(state.total_bytes for state in states))
        await self._feed.publish(DisksCopied(self._marks.since_start_ms(), Bytes(done), Bytes(total), len(states)))
        self.copied_bytes = Bytes(done)
        return self.copied_bytes

    async def watch(self, runner: Runner) -> None:
        """Give the move up when the guest waits for its disk: its write may wait for a copy that never answers."""
        await runner.wait_left(_NOTHING_COPIED_YET)
        self._through = self._through or runner.machine.state is not SourceState.COPYING_DISKS
        stuck_since: dict[Waiting | None, float] = {}
        while self._nodes() and runner.machine.state in _COPYING:
            await asyncio.sleep(_LISTEN_EVERY_S)
            now, waits = _now(), await self._waits()
            stuck_since = {one: stuck_since.get(one, now) for one in waits} if self._through else {}
            silent_ms = Milliseconds(1000 * max((now - since for since in stuck_since.values()), default=0.0))
            if silent_ms > _MOST_SILENCE_MS:
                why = f"the guest has waited for a disk for {format_ms(silent_ms)}: a copy may not answer"
                for state in _COPYING:
                    runner.post(SourceEvent.STREAM_FAILED, why, only_in=state)

    async def _waits(self) -> frozenset[Waiting | None]:
        """Return for what the guest waits; None in it: QEMU itself does, and answers nothing."""
        try:
            return frozenset(await self._process().mirrors.waiting())
        except TimedOut:
            return frozenset({None})
        except VmferryError:  # it is gone: others tell
            return frozenset()

    async def cut(self) -> None:
        """Break the mirrors' connections: QEMU may be waiting for them, and answer nothing until then."""
        if self._nodes() and not self._ended:
            await self._process().mirrors.cut(self._nodes())

    async def drop(self) -> None:
        """Give the mirrors up; the guest's images stay as they are. Idempotent.

        Raises:
            Broken, TimedOut: QEMU still has one.
        """
        if self._nodes():
            await self._process().mirrors.drop()

    async def end(self) -> None:
        """End the mirrors of a guest that stands still, once.

        Raises:
            Broken: a copy cannot be used.
        """
        if self._nodes() and not self._ended:
            await self._process().mirrors.end(self._nodes())
            self._ended = True
            self._marks.mark("mirrors_ended")


def _in_step(states: Sequence[MirrorState], nodes: Sequence[str]) -> bool:
    """Tell whether every copy is in step.

    Raises:
        Broken: one has failed, or is gone.
    """
    found = {state.node: state for state in states}
    for node in nodes:
        if node not in found:
            raise Broken(f"Mirror of image {node} is gone", side="source")
        if (error := found[node].error) is not None:
            raise Broken(f"Copy of image {node} failed: {error}", side="source")
    return all(found[node].in_step for node in nodes)


def _now() -> float:
    return asyncio.get_running_loop().time()
