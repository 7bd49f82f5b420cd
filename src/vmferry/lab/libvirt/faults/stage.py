"""Two hosts with a libvirtd each, a domain that beats, and what can be done to all of them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vmferry.core.errors import Broken, TimedOut
from vmferry.lab.chaos.beat_watch import BeatWatch
from vmferry.lab.commands import Ran
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.guests import build
from vmferry.lab.hosts import Lab
from vmferry.lab.inside import socket_in
from vmferry.lab.libvirt.daemon import LibvirtDaemon
from vmferry.lab.libvirt.domain import domain_xml
from vmferry.lab.libvirt.faults.cells import Fate
from vmferry.lab.processes import identify, send
from vmferry.lab.toolchain import cache_dir
from vmferry.lab.toolchain.qemu import INSTALLED

#: Little memory, sent slowly: a round takes seconds, and what is left at the end nothing.
GUEST: Final = GuestPlan("micro", memory_mib=64, working_set_mib=16, rate=1)
BANDWIDTH: Final = "3MiB/s"
HOSTS: Final = {"source": "host-a", "destination": "host-b"}
NAMES: Final = {"host-a": "lv-a", "host-b": "lv-b"}  #: what the operator calls the libvirt hosts
_BEAT_PORT: Final = 5507
_DISK_MIB: Final = 8
_BEATS_WITHIN_S: Final = 60.0
#: A dead daemon is noticed by the other after 6 to 12 s, by libvirt's count of 5.
KEEPALIVE_S: Final = 2
_DISK = """<disk type="block" device="disk"><driver name="qemu" type="raw" cache="none"/><source dev="{device}"/>\
<target dev="vda" bus="virtio"/></disk></devices>"""


class Stage:
    """An async context manager; leaving it ends and removes everything."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()
        self.daemons: dict[str, LibvirtDaemon] = {}
        self.holds = 0

    async def __aenter__(self) -> Self:
        """Make the hosts, their daemons and the disk; on failure nothing is left."""
        try:
            await self._make()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove them."""
        await self._stack.aclose()

    async def _make(self) -> None:
        self.lab = await self._stack.enter_async_context(Lab(namespaces=True))
        if self.lab.network is None:
            raise Broken("Faults of libvirt's moves need network namespaces")
        self.network = self.lab.network
        self.device = self._stack.enter_context(_loop_device(self.lab.directory / "shared.img"))
        spaces = {host: self.network.namespace(host) for host in HOSTS.values()}
        for space in spaces.values():
            sink = self._stack.enter_context(socket_in(space, socket.AF_INET, socket.SOCK_DGRAM))
            sink.bind(("127.0.0.1", _BEAT_PORT))
        self.watch = self._stack.enter_context(BeatWatch(spaces))
        self.daemons = {host: LibvirtDaemon(self.lab, host, keepalive_s=KEEPALIVE_S) for host in HOSTS.values()}
        self._stack.callback(self._reap)
        await asyncio.gather(*(daemon.start() for daemon in self.daemons.values()))
        image = await asyncio.to_thread(build, GUEST.kind, cache_dir())
        text = domain_xml(GUEST, image, emulator=str(INSTALLED), cpu="qemu64", beat_port=_BEAT_PORT)
        self.xml = {True: self.lab.directory / "disk.xml", False: self.lab.directory / "diskless.xml"}
        self.xml[True].write_text(text.replace("</devices>", _DISK.format(device=self.device)), "utf-8")
        self.xml[False].write_text(text, "utf-8")
        for host, daemon in self.daemons.items():
            uri = f"qemu+unix:///system?socket={daemon.directory}/run/libvirt-sock"
            await self.lab.must("host-a", "host", "add", NAMES[host], "--libvirt", uri, "--peer-uri", daemon.uri)

    def _reap(self) -> None:
        self.lab.close()
        for daemon in self.daemons.values():
            daemon.reap()

    # -- the domain -----------------------------------------------------------------------------------------------

    async def begin(self, *, with_disk: bool) -> None:
        """Have the domain defined and running at the source, with the disk that both hosts see or without.

        Raises:
            TimedOut: it does not beat.
        """
        source = self.daemons[HOSTS["source"]]
        await source.must("define", str(self.xml[with_disk]))
        await source.must("start", GUEST.name)
        deadline = time.monotonic() + _BEATS_WITHIN_S
        while not self.watch.beats(HOSTS["source"]):
            if time.monotonic() > deadline:
                raise TimedOut(f"{GUEST.name} does not beat; libvirtd's log ends with:\n{source.tail()}")
            await asyncio.sleep(0.1)

    async def clear(self) -> None:
        """Remove the domain from both hosts, and what was kept of its move."""
        # The destination first: a source whose QEMU died in post-copy keeps its job until the other half is ended.
        for host in (HOSTS["destination"], HOSTS["source"]):
            for word in ("destroy", "undefine"):
                await self.daemons[host].virsh(word, GUEST.name)
        shutil.rmtree(self.lab.operator / "moves", ignore_errors=True)
        self.watch.forget()

    def migrate(self, *more: str) -> subprocess.Popen[bytes]:
        """Start the command that moves the domain, as a process of its own."""
        words = ("migrate", GUEST.name, NAMES[HOSTS["destination"]], "--plain", "--bandwidth", BANDWIDTH, *more)
        self.log = self.lab.directory / "migrate.log"
        with self.log.open("wb") as output:
            return subprocess.Popen(
                self.lab.command("host-a", *words),
                env=self.lab.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    async def recover(self) -> Ran:
        """Ask the command what became of it."""
        return await self.lab.cli("host-a", "recover", GUEST.name, timeout_s=180.0)

    async def sends(self) -> bool:
        """Whether memory of the domain is sent now."""
        said = (await self.daemons[HOSTS["source"]].virsh("domjobinfo", GUEST.name)).stdout
        return any(line.startswith("Data processed") and not line.endswith(" 0.000 B") for line in said.splitlines())

    async def leave(self) -> None:
        """Have the domain that moves started at the destination now, and wait until it has left.

        Raises:
            TimedOut: it does not leave.
        """
        source = self.daemons[HOSTS["source"]]
        await source.must("migrate-postcopy", GUEST.name)
        deadline = time.monotonic() + _BEATS_WITHIN_S
        while not self.watch.beats(HOSTS["destination"]):
            if time.monotonic() > deadline:
                raise TimedOut(f"{GUEST.name} does not run at the destination; libvirtd's log says:\n{source.tail()}")
            await asyncio.sleep(0.02)

    def kill_qemu(self, side: str) -> int:
        """Kill the domain's QEMU at a side; returns its pid.

        Raises:
            Broken: there is none.
        """
        file = self.daemons[HOSTS[side]].directory / "run" / "qemu" / f"{GUEST.name}.pid"
        process = identify(int(file.read_text("ascii"))) if file.exists() else None
        if process is None or not send(process, signal.SIGKILL):
            raise Broken(f"There is no QEMU of {GUEST.name} at the {side}")
        return process.pid

    # -- what is seen ---------------------------------------------------------------------------------------------

    async def says(self, host: str) -> tuple[str, bool]:
        """Return a daemon's word for the domain's state, and whether it is defined there."""
        state = (await self.daemons[host].virsh("domstate", "--reason", GUEST.name)).stdout.strip() or "none"
        info = (await self.daemons[host].virsh("dominfo", GUEST.name)).stdout
        words = [line.split()[-1] for line in info.splitlines() if line.startswith("Persistent:")]
        return state, words == ["yes"]

    async def fate(self) -> Fate | None:
        """Return where the guest is; None: on both hosts at once."""
        runs = await asyncio.to_thread(self.watch.runs_on)
        if len(runs) > 1:
            return None
        if runs:
            return Fate.SOURCE if runs == [HOSTS["source"]] else Fate.DESTINATION
        states = [(await self.says(host))[0] for host in HOSTS.values()]
        return Fate.OFF if all(state.startswith(("none", "shut off")) for state in states) else Fate.HELD


@contextlib.contextmanager
def _loop_device(image: Path) -> Iterator[str]:
    """Yield a block device over a new file: libvirt takes it for a disk that both hosts see."""
    with image.open("wb") as file:
        file.truncate(_DISK_MIB << 20)
    made = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
    if made.returncode:
        raise Broken(f"No loop device for {image}: {made.stderr.strip()}", fix="load the module loop")
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=False)
