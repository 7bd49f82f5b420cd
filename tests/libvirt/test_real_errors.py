"""What keeps a domain from moving, said by real libvirts: by the command, with what to do, and with nothing changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from tests.libvirt.versions import IDS, VERSIONS, find_or_skip

from vmferry.core.errors import VmferryError
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.lab.certificates import StreamCa
from vmferry.lab.commands import Ran
from vmferry.lab.guest_plans import DiskPlan, GuestPlan
from vmferry.lab.hosts import Lab
from vmferry.lab.libvirt import LibvirtDaemon, libvirt_missing
from vmferry.lab.libvirt.moves import PLAIN, connected, daemons_of, planned, start_domain, steered, write_domain
from vmferry.lab.scenarios import wait_until
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.facts import DomainState
from vmferry.libvirt.moves.request import Wish

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(libvirt_missing() is not None, reason=str(libvirt_missing())),
]
PLAN = GuestPlan("linux", memory_mib=192, working_set_mib=32, rate=20)
SLOW = Wish(PLAIN, bandwidth=BytesPerSecond(4 * MIB))
#: A certificate names who it is for; the command is on the same host.
TLS_HOST = "localhost"
Daemons = dict[str, LibvirtDaemon]
Connections = dict[str, LibvirtConnection]


def certificates(ca: StreamCa, directory: Path) -> str:
    """Write a host's certificates where libvirt's clients look, and return where they are."""
    ca.write(directory, TLS_HOST)
    for theirs, ours in (("cacert", "ca-cert"), ("clientcert", "client-cert"), ("clientkey", "client-key")):
        (directory / f"{theirs}.pem").write_bytes((directory / f"{ours}.pem").read_bytes())
    return str(directory)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab() -> AsyncIterator[Lab]:
    """Two hosts."""
    async with Lab() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=VERSIONS, ids=IDS)
async def hosts(lab: Lab, request: pytest.FixtureRequest) -> AsyncIterator[Daemons]:
    """A daemon on each, which listens on TLS too, for certificates of one authority; the command knows both."""
    (lab.directory / "tls").mkdir(exist_ok=True)
    place = certificates(StreamCa(says_usage=False), lab.directory / "tls" / "good")
    keys = (("key_file", "server-key"), ("cert_file", "server-cert"), ("ca_file", "ca-cert"))
    settings = "listen_tls = 1\n" + "".join(f'{key} = "{place}/{file}.pem"\n' for key, file in keys)
    async with daemons_of(lab, find_or_skip(request.param), settings) as made:
        for name, daemon in (("lv-a", made["host-a"]), ("lv-b", made["host-b"])):
            await lab.must("host-a", "host", "add", name, "--libvirt", daemon.socket_uri(), "--peer-uri", daemon.uri)
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def connections(hosts: Daemons) -> AsyncIterator[Connections]:
    """One to each daemon; no domain is left afterwards."""
    async with connected(hosts) as made:
        yield made


async def check(lab: Lab, *more: str) -> Ran:
    """Ask whether web-7 can move to lv-b."""
    return await lab.cli("host-a", "check", PLAN.name, "lv-b", "--plain", *more)


async def migrate(lab: Lab, *more: str) -> Ran:
    """Move it there."""
    return await lab.cli("host-a", "migrate", PLAN.name, "lv-b", "--plain", *more)


@contextlib.asynccontextmanager
async def moving(hosts: Daemons, connections: Connections) -> AsyncIterator[asyncio.Task[object]]:
    """Have web-7 move so slowly that it is still under way in the block; afterwards it is given up if it still is."""
    async with planned(hosts, connections, ("host-a", "host-b"), PLAN.name, SLOW) as domain:
        task: asyncio.Task[object] = asyncio.create_task(steered(domain, PLAN, SLOW, "vmferry"))

        async def it_sends() -> bool:
            return (await connections["host-a"].job(PLAN.name)).total_bytes > 0

        await wait_until(it_sends, "memory is sent")
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_everything_that_is_in_the_way_is_told_at_once(lab: Lab, hosts: Daemons) -> None:
    """Shut off, its name taken there, too new a compression for an old libvirt: together, and nothing is touched."""
    for daemon in hosts.values():
        await daemon.must("define", str(await write_domain(daemon, PLAN)))
    for command in (check, migrate):
        ran = await command(lab, "--channels", "2", "--compression", "zstd")
        assert ran.exit_code == 3, ran
        codes = ["domain.not-running", "identity.name-taken"]
        if (await hosts["host-a"].must("version", "--daemon")).endswith(" 9.0.0"):
            codes.append("libvirt.too-old")
            assert "libvirt 9.0.0 is too old for zlib and zstd for channels" in ran.stdout
        assert [code for code in (*codes, "libvirt.too-old") if code in ran.stdout] == [*codes, *codes[2:]], ran
        assert "domain web-7 is shut off" in ran.stdout
    assert "shut off" in await hosts["host-b"].must("domstate", PLAN.name)
    for daemon in hosts.values():
        await daemon.must("undefine", PLAN.name)


@pytest.mark.long
async def test_a_copy_there_under_another_name_is_in_the_way(
    lab: Lab, hosts: Daemons, connections: Connections
) -> None:
    """A host has each UUID once; libvirt itself says no more than `already defined`."""
    await start_domain(hosts["host-a"], PLAN)
    uuid = (await connections["host-a"].domain(PLAN.name)).uuid
    file = await write_domain(hosts["host-b"], PLAN)
    file.write_text(file.read_text().replace("<name>web-7</name>", f"<name>db-1</name><uuid>{uuid}</uuid>"))
    await hosts["host-b"].must("define", str(file))
    ran = await check(lab)
    assert (ran.exit_code, "identity.uuid-taken" in ran.stdout) == (3, True), ran
    assert f"lv-b has domain db-1 with the UUID {uuid} of domain web-7" in " ".join(ran.stdout.split())


@pytest.mark.long
async def test_a_domain_on_which_something_works_does_not_move(
    lab: Lab, hosts: Daemons, connections: Connections
) -> None:
    """The job is told with its kind, and so is the half that it has at the destination; neither is disturbed."""
    await start_domain(hosts["host-a"], PLAN)
    async with moving(hosts, connections) as task:
        ran = await migrate(lab)
        assert ran.exit_code == 3, ran
        assert "a job runs on domain web-7 already: a migration out" in " ".join(ran.stdout.split())
        assert "virsh domjobabort web-7" in ran.stdout
        assert "identity.runs-there" in ran.stdout
        assert not task.done()
    assert (await connections["host-a"].domain(PLAN.name)).state is DomainState.RUNNING


@pytest.mark.long
async def test_a_disk_that_is_not_there(lab: Lab, hosts: Daemons, connections: Connections) -> None:
    """Libvirt finds out when it prepares: the image is named, and the domain runs where it was."""
    daemon = hosts["host-a"]
    image = daemon.directory / "lib" / "images" / "data.img"  # each host has its own /var/lib/libvirt
    image.parent.mkdir(exist_ok=True)
    image.write_bytes(bytes(MIB))
    plan = replace(PLAN, disks=(DiskPlan(Path("/var/lib/libvirt/images/data.img"), "raw"),))
    file = await write_domain(daemon, plan)
    text = file.read_text()
    file.write_text(text.replace('bus="virtio" /></disk>', 'bus="virtio" /><readonly /></disk>'))
    await daemon.must("create", str(file))
    told = await migrate(lab)
    said = " ".join((told.stdout + told.stderr).split())
    assert told.exit_code != 0
    assert "Cannot access storage file '/var/lib/libvirt/images/data.img': No such file or directory" in said
    assert "make the image reachable at the destination by the same path" in said
    assert "runs on lv-a" in said
    assert (await connections["host-a"].domain(PLAN.name)).state is DomainState.RUNNING
    assert await connections["host-b"].domains() == ()
    await daemon.must("destroy", PLAN.name)
    file.write_text(text)
    await daemon.must("create", str(file))
    told = await migrate(lab)
    said = " ".join((told.stdout + told.stderr).split())
    assert "Migration without shared storage is unsafe" in said
    assert "bring the disks to storage that both hosts mount" in said


@pytest.mark.usefixtures("connections")
async def test_a_connection_that_may_only_read_moves_nothing(lab: Lab, hosts: Daemons) -> None:
    """The check finds it, though a source that only reads answers all else that is asked."""
    await start_domain(hosts["host-a"], PLAN)
    place = hosts["host-a"].socket_uri(read_only=True)
    await lab.must("host-a", "host", "add", "lv-a", "--libvirt", place, "--peer-uri", hosts["host-a"].uri)
    try:
        for command in (check, migrate):
            ran = await command(lab)
            assert (ran.exit_code, "libvirt.read-only" in ran.stdout) == (3, True), ran
            assert "connect without read-only: `vmferry host add`" in " ".join(ran.stdout.split())
    finally:
        good = hosts["host-a"].socket_uri()
        await lab.must("host-a", "host", "add", "lv-a", "--libvirt", good, "--peer-uri", hosts["host-a"].uri)


@pytest.mark.usefixtures("hosts")
async def test_a_certificate_of_another_authority_is_refused(lab: Lab) -> None:
    """The right one is let in; each other one is told as what it is, with what to do, and nothing else is printed."""
    bad = Path(certificates(StreamCa("somebody else", says_usage=False), lab.directory / "tls" / "bad"))
    good = lab.directory / "tls" / "good"
    address = f"qemu+tls://{TLS_HOST}/system?pkipath="

    async def said(uri: str, code: int) -> str:
        ran = await lab.cli("host-a", "import", "web-8", "--libvirt", uri)
        assert (ran.exit_code, ran.stdout, ran.stderr[:7]) == (code, "", "error: "), ran
        return ran.stderr

    assert "Domain not found" in await said(f"{address}{good}", 2)  # it came in
    stranger = await said(f"{address}{bad}", 4)
    assert "Failed to verify peer's certificate; compare the CA's certificate that is trusted here" in stranger
    (bad / "cacert.pem").write_bytes((good / "cacert.pem").read_bytes())  # it trusts the daemon, and not the reverse
    refused = await said(f"{address}{bad}", 4)
    assert "clientcert.pem failed validation" in refused
    assert "put the CA's certificate and a client certificate with its key where libvirt looks" in refused


@pytest.mark.long
async def test_a_daemon_that_dies_in_the_middle_leaves_the_domain_where_it_was(
    lab: Lab, hosts: Daemons, connections: Connections
) -> None:
    """The destination's: the move ends with whose connection is gone, and so does the next look."""
    await start_domain(hosts["host-a"], PLAN)
    async with moving(hosts, connections) as task:
        hosts["host-b"].stop()
        await asyncio.wait({task}, timeout=60)
        assert task.done()
    assert (await connections["host-a"].domain(PLAN.name)).state is DomainState.RUNNING
    with pytest.raises(VmferryError):
        await connections["host-b"].domains()
    for command in (check, migrate):
        ran = await command(lab)
        assert ran.exit_code != 0, ran
        assert f"libvirt at {hosts['host-b'].socket_uri()} cannot be reached" in " ".join(ran.stderr.split())
        assert "check that libvirtd (or virtqemud) runs there" in ran.stderr
    await hosts["host-b"].start()


@pytest.mark.long
async def test_a_daemon_that_wants_a_password(lab: Lab, hosts: Daemons) -> None:
    """SASL on TCP: nothing is asked at the terminal, neither here nor by the daemon that would hand the domain over.

    Where this process may stand between the two, as it may unless that is forbidden, they need no password.
    """
    usual = hosts["host-b"]
    usual.stop()
    strict = LibvirtDaemon(lab, "host-b", usual._build, 'auth_tcp = "sasl"\n')
    try:
        await strict.start()
        async with connected({"host-a": hosts["host-a"], "host-b": strict}) as connections:
            ran = await lab.cli("host-a", "import", PLAN.name, "--libvirt", strict.uri)
            assert ran.exit_code == 4, ran
            assert "authentication failed" in ran.stderr
            assert "the daemon asks for a password (SASL)" in ran.stderr
            await start_domain(hosts["host-a"], PLAN)
            moved = await migrate(lab, "--libvirt", "flow=p2p")
            said = " ".join(moved.stdout.split())
            assert moved.exit_code != 0, moved
            assert "was aborted; guest runs on lv-a" in said
            assert "authentication failed" in said
            assert "the daemon asks for a password (SASL)" in said
            assert (await connections["host-a"].domain(PLAN.name)).state is DomainState.RUNNING
            assert await connections["host-b"].domains() == ()
            moved = await migrate(lab)
            assert moved.exit_code == 0, moved
            assert "this process stands between the two daemons instead" in moved.stderr
            assert (await connections["host-b"].domain(PLAN.name)).state is DomainState.RUNNING
    finally:
        strict.stop()
        await usual.start()
