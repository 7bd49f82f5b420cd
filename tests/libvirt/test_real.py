"""A real guest of a real libvirt becomes ours and libvirt's again, with the real commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from tests.libvirt.versions import IDS, VERSIONS, find_or_skip

from vmferry.core.errors import BadInput, Broken, Denied, NotFound
from vmferry.core.migration import MigrationStatus
from vmferry.lab.channel import ask
from vmferry.lab.guest_plans import GuestPlan, NicPlan
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.guests import build
from vmferry.lab.hosts import Lab
from vmferry.lab.libvirt import LibvirtDaemon, domain_xml, libvirt_missing
from vmferry.lab.libvirt.moves import daemons_of, wait_ready
from vmferry.lab.network import BRIDGE
from vmferry.lab.toolchain import cache_dir
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.asking import ask_case
from vmferry.libvirt.checks import Case, XmlBlocker, find_blockers, read_offer
from vmferry.libvirt.checks.offer import Said
from vmferry.libvirt.facts import Domain, DomainState, XmlKind
from vmferry.libvirt.tree import parse

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(libvirt_missing() is not None, reason=str(libvirt_missing())),
]
PLAN = GuestPlan("linux", nics=(NicPlan(),))
EMULATOR = "/usr/bin/qemu-system-x86_64"  #: the host's own QEMU, wherever it really is


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab() -> AsyncIterator[Lab]:
    """Two hosts with the newest QEMU."""
    async with Lab() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=VERSIONS, ids=IDS)
async def daemons(lab: Lab, request: pytest.FixtureRequest) -> AsyncIterator[tuple[LibvirtDaemon, LibvirtDaemon]]:
    """A libvirt daemon on each host."""
    async with daemons_of(lab, find_or_skip(request.param)) as made:
        yield made["host-a"], made["host-b"]


@pytest.fixture
def daemon(daemons: tuple[LibvirtDaemon, LibvirtDaemon]) -> LibvirtDaemon:
    """Host-a's."""
    return daemons[0]


async def test_a_guest_goes_from_libvirt_to_us_and_back(lab: Lab, daemon: LibvirtDaemon) -> None:
    """What libvirt ran is imported as it runs, runs here as itself, is exported, and libvirt runs it once more."""
    image = await asyncio.to_thread(build, PLAN.kind, cache_dir())
    file = lab.directory / "first.xml"
    file.write_text(domain_xml(PLAN, image, emulator=EMULATOR, cpu="qemu64", beat_port=5507))
    await daemon.must("create", str(file))
    await wait_ready(daemon.control)

    connection = await LibvirtConnection.connect(daemon.socket_uri())
    (domain,) = await connection.domains()
    assert domain == Domain("web-7", domain.uuid, DomainState.RUNNING, is_persistent=False)
    assert (await connection.job("web-7")).status is MigrationStatus.NONE
    assert "<name>web-7</name>" in await connection.domain_xml("web-7", XmlKind.MIGRATABLE)
    assert "qemu64" in await connection.domain_capabilities(PLAN.machine, "qemu")
    assert PLAN.machine in await connection.capabilities()

    place = daemon.socket_uri(read_only=True)
    text = await lab.must("host-a", "import", "web-7", "--libvirt", place, "--accept", "address")
    await daemon.must("destroy", "web-7")
    with pytest.raises(NotFound):
        await connection.domain("web-7")

    written = lab.directory / "imported.toml"
    written.write_text(text)
    await lab.must("host-b", "guest", "run", str(written), "--on", "host-b")
    run = GuestRun(lab, PLAN, "host-b")
    await run.wait_ready()
    assert (await run.oracle()).startswith("oracle clean")
    view = await run.view()
    assert view.uuid == domain.uuid

    exported = lab.directory / "exported.xml"
    exported.write_text(await lab.must("host-b", "export", "web-7"))
    await lab.must("host-b", "guest", "stop", "web-7", "--force")
    await lab.must("host-b", "guest", "remove", "web-7")
    await daemon.must("define", "--validate", str(exported))
    await daemon.must("start", "web-7")
    assert await connection.domains() == (Domain("web-7", domain.uuid, DomainState.RUNNING, is_persistent=True),)
    (socket,) = daemon.directory.rglob("org.vmferry.control")  # libvirt 11 has moved it from /var/lib to /run
    await wait_ready(socket)
    assert (await ask(socket, "oracle\n", "oracle", 60.0)).startswith("oracle clean")
    again = await lab.must("host-a", "import", "web-7", "--libvirt", place, "--accept", "address")
    assert again.splitlines()[:5] == text.splitlines()[:5]
    assert view.macs[0] in again
    await daemon.must("destroy", "web-7")
    assert (await connection.domain("web-7")).state is DomainState.SHUTOFF
    await daemon.must("undefine", "web-7")
    await connection.close()


def without_devices(case: Case) -> Case:
    """Return the case as if the destination did not say which devices it has: the lab's hosts share one /sys."""
    assert case.destination.node_devices is None or case.destination.node_devices
    return replace(case, destination=replace(case.destination, node_devices=None))


async def test_two_real_daemons_are_asked_whether_a_domain_can_move(
    lab: Lab, daemons: tuple[LibvirtDaemon, LibvirtDaemon]
) -> None:
    """Between two like hosts nothing is in the way; what the other host lacks is told, each with its fix."""
    image = await asyncio.to_thread(build, PLAN.kind, cache_dir())
    here, there = daemons
    text = domain_xml(PLAN, image, emulator=EMULATOR, cpu="qemu64", beat_port=5507)
    file = lab.directory / "asked.xml"
    file.write_text(text)
    await here.must("create", str(file))
    source, destination = [await LibvirtConnection.connect(each.socket_uri()) for each in daemons]

    like = without_devices(await ask_case("web-7", source, destination, "host-b"))
    assert find_blockers(like).blockers == ()
    assert find_blockers(like).unseen == ()
    assert like.source_cpu == like.destination.host_cpu
    assert "qemu64" in like.destination.cpu_models

    await here.must("destroy", "web-7")
    odd = text.replace('type="bridge"', 'type="network"').replace(f'bridge="{BRIDGE}"', 'network="lan"')
    file.write_text(odd)
    await there.must("define", str(file))
    await here.must("define", str(file))
    odd_one = without_devices(await ask_case("web-7", source, destination, "host-b"))
    codes = [blocker.code for blocker in find_blockers(odd_one).blockers]
    assert codes == ["domain.not-running", "identity.name-taken", "network.missing"]
    for each in daemons:
        await each.must("undefine", "web-7")
    for connection in (source, destination):
        await connection.close()


async def test_a_real_daemon_says_what_a_cpu_lacks(lab: Lab, daemon: LibvirtDaemon) -> None:
    """A CPU that QEMU does not emulate lacks features by name; an emulator or machine that is not there is told."""
    connection = await LibvirtConnection.connect(daemon.socket_uri())
    words = await connection.compare_cpu("<cpu><model>Skylake-Server</model></cpu>", PLAN.machine, "qemu")
    assert words is not None
    xml = "<domain type='qemu'><cpu><model>Skylake-Server</model></cpu></domain>"
    said = Said("host-a", await connection.capabilities(), None, cpu_error=words)
    blocker = next(b for b in find_blockers(Case(parse(xml), None, read_offer(said))).blockers if "cpu" in b.code)
    assert blocker.code == "cpu.features-missing"
    assert isinstance(blocker, XmlBlocker)
    assert '+    <feature name="avx512f" policy="disable" />' in blocker.diff
    assert await connection.compare_cpu("<cpu><model>qemu64</model></cpu>", PLAN.machine, "qemu") is None
    with pytest.raises(Broken, match="Cannot check QEMU binary /nonexistent"):
        await connection.domain_capabilities(PLAN.machine, "qemu", "/nonexistent")
    with pytest.raises(BadInput, match=r"machine 'pc-q35-99.9' is not supported by emulator"):
        await connection.domain_capabilities("pc-q35-99.9", "qemu")
    await connection.close()


async def test_a_real_daemon_denies_what_reading_does_not_need(lab: Lab, daemon: LibvirtDaemon) -> None:
    """Its read-only socket takes a read-only connection, which may not have a migratable XML."""
    connection = await LibvirtConnection.connect(daemon.socket_uri(read_only=True), read_only=True)
    assert "<host>" in await connection.capabilities()
    with pytest.raises(Denied, match="connect without read-only"):
        await connection.domain_capabilities(PLAN.machine, "qemu")
    await connection.close()
