"""What is asked of real moves by the command: copied disks, where a domain is defined, other names, which flow."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio
from tests.libvirt.test_real import EMULATOR

from vmferry.core.errors import NotFound
from vmferry.core.migration import MigrationStatus
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.lab.channel import ask
from vmferry.lab.commands import Ran
from vmferry.lab.guest_plans import DiskPlan, GuestPlan, NicPlan
from vmferry.lab.guests import build
from vmferry.lab.hosts import Lab
from vmferry.lab.libvirt import LibvirtDaemon, domain_xml, libvirt_missing
from vmferry.lab.libvirt.moves import wait_ready
from vmferry.lab.network import BRIDGE
from vmferry.lab.scenarios import wait_until
from vmferry.lab.toolchain import cache_dir
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.facts import DomainState, XmlKind

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.long,
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(libvirt_missing() is not None, reason=str(libvirt_missing())),
]
LINK = BytesPerSecond(119 * MIB)
#: the same path on both hosts, and private to each
IMAGES = Path("/var/lib/libvirt/images")
DISKS = (DiskPlan(IMAGES / "web-7.qcow2"), DiskPlan(IMAGES / "data.img", "raw"))
PLAN = GuestPlan("linux", memory_mib=128, working_set_mib=16, rate=4)
WRITER = replace(PLAN, disks=DISKS, disk_rate=4)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two hosts of libvirt's, and connections to them."""

    lab: Lab
    daemons: dict[str, LibvirtDaemon]
    connections: dict[str, LibvirtConnection]

    def images(self, host: str) -> Path:
        """Return where a host's images are."""
        return self.daemons[host].directory / "lib" / "images"

    async def domain(self, host: str) -> tuple[DomainState, bool] | None:
        """Return the domain's state on a host and whether it is defined; None: there is none."""
        try:
            found = await self.connections[host].domain(PLAN.name)
        except NotFound:
            return None
        return found.state, found.is_persistent

    def moving(self, *options: str, to: str = "lv-b") -> asyncio.Task[Ran]:
        """Begin a move by the command."""
        return asyncio.create_task(self.lab.cli("host-a", "migrate", PLAN.name, to, "--plain", *options))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemons() -> AsyncIterator[tuple[Lab, dict[str, LibvirtDaemon]]]:
    """A daemon on each of two hosts, 1 Gbit/s apart; each has a pool at the same path with other images."""
    async with Lab(link=LINK) as lab:
        made = {name: LibvirtDaemon(lab, name) for name in lab.hosts}
        # before its daemon starts: without udev in the lab it looks no more afterwards
        added = await lab.run([*lab.inside("host-b"), "ip", "link", "add", "vmf-other", "type", "bridge"])
        assert added.exit_code == 0, added
        await asyncio.gather(*(daemon.start() for daemon in made.values()))
        for name, daemon in made.items():
            await daemon.must("pool-define-as", "images", "dir", "--target", str(IMAGES))
            for step in ("pool-build", "pool-start"):
                await daemon.must(step, "images")
            known = f"lv-{name[-1]}"
            await lab.must("host-a", "host", "add", known, "--libvirt", daemon.socket_uri(), "--peer-uri", daemon.uri)
        away = made["host-b"].uri.replace("/system", ":1/system")  # nobody listens there
        await lab.must("host-a", "host", "add", "lv-away", "--libvirt", made["host-b"].socket_uri(), "--peer-uri", away)
        yield lab, made
        lab.close()
        for daemon in made.values():
            daemon.reap()


@pytest_asyncio.fixture(loop_scope="module")
async def pair(daemons: tuple[Lab, dict[str, LibvirtDaemon]]) -> AsyncIterator[Pair]:
    """Both hosts; no domain and no image is left afterwards."""
    lab, made = daemons
    found = Pair(
        lab, made, {name: await LibvirtConnection.connect(daemon.socket_uri()) for name, daemon in made.items()}
    )
    yield found
    for name, connection in found.connections.items():
        for domain in await connection.domains():
            if domain.is_active:
                await made[name].must("destroy", domain.name)
            if domain.is_persistent:
                await made[name].must("undefine", domain.name)
        for image in found.images(name).iterdir():
            image.unlink()
        await connection.close()


async def started(pair: Pair, plan: GuestPlan, *, defined: bool = False) -> None:
    """Run a domain on host-a whose workload works, with fresh images."""
    daemon = pair.daemons["host-a"]
    folder = pair.images("host-a")
    if plan.disks:
        made = await pair.lab.run(["qemu-img", "create", "-q", "-f", "qcow2", str(folder / "web-7.qcow2"), "64M"])
        assert made.exit_code == 0, made.stderr
        (folder / "data.img").write_bytes(os.urandom(8 * MIB))
    image = await asyncio.to_thread(build, plan.kind, cache_dir())
    file = daemon.directory / f"{plan.name}.xml"
    file.write_text(domain_xml(plan, image, emulator=EMULATOR, cpu="qemu64", beat_port=5507))
    if defined:
        await daemon.must("define", str(file))
        await daemon.must("start", plan.name)
    else:
        await daemon.must("create", str(file))
    await wait_ready(daemon.control)


async def assert_whole(daemon: LibvirtDaemon, *, disk: bool = False) -> None:
    """The domain's memory, and its disk, are as it wrote them."""
    assert (await ask(daemon.control, "oracle\n", "oracle", 60.0)).startswith("oracle clean")
    if disk:
        assert (await ask(daemon.control, "disk\n", "disk", 60.0)).startswith("disk clean")


async def disk_writes(daemon: LibvirtDaemon) -> int:
    """Return how often the guest has written to its disk; all of it is there."""
    said = await ask(daemon.control, "disk\n", "disk", 60.0)
    assert said.startswith("disk clean")
    return int(said.partition(" writes=")[2].split()[0])


async def images_of(pair: Pair, host: str) -> set[str]:
    """Return which images a host has."""
    return {image.name for image in pair.images(host).iterdir()}


async def sends(pair: Pair) -> None:
    """Wait until the domain's memory is sent: its disks are there by then."""

    async def it_does() -> bool:
        return (await pair.connections["host-a"].job(PLAN.name)).status is MigrationStatus.ACTIVE

    await wait_until(it_does, "memory is sent")


async def test_local_disks_come_along(pair: Pair) -> None:
    """Copied while the guest writes: block by block like the source when it stands still; then it goes on."""
    await started(pair, WRITER)
    checked = await pair.lab.must("host-a", "check", PLAN.name, "lv-b", "--plain", "--copy-disks")
    assert "separate copies" in checked
    assert "not seen: whether libvirt on lv-a reaches" in checked
    before = await disk_writes(pair.daemons["host-a"])
    ran = await pair.moving("--copy-disks", "--libvirt", "paused=yes")
    assert ran.exit_code == 0, ran
    assert f"left on lv-a: {IMAGES}/web-7.qcow2, which vda no longer is" in ran.stderr
    assert await pair.domain("host-b") == (DomainState.PAUSED, False)
    here, there = (pair.images(host) for host in ("host-a", "host-b"))
    for disk in DISKS:
        files = [str(folder / disk.image.name) for folder in (here, there)]
        compared = await pair.lab.run(["qemu-img", "compare", "-U", "-f", disk.format, "-F", disk.format, *files])
        assert compared.stdout == "Images are identical.\n", (disk, compared)
    await pair.daemons["host-b"].must("resume", PLAN.name)
    assert await disk_writes(pair.daemons["host-b"]) > before
    await assert_whole(pair.daemons["host-b"], disk=True)


async def test_a_copy_that_fails_leaves_the_source_as_it_was(pair: Pair) -> None:
    """No half image is at the destination, the guest goes on, and the next attempt meets nothing in its way."""
    await started(pair, WRITER)
    moving = pair.moving("--copy-disks", "--bandwidth", "4MiB/s")

    async def it_copies() -> bool:
        both = await images_of(pair, "host-b") == {"web-7.qcow2", "data.img"}
        return both and bool(await pair.domain("host-b"))

    await wait_until(it_copies, "the copy has begun")
    await asyncio.sleep(1)  # some of it is copied
    await pair.daemons["host-a"].must("domjobabort", PLAN.name)
    ran = await moving
    assert ran.exit_code != 0
    assert await images_of(pair, "host-b") == set()
    assert await pair.domain("host-b") is None
    assert await pair.domain("host-a") == (DomainState.RUNNING, False)
    await assert_whole(pair.daemons["host-a"], disk=True)
    again = await pair.moving("--copy-disks")
    assert again.exit_code == 0, again
    assert await images_of(pair, "host-b") == {"web-7.qcow2", "data.img"}
    await assert_whole(pair.daemons["host-b"], disk=True)


async def test_an_image_that_is_there_is_not_touched(pair: Pair) -> None:
    """It blocks beforehand, with its name and the pool's."""
    await started(pair, WRITER)
    left = pair.images("host-b") / "web-7.qcow2"
    left.write_bytes(b"somebody's")
    ran = await pair.moving("--copy-disks")
    assert (ran.exit_code, "disk.image-there" in ran.stdout) == (3, True), ran
    assert left.read_bytes() == b"somebody's"


async def test_a_defined_domain_is_defined_where_it_runs(pair: Pair) -> None:
    """On another bridge there, in its definition too; at the source nothing is left, or its definition, as asked."""
    await started(pair, replace(PLAN, nics=(NicPlan(),)), defined=True)
    ran = await pair.moving("--map", f"bridge:{BRIDGE}=vmf-other", "--libvirt", "undefine=no")
    assert ran.exit_code == 0, ran
    assert await pair.domain("host-a") == (DomainState.SHUTOFF, True)
    assert await pair.domain("host-b") == (DomainState.RUNNING, True)
    for kind in (XmlKind.LIVE, XmlKind.INACTIVE):
        xml = await pair.connections["host-b"].domain_xml(PLAN.name, kind)
        assert "bridge='vmf-other'" in xml
        assert f"bridge='{BRIDGE}'" not in xml
    await pair.daemons["host-a"].must("undefine", PLAN.name)
    await assert_whole(pair.daemons["host-b"])
    back = await pair.moving("--map", f"bridge:vmf-other={BRIDGE}", to="lv-a")
    assert back.exit_code == 0, back
    assert await pair.domain("host-b") is None
    assert await pair.domain("host-a") == (DomainState.RUNNING, True)


async def test_channels_and_a_brake_of_qemus(pair: Pair) -> None:
    """Several channels, and auto-converge where it was asked for: libvirt takes all of it."""
    await started(pair, PLAN)
    words = ("--libvirt", "auto_converge.initial=30", "--libvirt", "listen_address=0.0.0.0")
    ran = await pair.moving("--channels", "2", "--throttle", "auto-converge", *words)
    assert ran.exit_code == 0, ran
    await assert_whole(pair.daemons["host-b"])


@pytest.mark.parametrize("options", [("lv-away",), ("lv-b", "--libvirt", "flow=direct")])
async def test_this_process_stands_between_daemons_that_do_not_reach_each_other(
    pair: Pair, options: tuple[str, ...]
) -> None:
    """By itself where the source's daemon says so, or because it was asked for; with disks too."""
    await started(pair, WRITER)
    ran = await pair.moving(*options[1:], "--copy-disks", to=options[0])
    assert ran.exit_code == 0, ran
    assert ("this process stands between the two daemons instead" in ran.stderr) == (len(options) == 1)
    assert await pair.domain("host-a") is None
    await assert_whole(pair.daemons["host-b"], disk=True)


async def test_a_flow_that_was_asked_for_is_not_changed(pair: Pair) -> None:
    """Then the daemons' failure is the answer, and nothing was touched."""
    await started(pair, PLAN)
    ran = await pair.moving("--libvirt", "flow=p2p", to="lv-away")
    assert ran.exit_code != 0
    assert "unable to connect to server at" in ran.stdout
    assert await pair.domain("host-a") == (DomainState.RUNNING, False)
    assert await pair.domain("host-b") is None


async def test_this_process_dies_between_the_daemons(pair: Pair) -> None:
    """While memory is sent: the domain runs on at the source, libvirt ends what had begun at the destination.

    What became of it has to be asked before it moves again.
    """
    await started(pair, PLAN)
    command = pair.lab.command("host-a", "migrate", PLAN.name, "lv-b", "--plain", "--libvirt", "flow=direct")
    process = await asyncio.create_subprocess_exec(
        *command,
        "--bandwidth",
        "2MiB/s",
        env=pair.lab.environment(),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    await sends(pair)
    os.killpg(process.pid, signal.SIGKILL)
    await process.wait()

    async def it_is_over() -> bool:
        job = await pair.connections["host-a"].job(PLAN.name)
        return await pair.domain("host-b") is None and job.status is MigrationStatus.NONE

    await wait_until(it_is_over, "nothing is left at the destination, and of the job")
    assert await pair.domain("host-a") == (DomainState.RUNNING, False)
    await assert_whole(pair.daemons["host-a"])
    again = await pair.moving()
    assert (again.exit_code, "domain.move-open" in again.stdout) == (3, True), again
    assert "owner: lv-a" in await pair.lab.must("host-a", "recover", PLAN.name)
    again = await pair.moving()
    assert again.exit_code == 0, again


async def test_devices_of_a_real_libvirt(pair: Pair) -> None:
    """Every PCI device that the kernel has, with the forms of its address; what cannot be given away is told."""
    lab = pair.lab
    rows = json.loads(await lab.must("host-a", "device", "list", "lv-a", "--json"))["devices"]
    kernels = sorted(path.name for path in Path("/sys/bus/pci/devices").iterdir())
    assert [row["address"]["lspci"] for row in rows] == kernels
    for row in rows[:1]:
        assert Path(row["address"]["sysfs"]).exists()
        shown = json.loads(await lab.must("host-a", "device", "show", "lv-a", row["address"]["nodedev"], "--json"))
        assert shown["address"] == row["address"]
        group = Path(row["address"]["sysfs"], "iommu_group")
        assert (row["iommu_group"] is None) == (not group.exists())
        if row["iommu_group"] is None:
            ran = await lab.cli("host-a", "device", "detach", "lv-a", row["address"]["lspci"])
            assert (ran.exit_code, "device.no-iommu" in ran.stderr) == (3, True), ran
