"""Strangers at the ports of a guest that arrives: refused, without effect on the guest that is to come."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from tests.capabilities.bare_qemu import PAUSED_GUEST, BareQemu

from vmferry.core.progress import Outcome
from vmferry.core.units import MIB
from vmferry.lab.guest_plans import DiskPlan, GuestPlan, micro_guest
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import empty, migrate, started, wait_finished, wait_state, wait_until
from vmferry.lab.toolchain import find_qemu

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

STREAM_PORT, DISK_PORT = 49152, 49153


@pytest_asyncio.fixture(loop_scope="module")
async def lab(local_lab: Lab) -> AsyncIterator[Lab]:
    """The same, empty again afterwards, also after a failure."""
    yield local_lab
    await empty(local_lab)


@pytest.fixture
def wrong_key(tmp_path: Path) -> Path:
    """A directory with a key that nobody has."""
    (tmp_path / "keys.psk").write_text(f"qemu:{secrets.token_hex(32)}\n", "ascii")
    return tmp_path


@contextlib.contextmanager
def held(lab: Lab, state: str) -> Iterator[None]:
    """Hold the source's hand-overs in a state."""
    hold = lab.hosts["host-a"].hold_dir / f"source.{state}"
    hold.touch()
    try:
        yield
    finally:
        hold.unlink()


async def assert_moves(lab: Lab, guest: GuestRun, handover: str) -> None:
    """The rightful guest arrives, whole."""
    view = await wait_finished(lab, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == Outcome.MOVED, view.report
    guest.moved_to("host-b")
    assert (await guest.oracle()).startswith("oracle clean")


def send_another_guest(lab: Lab, key: Path | None) -> str | None:
    """Have a QEMU of its own send a guest to the port of the one that is expected; returns how that ended."""
    assert lab.network is not None
    binary = find_qemu(10, 0)
    rogue = BareQemu(replace(binary, argv=(*lab.network.inside("host-a"), *binary.argv)), *PAUSED_GUEST)
    try:
        assert rogue.set_on({"events"}, rogue.capabilities()) is None
        if key is not None:
            names = {"qom-type": "tls-creds-psk", "id": "psk", "dir": str(key), "endpoint": "client"}
            assert rogue.ask("object-add", **names) is None
            assert rogue.ask("migrate-set-parameters", **{"tls-creds": "psk"}) is None
        address = lab.network.management_address("host-b")
        assert rogue.ask("migrate", uri=f"tcp:{address}:{STREAM_PORT}") is None
        return rogue.wait("completed", "failed", limit_s=20)
    finally:
        rogue.close()


@pytest.mark.parametrize("has_key", [True, False], ids=["another key", "in the clear"])
async def test_another_guest_is_not_let_in(lab: Lab, wrong_key: Path, has_key: bool) -> None:
    """Who does not know the move's key sends nothing; the guest that is expected comes, and is the one that runs."""
    guest = await started(lab, micro_guest())
    with held(lab, "reserved"):
        handover = await migrate(lab, guest, "host-b")
        await wait_state(lab, "host-a", handover, "reserved")
        before = len(refusals(lab))
        for _ in range(2):
            assert send_another_guest(lab, wrong_key if has_key else None) != "completed"
        await wait_until(lambda: _is_logged(lab, before), "the refusal is logged")
    await assert_moves(lab, guest, handover)
    assert len(refusals(lab)) - before <= 2  # at once, and the rest when nobody looks any more


def refusals(lab: Lab) -> list[str]:
    """Return what host-b's agent has said of connections that were refused."""
    return [
        line
        for line in lab.hosts["host-b"].agent.tail(200).splitlines()
        if "showed no key or certificate of the move" in line
    ]


async def _is_logged(lab: Lab, before: int) -> bool:
    return len(refusals(lab)) > before


def look_at_disk(lab: Lab, key: Path | None) -> subprocess.CompletedProcess[str]:
    """Have somebody open the image that is being copied."""
    assert lab.network is not None
    address = lab.network.management_address("host-b")
    options = f"driver=nbd,server.type=inet,server.host={address},server.port={DISK_PORT},export=image0"
    words = ["qemu-img", "info"]
    if key is not None:
        words += ["--object", f"tls-creds-psk,id=psk,dir={key},endpoint=client"]
        options += ",tls-creds=psk"
    argv = [*lab.network.inside("host-a"), *words, "--image-opts", options]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize("has_key", [True, False], ids=["another key", "in the clear"])
async def test_nobody_else_reads_or_writes_a_copy(lab: Lab, wrong_key: Path, has_key: bool) -> None:
    """The copy's port serves who knows the move's key, and nobody else; the disk arrives whole."""
    name = f"{has_key}.raw"
    with (lab.hosts["host-a"].local_dir / name).open("xb") as image:
        image.truncate(32 * MIB)
    disk = DiskPlan(lab.local / name, "raw")
    guest = await started(
        lab, GuestPlan("linux", memory_mib=128, working_set_mib=16, rate=4, disk_rate=4, disks=(disk,))
    )
    with held(lab, "copying-disks"):
        handover = await migrate(lab, guest, "host-b", {"copy_disks": True})
        await wait_state(lab, "host-a", handover, "copying-disks")
        seen = look_at_disk(lab, wrong_key if has_key else None)
        assert seen.returncode != 0
        assert ("TLS" in seen.stderr) or ("handshake" in seen.stderr)
    await assert_moves(lab, guest, handover)
    assert (await guest.disk()).startswith("disk clean")
