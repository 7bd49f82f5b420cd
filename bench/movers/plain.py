"""Plain QEMU: a script starts the destination and says `migrate` over QMP, with QEMU's own defaults."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from grid.cells import Cell
from grid.figures import Word
from grid.observe import DESTINATION, SOURCE
from qemu.qmp import ConnectError, QMPClient

from movers.base import Mover
from movers.guest_files import BEAT_PORT, guest_image, guest_plan, plain_argv
from vmferry.core.errors import Broken
from vmferry.lab.hosts import Lab
from vmferry.lab.inside import socket_in
from vmferry.lab.iproute import batch
from vmferry.lab.network import BRIDGE

STREAM_PORT = 49_300
TAP = "plain0"
POLL_S = 0.02
START_TIMEOUT_S = 20.0
ENDED = frozenset({"completed", "failed", "cancelled"})


class PlainMover(Mover):
    """QEMU with its defaults; subclasses switch its own means on."""

    name = "qemu"
    capabilities: ClassVar[Mapping[str, bool]] = {}
    #: Of the source; QEMU's defaults otherwise.
    parameters: ClassVar[Mapping[str, int]] = {}
    #: Start post-copy when QEMU has begun this round; None: never.
    postcopy_after_round: ClassVar[int | None] = None
    #: Stop the guest before that, as ours do.
    stops_first: ClassVar[bool] = False

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._argv: dict[str, list[str]] = {}
        self._running: dict[str, _Qemu] = {}
        self._sinks: list[socket.socket] = []

    async def boot(self, cell: Cell) -> None:
        """Start QEMU on host-a."""
        plan = await guest_plan(cell)
        image = await guest_image(self.lab, plan, "plain")
        for host in (SOURCE, DESTINATION):
            self._folder(host).mkdir(exist_ok=True)
            self._argv[host] = plain_argv(plan, image, self._folder(host), TAP)
            self._make_tap(host)
            self._sinks.append(beat_sink(self._namespace(host)))
        await self._start(SOURCE)

    async def order(self, limit_s: float) -> Word:
        """Start the destination's QEMU, say `migrate`, and wait for its end."""
        deadline = time.monotonic() + limit_s
        await self._start(DESTINATION, "-incoming", "defer")
        source, destination = self._running[SOURCE].qmp, self._running[DESTINATION].qmp
        capabilities = [{"capability": name, "state": on} for name, on in self.capabilities.items()]
        for side in (source, destination):
            if capabilities:
                await side.execute("migrate-set-capabilities", {"capabilities": capabilities})
        if self.parameters:
            await source.execute("migrate-set-parameters", dict(self.parameters))
        uri = f"tcp:{self.lab.hosts[DESTINATION].address}:{STREAM_PORT}"
        await destination.execute("migrate-incoming", {"uri": uri})
        await source.execute("migrate", {"uri": uri})
        return await self._watched_to_end(source, deadline)

    def control(self, host: str) -> Path:
        """Return the guest's control socket on a host."""
        return self._folder(host) / "control.sock"

    def console(self, host: str) -> Path:
        """Return the guest's console socket on a host."""
        return self._folder(host) / "console.sock"

    async def end(self) -> None:
        """End both QEMUs; the taps and sinks go too."""
        for running in self._running.values():
            await running.end()
        self._running.clear()
        for sink in self._sinks:
            sink.close()
        self._sinks.clear()
        for host in self._argv:
            batch(self._namespace(host), [f"link del {TAP}"])
        self._argv.clear()

    async def _watched_to_end(self, source: QMPClient, deadline: float) -> Word:
        switched = False
        while True:
            info = cast("dict[str, Any]", await source.execute("query-migrate"))
            ended_ns = time.monotonic_ns()
            if info["status"] in ENDED:
                return _word(info, ended_ns)
            if time.monotonic() > deadline:
                await source.execute("migrate_cancel")
                return _word(info, ended_ns, late=True)
            rounds = info.get("ram", {}).get("dirty-sync-count", 0)
            if self.postcopy_after_round and not switched and rounds >= self.postcopy_after_round:
                switched = True
                if self.stops_first:
                    await source.execute("stop")
                await source.execute("migrate-start-postcopy")
            if switched:
                await self.follow(source, str(info["status"]))
            await asyncio.sleep(POLL_S)

    async def follow(self, source: QMPClient, status: str) -> None:
        """Do what is to be done while post-copy's pages follow; called again and again."""

    async def _start(self, host: str, *extra: str) -> None:
        running = _Qemu([*self.lab.inside(host), *self.lab.hosts[host].qemu.argv, *self._argv[host], *extra], self.lab)
        self._running[host] = running
        await running.connect(self._folder(host) / "qmp.sock")

    def _make_tap(self, host: str) -> None:
        lines = [f"tuntap add dev {TAP} mode tap vnet_hdr", f"link set {TAP} master {BRIDGE}", f"link set {TAP} up"]
        batch(self._namespace(host), lines)

    def _namespace(self, host: str) -> str:
        if self.lab.network is None:
            raise Broken("Plain QEMU needs a lab with namespaces", fix="run as root")
        return self.lab.network.namespace(host)

    def _folder(self, host: str) -> Path:
        return self.lab.hosts[host].directory / "plain"


class PlainAutoConverge(PlainMover):
    """QEMU that brakes the guest by itself."""

    name = "qemu auto-converge"
    capabilities: ClassVar[Mapping[str, bool]] = {"auto-converge": True}


class PlainPostcopy(PlainMover):
    """QEMU that starts post-copy when the second round has begun."""

    name = "qemu post-copy"
    postcopy = True
    capabilities: ClassVar[Mapping[str, bool]] = {"postcopy-ram": True}
    postcopy_after_round = 2


class _Qemu:
    """One QEMU process and its QMP."""

    def __init__(self, argv: list[str], lab: Lab) -> None:
        self.qmp = QMPClient("plain")
        self._process = subprocess.Popen(
            argv, env=lab.environment(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )

    async def connect(self, path: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                await self.qmp.connect(str(path))
            except ConnectError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise Broken(f"Plain QEMU does not start: {self._said()}") from error
                await asyncio.sleep(POLL_S)
            else:
                return

    async def end(self) -> None:
        with contextlib.suppress(Exception):  # its other end may be gone already
            await self.qmp.disconnect()
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        if self._process.stderr:
            self._process.stderr.close()

    def _said(self) -> str:
        self._process.kill()
        return self._process.communicate()[1].decode("utf-8", "replace").strip()[-400:]


def beat_sink(namespace: str) -> socket.socket:
    """Return a socket that takes the beats on a host: without a receiver every second one would be refused to QEMU."""
    sock = socket_in(namespace, socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", BEAT_PORT))
    return sock


def _word(info: dict[str, Any], ended_ns: int, *, late: bool = False) -> Word:
    ram = info.get("ram", {})
    arrived = info["status"] == "completed"
    reason = "not there within the time limit" if late else info.get("error-desc", info["status"])
    return Word(
        arrived,
        ended_ns,
        None if arrived else str(reason),
        ram.get("transferred"),
        info.get("total-time"),
        info.get("downtime"),
        ram.get("dirty-sync-count"),
        {"throttle_percent": info["cpu-throttle-percentage"]} if "cpu-throttle-percentage" in info else {},
    )
