"""Images that the hosts do not share, at the source: mirrored before the memory is sent, ended when the guest stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from vmferry.conductor.feed import Feed
from vmferry.conductor.marks import Marks
from vmferry.conductor.runner import Runner
from vmferry.core.disks import ImageCopy, written_images
from vmferry.core.errors import Broken, VmferryError
from vmferry.core.guest import FrozenGuest
from vmferry.core.handover.events import SourceEvent
from vmferry.core.handover.states import SourceState
from vmferry.core.progress import DisksCopied
from vmferry.core.units import Bytes, BytesPerSecond, format_ms
from vmferry.ports.disks import DiskFiles, MirrorState
from vmferry.ports.hypervisor import GuestProcess
from vmferry.ports.peer import ReserveReply

_LOOK_EVERY_S = 0.2
_LISTEN_EVERY_S = 1.0
#: A write of the guest waits for its copy; one that is not answered for so long is not waited for any more.
_MOST_SILENCE_MS = 10_000.0
#: Until the copies are in step no write waits, or a link may heal meanwhile.
_NOT_THROUGH_YET = frozenset({SourceState.CHECKING, SourceState.RESERVING, SourceState.COPYING_DISKS})
#: States in which the guest runs, and each of its writes goes to both.
_THROUGH = (SourceState.RESERVED, SourceState.PRECOPY, SourceState.POSTCOPY_ORDERED)
#: A mirror ends by itself over a dead link; this one hangs elsewhere (a disk that does not answer).
_STANDS_STILL_S = 120.0


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
        await mirrors.begin(nodes, way.address, way.disk_port, encrypted=encrypted, bandwidth=bandwidth)
        self._marks.mark("disks_begun")
        moved, moved_at, first_pass, through = Bytes(-1), _now(), None, False
        while not _in_step(states := await mirrors.look(), nodes):
            done = await self._tell(states)
            first_pass = first_pass or sum(state.total_bytes for state in states)
            if not through and done >= first_pass:  # all was copied once, and the guest may write as fast as we do
                await mirrors.write_through()
                through = True
            if done != moved:
                moved, moved_at = done, _now()
            elif _now() - moved_at > _STANDS_STILL_S:
                raise Broken(f"Nothing of the disks was copied for {_STANDS_STILL_S:g} s", side="source")
            await asyncio.sleep(_LOOK_EVERY_S)
        await self._tell(states)
        await mirrors.write_through()
        self._marks.mark("disks_mirrored")

    async def _tell(self, states: Sequence[MirrorState]) -> Bytes:
        done, total = (sum(state.done_bytes for state in states), sum(state.total_bytes for state in states))
        await self._feed.publish(DisksCopied(self._marks.since_start_ms(), Bytes(done), Bytes(total), len(states)))
        self.copied_bytes = Bytes(done)
        return self.copied_bytes

    async def watch(self, runner: Runner, copied_to: Callable[[], str | None]) -> None:
        """Give the move up when the destination does not answer a mirror: a write of the guest may wait for it.

        Args:
            runner: lives the machine.
            copied_to: "ADDRESS PORT" where the destination serves the images; None: it serves none.
        """
        await runner.wait_left(_NOT_THROUGH_YET)
        if (where := copied_to()) is None:
            return
        address, _, port = where.rpartition(" ")
        while True:
            await asyncio.sleep(_LISTEN_EVERY_S)
            with contextlib.suppress(VmferryError):  # QEMU does not answer, or is gone: others tell
                silent = await self._process().mirrors.unanswered(address, int(port))
                if silent > _MOST_SILENCE_MS:
                    why = f"the destination has not answered a write to a copy for {format_ms(silent)}"
                    for state in _THROUGH:
                        runner.post(SourceEvent.STREAM_FAILED, why, only_in=state)

    async def end(self) -> None:
        """End the mirrors of a guest that stands still, once.

        Raises:
            Broken: a copy cannot be used.
        """
        if self._nodes() and not self._ended:
            await self._process().mirrors.end(self._nodes())
            self._ended = True
            self._marks.mark("mirrors_ended")


def served_at(way: ReserveReply | None) -> str | None:
    """Return where the destination serves images, as "ADDRESS PORT"; None: it serves none."""
    return None if way is None or way.disk_port is None else f"{way.address} {way.disk_port}"


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
