"""Images mirrored to the destination's QEMU over NBD, beside the stream of the memory.

Source: QEMU qapi/block-core.json (blockdev-mirror, block-job-change), qapi/block-export.json (nbd-server-start),
qapi/job.json, qapi/yank.json; docs/interop/live-block-operations. Seen with 7.2.22 and 10.0.2.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog

from vmferry.core.errors import Broken, Refused, VmferryError
from vmferry.core.ids import GuestName
from vmferry.core.units import Bytes, BytesPerSecond
from vmferry.ports.disks import MirrorState, Waiting
from vmferry.ports.hypervisor import MigrationSetup
from vmferry.qemu.credentials import names
from vmferry.qemu.events import MIRROR_PREFIX as PREFIX
from vmferry.qemu.migration import Version
from vmferry.qemu.process import Process
from vmferry.qemu.qmp import QmpSession

_log = structlog.get_logger(__name__)

#: The version from which on a mirror can begin to write through when it is in step; before it does all the time.
CHANGES_MODE = (8, 2, 0)
#: A job that has done what there was, and one of these that rests for a moment.
_IN_STEP = frozenset({"ready", "standby"})
#: Long enough for a network to heal while nobody waits for the mirror, and for a guest's write to wait for its copy.
_SILENCE_MS, _SILENCE_OF_A_WRITE_MS = 60_000, 10_000
_LOOK_S = 0.002
_ENDS_S = 10.0


class QemuDiskMirrors:
    """Mirrors of one guest's images, in one QEMU.

    Args:
        guest: whose.
        session: to its QEMU.
        version: asks for that one's version.
        process: that one.
        out_of_band: has QEMU do something although its main loop may be waiting.
    """

    def __init__(
        self,
        guest: GuestName,
        session: QmpSession,
        version: Callable[[], Awaitable[Version]],
        process: Process,
        out_of_band: Callable[[str, Mapping[str, object]], Awaitable[None]],
    ) -> None:
        self._guest = guest
        self._session = session
        self._version = version
        self._process = process
        self._out_of_band = out_of_band
        self._peer: tuple[str, int] | None = None
        self.setup: MigrationSetup | None = None  #: what `prepare_migration` has set up

    async def size_of(self, node: str) -> Bytes:
        """Return an image's size as the guest sees it.

        Raises:
            Refused: it holds internal snapshots.
            Broken: QEMU has no such image.
        """
        found = (await self._nodes()).get(node)
        if found is None:
            raise Broken(f"QEMU of guest {self._guest} has no image {node}")
        if found["image"].get("snapshots"):
            raise Refused(
                f"Image {node} of guest {self._guest} holds internal snapshots, which no mirror carries over",
                fix="delete them (qemu-img snapshot -d, guest stopped), or put the image on shared storage",
                side="source",
            )
        return Bytes(found["image"]["virtual-size"])

    # -- destination ----------------------------------------------------------------------------------------------

    async def serve(self, nodes: Sequence[str], address: str, port: int, *, encrypted: bool) -> None:
        """Let the source write these images."""
        where = {"type": "inet", "data": {"host": address, "port": str(port)}}
        await self._session.execute(
            "nbd-server-start", {"addr": where, **self._tls(encrypted=encrypted, incoming=True)}
        )
        for node in nodes:
            export = {"type": "nbd", "id": node, "node-name": node, "name": node, "writable": True}
            await self._session.execute("block-export-add", export)

    async def stop_serving(self) -> None:
        """Let nobody else write them any more.

        Raises:
            Broken: somebody still can.
        """
        if not await self._session.execute("query-block-exports"):
            return
        await self._session.execute("nbd-server-stop")
        await _wait_until(self._serves_nothing, f"QEMU of guest {self._guest} does not stop serving its images")

    async def _serves_nothing(self) -> bool:
        return not await self._session.execute("query-block-exports")

    # -- source ---------------------------------------------------------------------------------------------------

    async def begin(
        self, nodes: Sequence[str], address: str, port: int, *, encrypted: bool, bandwidth: BytesPerSecond | None
    ) -> bool:
        """Begin to mirror these images; on failure none is mirrored. Returns whether writes go to both already."""
        changes_mode = await self._version() >= CHANGES_MODE
        self._peer = (address, port)
        server = {"type": "inet", "host": address, "port": str(port)}
        try:
            for node in nodes:
                target: dict[str, object] = {
                    "driver": "nbd",
                    "node-name": PREFIX + node,
                    "server": server,
                    "export": node,
                    "discard": "unmap",  # what is empty stays empty
                    "cache": {"direct": True, "no-flush": False},
                }
                await self._session.execute("blockdev-add", target | self._tls(encrypted=encrypted, incoming=False))
            self._end_silent(self._peer, _SILENCE_MS if changes_mode else _SILENCE_OF_A_WRITE_MS)
            on_top = {name for name, row in (await self._nodes()).items() if row.get("backing_file")}
            for node in nodes:
                mirror: dict[str, object] = {
                    "job-id": PREFIX + node,
                    "device": node,
                    "target": PREFIX + node,
                    "sync": "top" if node in on_top else "full",  # the copy stands on the same images
                    "copy-mode": "background" if changes_mode else "write-blocking",
                    "auto-dismiss": False,  # why it ended can then be asked
                    "speed": 0 if bandwidth is None else max(1, bandwidth // len(nodes)),
                }
                await self._session.execute("blockdev-mirror", mirror)
        except BaseException:
            with contextlib.suppress(VmferryError):
                await asyncio.shield(self.drop())
            raise
        return not changes_mode

    async def look(self) -> tuple[MirrorState, ...]:
        """Ask how far they are."""
        return tuple(
            MirrorState(
                job["id"].removeprefix(PREFIX),
                Bytes(job["current-progress"]),
                Bytes(job["total-progress"]),
                job["status"] in _IN_STEP,
                job.get("error"),
            )
            for job in await self._jobs()
        )

    async def write_through(self) -> None:
        """Have each write of the guest go to both from now on."""
        if await self._version() < CHANGES_MODE:
            return
        for job in await self._jobs():
            change = {"id": job["id"], "type": "mirror", "copy-mode": "write-blocking"}
            await self._session.execute("block-job-change", change)
        if self._peer is not None:
            self._end_silent(self._peer, _SILENCE_OF_A_WRITE_MS)

    async def waiting(self) -> frozenset[Waiting]:
        """Return which queues of the guest's virtio disks have requests that are not answered yet."""
        found = []
        for device in await self._session.execute("x-query-virtio"):
            if device["name"] == "virtio-blk":
                path = device["path"]
                count = (await self._session.execute("x-query-virtio-status", {"path": path}))["num-vqs"]
                found += [await self._queue(path, index) for index in range(count)]
        return frozenset(one for one in found if one is not None)

    async def _queue(self, path: str, index: int) -> Waiting | None:
        asked = {"path": path, "queue": index}
        queue = await self._session.execute("x-query-virtio-queue-status", asked)
        return Waiting(f"{path}:{index}", queue["used-idx"]) if queue["inuse"] else None

    def _end_silent(self, peer: tuple[str, int], silence_ms: int) -> None:
        """Have connections end that stay silent, also when no agent looks; best effort."""
        try:
            found = self._process.end_silent(peer, silence_ms)
        except OSError as error:
            _log.warning("a silent link may hold writes of the guest", guest=self._guest, error=str(error))
        else:
            _log.info("connections of mirrors end when they are silent", guest=self._guest, found=found, ms=silence_ms)

    async def end(self, nodes: Sequence[str]) -> None:
        """End the mirrors of a guest that stands still.

        Raises:
            Broken: one is missing, not in step, or failed.
        """
        found = {state.node: state for state in await self.look()}
        for node in nodes:
            state = found.get(node)
            if state is None or state.error is not None or not state.in_step:
                what = "gone" if state is None else state.error or "not in step"
                raise Broken(f"Copy of image {node} of guest {self._guest} cannot be used: its mirror is {what}")
        for node in nodes:
            await self._session.execute("block-job-cancel", {"device": PREFIX + node})
        for job in await self._concluded():
            if (error := job.get("error")) is not None:
                raise Broken(f"Copy of image {job['id'].removeprefix(PREFIX)} of guest {self._guest} failed: {error}")
        await self._remove()

    async def cut(self, nodes: Sequence[str]) -> None:
        """Break the connections of mirrors; out of band, since QEMU waits for them with its main loop when it stops."""
        for node in nodes:
            where = {"type": "block-node", "node-name": PREFIX + node}
            with contextlib.suppress(VmferryError):  # there is none (any more)
                await self._out_of_band("yank", {"instances": [where]})

    async def drop(self) -> None:
        """Give all mirrors up at once, also over a link that is dead.

        Raises:
            Broken: QEMU still has one.
        """
        await self.cut([node.removeprefix(PREFIX) for node in await self._targets()])
        for job in await self._jobs():
            if job["status"] != "concluded":
                with contextlib.suppress(VmferryError):  # it has ended by itself meanwhile
                    await self._session.execute("block-job-cancel", {"device": job["id"], "force": True})
        await self._concluded()
        await self._remove()

    def _tls(self, *, encrypted: bool, incoming: bool) -> dict[str, str]:
        return names(self.setup, incoming=incoming) if encrypted else {}

    async def _concluded(self) -> list[dict[str, Any]]:
        """Return the jobs once all of them have ended."""
        await _wait_until(self._all_concluded, f"Mirrors of guest {self._guest} do not end")
        return await self._jobs()

    async def _all_concluded(self) -> bool:
        return all(job["status"] == "concluded" for job in await self._jobs())

    async def _remove(self) -> None:
        for job in await self._jobs():
            await self._session.execute("job-dismiss", {"id": job["id"]})
        for node in await self._targets():
            await self._session.execute("blockdev-del", {"node-name": node})

    async def _jobs(self) -> list[dict[str, Any]]:
        return [job for job in await self._session.execute("query-jobs") if job["id"].startswith(PREFIX)]

    async def _targets(self) -> list[str]:
        return [node for node in await self._nodes() if node.startswith(PREFIX)]

    async def _nodes(self) -> dict[str, dict[str, Any]]:
        rows = await self._session.execute("query-named-block-nodes", {"flat": True})
        return {row["node-name"]: row for row in rows if "node-name" in row}


async def _wait_until(true: Callable[[], Awaitable[bool]], what: str) -> None:
    """Ask until it is true.

    Raises:
        Broken: it is not within 10 s; `what` says what is wrong.
    """
    try:
        async with asyncio.timeout(_ENDS_S):
            while not await true():  # noqa: ASYNC110 - QEMU has no event for it
                await asyncio.sleep(_LOOK_S)
    except TimeoutError as error:
        raise Broken(f"{what} within {_ENDS_S:g} s") from error
