"""Two real daemons with virtlockd: a domain moves under its locks; a host that has none is known by what was said."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.libvirt.test_real import EMULATOR

from vmferry.lab.channel import ask
from vmferry.lab.guest_plans import DiskPlan, GuestPlan
from vmferry.lab.guests import build
from vmferry.lab.hosts import Lab
from vmferry.lab.libvirt import LibvirtDaemon, domain_xml, libvirt_missing
from vmferry.lab.libvirt.moves import wait_ready
from vmferry.lab.scenarios import wait_until
from vmferry.lab.toolchain import cache_dir

#: Both hosts of a lab have the machine's files, which libvirt cannot know.
SHARED = ("--libvirt", "unsafe=yes")
VIRTLOCKD = Path("/usr/sbin/virtlockd")
pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.long,
    pytest.mark.timeout(400),
    pytest.mark.skipif(libvirt_missing() is not None, reason=str(libvirt_missing())),
    pytest.mark.skipif(not VIRTLOCKD.exists(), reason="virtlockd is not installed: apt-get install libvirt-daemon"),
]


class LockingDaemon(LibvirtDaemon):
    """A daemon that has virtlockd beside it, or not."""

    is_locking = True

    def __init__(self, lab: Lab, host: str) -> None:
        super().__init__(lab, host)
        self._lockd: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start both."""
        await super().start()
        if not self.is_locking:
            return
        self._spawn_lockd()
        socket = self.directory / "run" / "virtlockd-sock"

        async def it_listens() -> bool:
            return socket.exists()

        await wait_until(it_listens, "virtlockd listens")

    def reap(self) -> None:
        """Take note of both that the lab has ended."""
        super().reap()
        if self._lockd is not None:
            self._lockd.wait()

    def _spawn_lockd(self) -> None:
        """Start virtlockd where its daemon is; the lab ends it by its environment."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-n", "-u"]
        self._lockd = subprocess.Popen(
            [*enter, VIRTLOCKD, "-p", f"{self.directory}/lock.pid"],
            env=self.lab.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    async def restart(self, *, locking: bool) -> None:
        """End the daemon and start it again, with virtlockd or without."""
        self.terminate()
        self.is_locking = locking
        await self.start()

    def _write_files(self) -> None:
        super()._write_files()
        if self.is_locking:
            conf = self.directory / "etc" / "qemu.conf"
            conf.write_text(f'{conf.read_text()}lock_manager = "lockd"\n')


@pytest_asyncio.fixture
async def daemons() -> AsyncIterator[dict[str, LockingDaemon]]:
    """A daemon and virtlockd on each of two hosts."""
    async with Lab() as lab:
        made = {name: LockingDaemon(lab, name) for name in lab.hosts}
        for daemon in made.values():
            await daemon.start()
        yield made
        lab.close()
        for daemon in made.values():
            daemon.reap()


async def test_a_domain_moves_under_virtlockd(daemons: dict[str, LockingDaemon]) -> None:
    """What was said of both is told, and the lock goes with the domain; a host without locks is known by word alone."""
    lab, here, there = daemons["host-a"].lab, daemons["host-a"], daemons["host-b"]
    for name, daemon in (("lv-a", here), ("lv-b", there)):
        words = ("--libvirt", daemon.socket_uri(), "--peer-uri", daemon.uri, "--lock-manager", "lockd")
        await lab.must("host-a", "host", "add", name, *words)
    disk = lab.directory / "shared.qcow2"
    made = await lab.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "32M"])
    assert made.exit_code == 0, made
    plan = GuestPlan("linux", memory_mib=128, working_set_mib=16, rate=4, disks=(DiskPlan(disk),), disk_rate=2)
    image = await asyncio.to_thread(build, plan.kind, cache_dir())
    file = here.directory / "web-7.xml"
    file.write_text(domain_xml(plan, image, emulator=EMULATOR, cpu="qemu64", beat_port=5507))
    await here.must("create", str(file))
    await wait_ready(here.control)
    second = await there.virsh("create", str(file))  # the lock of the one that runs
    assert second.exit_code != 0
    assert "lock" in second.stderr.lower(), second

    checked = await lab.must("host-a", "check", "web-7", "lv-b", "--plain")
    assert "disk_fence      virtlockd, as was said of both hosts" in checked
    ran = await lab.cli("host-a", "migrate", "web-7", "lv-b", "--plain", *SHARED)
    assert ran.exit_code == 0, ran
    assert (await ask(there.control, "disk\n", "disk", 60.0)).startswith("disk clean")
    assert (await here.virsh("create", str(file))).exit_code != 0  # it is host-b's now

    await here.restart(locking=False)
    anew = ("host", "add", "lv-a", "--libvirt", here.socket_uri(), "--peer-uri", here.uri, "--lock-manager")
    await lab.must("host-a", *anew, "none")
    foreseen = await lab.cli("host-a", "check", "web-7", "lv-a", "--plain", *SHARED)
    assert (foreseen.exit_code, "lock.differs" in foreseen.stdout) == (3, True), foreseen
    await lab.must("host-a", *anew, "lockd")  # what is not so
    unlocked = await lab.cli("host-a", "migrate", "web-7", "lv-a", "--plain", *SHARED)
    assert unlocked.exit_code == 0, unlocked  # libvirt itself does not mind (9.0): so it is a blocker of ours
    assert (await ask(here.control, "oracle\n", "oracle", 60.0)).startswith("oracle clean")
    await here.must("destroy", "web-7")
