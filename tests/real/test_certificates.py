"""Streams that are encrypted by certificates: guests arrive whole, and nobody else is let in or sent to."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from tests.capabilities.bare_qemu import PAUSED_GUEST, BareQemu

from vmferry.core.errors import NotFound
from vmferry.core.progress import Outcome, Report
from vmferry.core.units import MIB
from vmferry.lab.certificates import StreamCa
from vmferry.lab.guest_plans import DiskPlan, GuestPlan, micro_guest
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import FIRST_UID, Lab
from vmferry.lab.network import Cut
from vmferry.lab.page_faults import page_faults_for_all
from vmferry.lab.processes import command_line, kill_all
from vmferry.lab.scenarios import Leg, empty, migrate, move, remove, started, wait_finished, wait_state, wait_until
from vmferry.lab.toolchain import find_qemu
from vmferry.ports.hypervisor import RunState
from vmferry.qemu import userfault
from vmferry.qemu.dh_group import FFDHE2048, FILE_NAME

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

HOSTS = ("host-a", "host-b")
X509: dict[str, object] = {"encryption": "x509"}
STREAM_PORT, DISK_PORT = 49152, 49153


class Fleet:
    """A lab, its CA for streams, and where each host has its certificates."""

    def __init__(self, lab: Lab, ca: StreamCa, directory: Path) -> None:
        self.lab = lab
        self.ca = ca
        self.directory = directory

    def of(self, host: str) -> Path:
        """Return where a host's certificates are."""
        return self.directory / host


@contextlib.asynccontextmanager
async def fleet(directory: Path, *versions: tuple[int, int]) -> AsyncIterator[Fleet]:
    """Have two hosts with certificates, and a third set of the same CA."""
    try:
        qemus = {host: find_qemu(*version) for host, version in zip(HOSTS, versions, strict=True)}
    except NotFound as error:
        pytest.skip(str(error))
    ca = StreamCa()
    for host in (*HOSTS, "stranger"):
        ca.write(directory / host, host)
    settings = {host: {"migration": {"tls_dir": str(directory / host)}} for host in HOSTS}
    async with Lab(qemus=qemus, settings=settings, local_dirs=True) as lab:
        yield Fleet(lab, ca, directory)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[("7.2", "7.2"), ("10.0", "10.0"), ("7.2", "10.0")], ids=":".join
)
async def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Hosts with one QEMU, with another, and with one each."""
    versions = [(int(text.partition(".")[0]), int(text.partition(".")[2])) for text in request.param]
    async with fleet(tmp_path_factory.mktemp("certificates"), *versions) as made:
        yield made
        await empty(made.lab)


async def moved(fleet: Fleet, guest: GuestRun, options: dict[str, object]) -> Leg:
    """Move a guest; on 7.2 it is paused meanwhile, since TCG loses writes there."""
    live = fleet.lab.hosts[guest.host].qemu.version >= (10, 0)
    if not live:
        await fleet.lab.hosts[guest.host].api.post(f"/v1/guests/{guest.name}/pause")
    leg = await move(fleet.lab, guest, HOSTS[guest.host == "host-a"], options)
    if not live:
        await fleet.lab.hosts[guest.host].api.post(f"/v1/guests/{guest.name}/resume")
    return leg


def may_receive_postcopy(fleet: Fleet) -> None:
    """Skip where an unprivileged QEMU of a host catches no page faults."""
    for host in fleet.lab.hosts.values():
        if (why := userfault.why_no_userfault(FIRST_UID, host.qemu.version)) is not None:
            pytest.skip(why)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"channels": 4},
        {"link": "fd"},
        {"link": "unix", "channels": 4},
        {"postcopy_after": 1},
        {"link": "fd", "postcopy_after": 1},
        {"link": "unix", "postcopy_after": 1},
    ],
    ids=["one", "channels", "fd", "unix and channels", "post-copy", "fd and post-copy", "unix and post-copy"],
)
async def test_a_guest_moves_there_and_back(either: Fleet, options: dict[str, object]) -> None:
    """It arrives whole, its report says by what it was encrypted, and no key is left in either host's directories."""
    with page_faults_for_all():
        if "postcopy_after" in options:
            may_receive_postcopy(either)
        guest = await started(either.lab, micro_guest())
        for _ in range(2):
            leg = await moved(either, guest, X509 | options)
            assert leg.report.outcome == Outcome.MOVED, leg.report
            assert (leg.report.encrypted, leg.report.encryption) == (True, "x509")
            assert (await guest.oracle()).startswith("oracle clean")
        await remove(either.lab, guest)
    for host in either.lab.hosts.values():
        assert [path for path in host.run_dir.rglob("*key*") if path.is_file()] == []
        assert "PRIVATE KEY" not in host.agent.log.read_text("utf-8")


async def with_local_disk(fleet: Fleet, name: str) -> GuestRun:
    """Start a guest with a disk that only its host has."""
    with (fleet.lab.hosts["host-a"].local_dir / name).open("xb") as image:
        image.truncate(32 * MIB)
    disk = DiskPlan(fleet.lab.local / name, "raw")
    return await started(
        fleet.lab, GuestPlan("linux", memory_mib=128, working_set_mib=16, rate=4, disk_rate=4, disks=(disk,))
    )


async def test_a_local_disk_comes_along(either: Fleet) -> None:
    """Its copy goes over a connection that is encrypted by the same certificates, and arrives whole."""
    guest = await with_local_disk(either, "web.raw")
    leg = await moved(either, guest, X509 | {"copy_disks": True})
    assert leg.report.outcome == Outcome.MOVED, leg.report
    assert (await guest.oracle()).startswith("oracle clean")
    assert (await guest.disk()).startswith("disk clean")
    await remove(either.lab, guest)


# -- strangers at the destination -------------------------------------------------------------------------------------


def shown_by(whose: Path, side: str, where: Path) -> Path:
    """Make a directory for a QEMU or a client of NBD that shows somebody's certificate; returns it."""
    where.mkdir()
    for name in ("ca-cert.pem", f"{side}-cert.pem", f"{side}-key.pem"):
        (where / name).write_bytes((whose / name).read_bytes())
    (where / FILE_NAME).write_text(FFDHE2048, "ascii")
    return where


def rogue(fleet: Fleet, host: str, directory: Path, side: str, *argv: str) -> BareQemu:
    """Start a QEMU on a host that shows what is in a directory."""
    assert fleet.lab.network is not None
    binary = find_qemu(*fleet.lab.hosts[host].qemu.version[:2])
    inside = replace(binary, argv=(*fleet.lab.network.inside(host), *binary.argv))
    found = BareQemu(inside, *PAUSED_GUEST, *argv)
    shows = {"qom-type": "tls-creds-x509", "id": "x509", "dir": str(directory), "endpoint": side}
    assert found.set_on({"events"}, found.capabilities()) is None
    assert found.ask("object-add", **shows, **{"verify-peer": side == "client", "sanity-check": False}) is None
    assert found.ask("migrate-set-parameters", **{"tls-creds": "x509", "tls-hostname": "host-b"}) is None
    return found


def send_another_guest(fleet: Fleet, directory: Path) -> str | None:
    """Have a QEMU of its own send a guest to the port of the one that is expected; returns how that ended."""
    assert fleet.lab.network is not None
    stranger = rogue(fleet, "host-a", directory, "client")
    try:
        address = fleet.lab.network.management_address("host-b")
        # In TLS 1.3 who connects is done before its certificate was looked at, and a small guest fits into the socket.
        hears = [{"capability": "return-path", "state": True}]
        assert stranger.ask("migrate-set-capabilities", capabilities=hears) is None
        assert stranger.ask("migrate", uri=f"tcp:{address}:{STREAM_PORT}") is None
        return stranger.wait("completed", "failed", limit_s=20)
    finally:
        stranger.close()


@contextlib.contextmanager
def held(fleet: Fleet, state: str) -> Iterator[None]:
    """Hold the source's hand-overs in a state."""
    hold = fleet.lab.hosts["host-a"].hold_dir / f"source.{state}"
    hold.touch()
    try:
        yield
    finally:
        hold.unlink()


def qemu_log(fleet: Fleet, host: str, guest: GuestRun) -> str:
    """Return what the guest's QEMU on a host wrote."""
    (log,) = fleet.lab.hosts[host].run_dir.rglob(f"{guest.name}/qemu.log")
    return log.read_text("utf-8")


@pytest_asyncio.fixture(loop_scope="module")
async def newest(newest_of_module: Fleet) -> AsyncIterator[Fleet]:
    """Hosts with the newer QEMU, with certificates as in the beginning and without guests afterwards."""
    before = {path: path.read_bytes() for path in newest_of_module.directory.rglob("*.pem")}
    revoked = list(newest_of_module.ca.revoked)
    yield newest_of_module
    await empty(newest_of_module.lab)
    for path in newest_of_module.directory.rglob("*.pem"):
        path.unlink()
    for path, content in before.items():
        path.write_bytes(content)
    newest_of_module.ca.revoked[:] = revoked


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def newest_of_module(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Hosts with the newer QEMU."""
    async with fleet(tmp_path_factory.mktemp("certificates"), (10, 0), (10, 0)) as made:
        yield made


async def assert_moves(fleet: Fleet, guest: GuestRun, handover: str) -> None:
    """The rightful guest arrives, whole."""
    view = await wait_finished(fleet.lab, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == Outcome.MOVED, view.report
    guest.moved_to("host-b")
    assert (await guest.oracle()).startswith("oracle clean")


async def assert_stays(guest: GuestRun, report: Report, *words: str) -> None:
    """The guest runs on where it was, whole, and the report says why."""
    assert report.outcome in (Outcome.ABORTED, Outcome.BLOCKED), report
    assert report.reason is not None
    assert [word for word in words if word not in report.reason] == [], report.reason
    assert guest.host == "host-a"
    assert (await guest.view()).run_state is RunState.RUNNING
    assert (await guest.oracle()).startswith("oracle clean")


@pytest.mark.parametrize("options", [{}, {"channels": 4}], ids=["one", "channels"])
async def test_another_name_of_the_same_ca_is_not_let_in(
    newest: Fleet, tmp_path: Path, options: dict[str, object]
) -> None:
    """A good certificate is not enough: only the source that was told of comes in, and its guest arrives."""
    guest = await started(newest.lab, micro_guest())
    stranger = shown_by(newest.of("stranger"), "client", tmp_path / "shown")
    with held(newest, "reserved"):
        handover = await migrate(newest.lab, guest, "host-b", X509 | options)
        await wait_state(newest.lab, "host-a", handover, "reserved")
        assert send_another_guest(newest, stranger) == "failed"
        assert "authz check for O=lab,CN=stranger is denied" in qemu_log(newest, "host-b", guest)
        await wait_until(lambda: is_logged(newest, handover), "the agent says so too")
    await assert_moves(newest, guest, handover)


async def test_a_revoked_certificate_of_the_right_name_is_not_let_in(newest: Fleet, tmp_path: Path) -> None:
    """Whoever has the source's old key, taken back since, gets no further than a stranger."""
    old = shown_by(newest.of("host-a"), "client", tmp_path / "old")
    newest.ca.revoke(old, "client")
    newest.ca.write(newest.of("host-a"), "host-a")
    for host in HOSTS:
        newest.ca.write_crl(newest.of(host))
    guest = await started(newest.lab, micro_guest())
    with held(newest, "reserved"):
        handover = await migrate(newest.lab, guest, "host-b", X509)
        await wait_state(newest.lab, "host-a", handover, "reserved")
        assert send_another_guest(newest, old) == "failed"
        assert "The certificate has been revoked" in qemu_log(newest, "host-b", guest)
        await wait_until(lambda: is_logged(newest, handover), "the agent says so too")
    await assert_moves(newest, guest, handover)


async def is_logged(fleet: Fleet, handover: str) -> bool:
    """Tell whether host-b's agent has said, since this hand-over began, that somebody was refused."""
    _, begun, since = fleet.lab.hosts["host-b"].agent.tail(200).partition(f'"handover": "{handover}"')
    return bool(begun) and "showed no key or certificate of the move" in since


def look_at_disk(fleet: Fleet, shown: Path) -> subprocess.CompletedProcess[str]:
    """Have somebody open the image that is being copied."""
    assert fleet.lab.network is not None
    address = fleet.lab.network.management_address("host-b")
    options = f"driver=nbd,server.type=inet,server.host={address},server.port={DISK_PORT},export=image0"
    options += ",tls-creds=x509,tls-hostname=host-b"
    words = ["qemu-img", "info", "--object", f"tls-creds-x509,id=x509,dir={shown},endpoint=client,sanity-check=off"]
    argv = [*fleet.lab.network.inside("host-a"), *words, "--image-opts", options]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)


async def test_nobody_else_reads_or_writes_a_copy(newest: Fleet, tmp_path: Path) -> None:
    """The copy's port serves the source's certificate, and no other of the same CA; the disk arrives whole."""
    guest = await with_local_disk(newest, "copied.raw")
    with held(newest, "copying-disks"):
        handover = await migrate(newest.lab, guest, "host-b", X509 | {"copy_disks": True})
        await wait_state(newest.lab, "host-a", handover, "copying-disks")
        for host, lets_in in (("stranger", False), ("host-a", True)):
            seen = look_at_disk(newest, shown_by(newest.of(host), "client", tmp_path / host))
            assert (seen.returncode == 0) is lets_in, seen
    await assert_moves(newest, guest, handover)
    assert (await guest.disk()).startswith("disk clean")


# -- impostors of the destination -------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_place_of_destination(fleet: Fleet, guest: GuestRun, shown: Path) -> Iterator[BareQemu]:
    """Have a QEMU of somebody else listen where the one that was prepared for the guest did."""
    assert fleet.lab.network is not None
    there = fleet.lab.processes_of("host-b")
    (prepared,) = [found for found in there if f"guest={guest.name}," in command_line(found.pid)]
    assert kill_all([prepared]) == []
    impostor = rogue(fleet, "host-b", shown, "server", "-incoming", "defer")
    try:
        address = fleet.lab.network.management_address("host-b")
        assert impostor.ask("migrate-incoming", uri=f"tcp:{address}:{STREAM_PORT}") is None
        yield impostor
    finally:
        impostor.close()


@pytest.mark.parametrize("who", ["stranger", "old key of host-b", "host-b"])
async def test_nothing_is_sent_to_an_impostor(newest: Fleet, tmp_path: Path, who: str) -> None:
    """Who answers in the destination's place with another certificate of the CA gets nothing; the guest runs on.

    The one who has the destination's own key is sent the stream: it is the certificate that decides.
    """
    guest = await started(newest.lab, micro_guest())
    shown = shown_by(newest.of("stranger" if who == "stranger" else "host-b"), "server", tmp_path / "shown")
    if who == "old key of host-b":
        newest.ca.write(newest.of("host-b"), "host-b")  # the same name, another key
    with held(newest, "reserved"):
        handover = await migrate(newest.lab, guest, "host-b", X509)
        await wait_state(newest.lab, "host-a", handover, "reserved")
        impostors = contextlib.ExitStack()
        impostor = impostors.enter_context(in_place_of_destination(newest, guest, shown))
    with impostors:
        view = await wait_finished(newest.lab, "host-a", handover)
        assert view.report is not None
        refused = "QEMU at the source says that the migration failed: " in (view.report.reason or "")
        assert ("certificate" in (view.report.reason or "").lower() and refused) is (who != "host-b"), view.report
        # it ends over another guest's stream, or over none
        assert ("Not a migration stream" in impostor.wait_dead()) is (who != "host-b")
    await assert_stays(guest, view.report)
    for host, options in (("host-b", X509), ("host-a", {})):  # nothing of the attempt is left in QEMU
        leg = await move(newest.lab, guest, host, options)
        assert leg.report.outcome == Outcome.MOVED, leg.report
        assert leg.oracle.startswith("oracle clean")


# -- told before anything is touched ----------------------------------------------------------------------------------


async def test_everything_that_is_wrong_is_told_at_once(newest: Fleet) -> None:
    """An expired certificate here, a missing key and a revoked one there: three blockers, and the guest runs on."""
    newest.ca.write(newest.of("host-a"), "host-a", sides=["client"], ends_in_s=-60)
    (newest.of("host-b") / "client-key.pem").unlink()
    newest.ca.revoke(newest.of("host-b"), "server")
    newest.ca.write_crl(newest.of("host-b"))
    guest = await started(newest.lab, micro_guest())
    check = await newest.lab.hosts["host-a"].api.post(
        f"/v1/guests/{guest.name}/check", {"destination": "host-b", "options": X509}
    )
    told = "\n".join(f"{blocker['code']} {blocker['what']}" for blocker in check["blockers"])
    assert "stream.certificates-unusable On host-a client-cert.pem is of no use: it has expired on" in told
    assert "client-key.pem cannot be read: No such file or directory" in told
    assert "stream.certificates-unusable On host-b server-cert.pem is of no use: it was revoked" in told
    assert len(check["blockers"]) == 3
    leg = await move(newest.lab, guest, "host-b", X509)
    await assert_stays(guest, leg.report, "stream.certificates-unusable")


async def test_a_destination_that_knows_more_refuses(newest: Fleet) -> None:
    """The source's certificate was revoked, and only the destination has heard of it: refused, and told why."""
    newest.ca.revoke(newest.of("host-a"), "client")
    newest.ca.write_crl(newest.of("host-b"))
    guest = await started(newest.lab, micro_guest())
    leg = await move(newest.lab, guest, "host-b", X509)
    words = "host-b does not believe the client certificate of host-a: it was revoked (ca-crl.pem)"
    await assert_stays(guest, leg.report, words)


async def test_a_broken_post_copy_is_recovered(newest: Fleet) -> None:
    """The link is cut in mid-post-copy: the stream that goes on is encrypted by the same certificates."""
    may_receive_postcopy(newest)
    network = newest.lab.network
    assert network is not None
    with page_faults_for_all():
        guest = await started(newest.lab, GuestPlan("micro", memory_mib=64, working_set_mib=32, rate=8))
        try:
            options = X509 | {"postcopy_after": 1, "max_bandwidth": 3 * MIB}
            handover = await migrate(newest.lab, guest, "host-b", options)
            await wait_state(newest.lab, "host-a", handover, "postcopy-running")
            network.cut(how=Cut.SILENT)
            await wait_state(newest.lab, "host-a", handover, "postcopy-paused")
        finally:
            network.heal()
        await assert_moves(newest, guest, handover)
