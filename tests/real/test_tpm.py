"""Guests with a TPM: its volatile and its permanent state go along, and are left as they were where they do not."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from vmferry.core.errors import Broken
from vmferry.core.progress import Outcome
from vmferry.core.units import MIB
from vmferry.lab.guest_plans import DiskPlan, GuestPlan, debian_guest, linux_guest, micro_guest
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.page_faults import page_faults_for_all
from vmferry.lab.processes import command_line
from vmferry.lab.scenarios import migrate, move, remove, started, wait_finished, wait_over, wait_state, wait_until
from vmferry.ports.hypervisor import RunState
from vmferry.qemu import userfault

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(shutil.which("swtpm") is None, reason="no swtpm: apt-get install swtpm"),
]

GUEST = replace(micro_guest(), extra={"tpm": "2.0"})
#: What the guest extends its register with; see micro_src/tpm.c.
DIGEST = b"".join(letter * 8 for letter in (b"v", b"m", b"f", b"y"))


def state_after(uses: int) -> str:
    """Return what the guest says of a TPM that was used so often, by the definition of a PCR."""
    pcr = bytes(32)
    for _ in range(uses):
        pcr = hashlib.sha256(pcr + DIGEST).digest()
    return f"tpm pcr={int.from_bytes(pcr[:4], 'big')} nv={uses}"


async def use(guest: GuestRun) -> str:
    """Have the guest extend its PCR and write its NV index; returns what it reads back."""
    return await guest.ask("t", "tpm", 30.0)


async def said(guest: GuestRun) -> str:
    """Return what the guest reads."""
    return await guest.ask("s", "tpm", 30.0)


def emulators(lab: Lab, host: str) -> list[int]:
    """Return the processes that emulate TPMs on a host, by the program that they run."""
    found = []
    for process in lab.processes_of(host):
        try:
            if Path(f"/proc/{process.pid}/exe").readlink().name == "swtpm":
                found.append(process.pid)
        except OSError:
            continue
    return found


def qemu_of(lab: Lab, host: str) -> int:
    """Return the one QEMU on a host."""
    (pid,) = [process.pid for process in lab.processes_of(host) if "-uuid" in command_line(process.pid).split()]
    return pid


def states(lab: Lab, host: str) -> list[str]:
    """Return whose TPM's states are on a host."""
    directory = lab.hosts[host].state_dir / "tpm"
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


async def assert_only_on(lab: Lab, host: str) -> None:
    """One emulator and one state are there, on that host, and soon none anywhere else."""

    async def is_so() -> bool:
        return all(
            (len(emulators(lab, name)), states(lab, name)) == ((1, ["web-7"]) if name == host else (0, []))
            for name in lab.hosts
        )

    await wait_until(is_so, f"one emulator and one state, on {host}")


async def with_tpm(lab: Lab, plan: GuestPlan = GUEST) -> GuestRun:
    """Start a guest on host-a that has used its TPM once."""
    guest = await started(lab, plan)
    assert await use(guest) == state_after(1)
    return guest


async def there_and_back(lab: Lab, options: dict[str, object]) -> None:
    """Move a guest to host-b and back; its TPM is used on each."""
    guest = await with_tpm(lab)
    await assert_only_on(lab, "host-a")
    for uses, host in enumerate(("host-b", "host-a"), start=1):
        leg = await move(lab, guest, host, options)
        assert leg.report.outcome == Outcome.MOVED, leg.report
        assert await said(guest) == state_after(uses)
        await assert_only_on(lab, host)
        assert await use(guest) == state_after(uses + 1)
    await remove(lab, guest)
    assert [emulators(lab, host) + states(lab, host) for host in lab.hosts] == [[], []]


async def test_there_and_back(lab: Lab) -> None:
    """PCR and NV index are the same after each move; the source keeps neither an emulator nor a state."""
    await there_and_back(lab, {})


async def test_between_qemu_versions(mixed_lab: Lab) -> None:
    """From 7.2 to 10.0, standing still (a running TCG guest of 7.2 is refused), and back."""
    guest = await with_tpm(mixed_lab)
    await mixed_lab.hosts["host-a"].api.post(f"/v1/guests/{guest.name}/pause")
    assert (await move(mixed_lab, guest, "host-b")).report.outcome == Outcome.MOVED
    await mixed_lab.hosts["host-b"].api.post(f"/v1/guests/{guest.name}/resume")
    assert await said(guest) == state_after(1)
    assert await use(guest) == state_after(2)
    assert (await move(mixed_lab, guest, "host-a")).report.outcome == Outcome.MOVED
    assert await said(guest) == state_after(2)
    await remove(mixed_lab, guest)


async def test_postcopy(lab: Lab) -> None:
    """The state is in what post-copy sends before the guest runs there."""
    if not userfault.DEVICE.exists():
        pytest.skip(f"no {userfault.DEVICE} on this machine")
    with page_faults_for_all():
        await there_and_back(lab, {"postcopy_after": 1, "max_bandwidth": 3 * MIB})


async def test_through_a_file_to_another_host(lab: Lab) -> None:
    """A saved guest's file has its TPM's state; the host keeps none, and the one that restores it gets it."""
    guest = await with_tpm(lab)
    file = lab.directory / "tpm.guest"
    await lab.hosts["host-a"].api.post(f"/v1/guests/{guest.name}/save", {"path": str(file)})
    assert [emulators(lab, host) + states(lab, host) for host in lab.hosts] == [[], []]
    await lab.hosts["host-b"].api.post("/v1/restore", {"path": str(file)})
    guest.moved_to("host-b")
    assert await said(guest) == state_after(1)
    await assert_only_on(lab, "host-b")
    await remove(lab, guest)


async def test_with_a_copied_disk(local_lab: Lab) -> None:
    """State and disk go along together when the hosts share nothing."""
    image = local_lab.local / "tpm.raw"
    for host in local_lab.hosts.values():
        host.local_dir.mkdir(exist_ok=True)
    (local_lab.hosts["host-a"].local_dir / "tpm.raw").write_bytes(bytes(MIB))
    guest = await with_tpm(local_lab, replace(GUEST, disks=(DiskPlan(image, "raw"),)))
    leg = await move(local_lab, guest, "host-b", {"copy_disks": True})
    assert leg.report.outcome == Outcome.MOVED, leg.report
    assert await said(guest) == state_after(1)
    await assert_only_on(local_lab, "host-b")
    await remove(local_lab, guest)


async def test_stopped_and_started(lab: Lab) -> None:
    """What is permanent survives a stop, what is volatile does not; without its state a guest is not started."""
    guest = await with_tpm(lab)
    api = lab.hosts["host-a"].api
    await api.post(f"/v1/guests/{guest.name}/stop", {"force": True})
    assert emulators(lab, "host-a") == []
    await api.post(f"/v1/guests/{guest.name}/start")
    await guest.wait_ready()
    assert await said(guest) == "tpm pcr=0 nv=1"
    await api.post(f"/v1/guests/{guest.name}/stop", {"force": True})
    (lab.hosts["host-a"].state_dir / "tpm" / guest.name / "tpm2-00.permall").unlink()
    with pytest.raises(Broken, match="would start with a new and empty one"):
        await api.post(f"/v1/guests/{guest.name}/start")
    await api.delete(f"/v1/guests/{guest.name}")
    assert states(lab, "host-a") == []


async def test_its_user_has_no_other_rights(lab: Lab) -> None:
    """The emulator runs as the guest's own user, holds no file but its log and its state, and listens nowhere."""
    guest = await with_tpm(lab)
    (emulator,) = emulators(lab, "host-a")
    (directory,) = (lab.hosts["host-a"].state_dir / "tpm").iterdir()
    rows = [line.split() for line in Path(f"/proc/{emulator}/status").read_text().splitlines()]
    ids = {row[0]: set(row[1:]) for row in rows if row[0] in ("Uid:", "Gid:", "Groups:", "CapEff:")}
    user = {str(directory.stat().st_uid)}
    assert user != {"0"}
    assert ids == {"Uid:": user, "Gid:": user, "Groups:": set(), "CapEff:": {"0" * 16}}
    held = {str(fd.readlink()) for fd in Path(f"/proc/{emulator}/fd").iterdir()}
    paths = {Path(name).name for name in held if name.startswith("/")}
    assert paths <= {"null", "swtpm.log", "web-7", ".lock"}
    assert directory.stat().st_mode & 0o777 == 0o700
    assert directory.parent.stat().st_mode & 0o777 == 0o700
    await remove(lab, guest)


async def in_precopy(lab: Lab) -> tuple[GuestRun, str]:
    """Return a guest that has used its TPM once, and its move, which is in its first round for seconds."""
    guest = await with_tpm(lab, replace(GUEST, rate=1))
    handover = await migrate(lab, guest, "host-b", {"max_bandwidth": 4 * MIB})
    await wait_state(lab, "host-a", handover, "precopy")
    assert [len(emulators(lab, host)) for host in lab.hosts] == [1, 1]
    return guest, handover


async def assert_as_before(lab: Lab, guest: GuestRun, handover: str) -> None:
    """The move has failed; the guest's TPM is here as it was, works, and nothing of it is left there."""
    view = await wait_finished(lab, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome != Outcome.MOVED
    assert (await guest.view()).run_state == RunState.RUNNING
    assert await said(guest) == state_after(1)
    assert await use(guest) == state_after(2)
    await assert_only_on(lab, "host-a")
    await remove(lab, guest)


async def test_a_cancelled_move(lab: Lab) -> None:
    """The source's TPM goes on, the destination's is gone with its state."""
    guest, handover = await in_precopy(lab)
    await lab.hosts["host-a"].api.post(f"/v1/handovers/{handover}/cancel")
    await assert_as_before(lab, guest, handover)


async def test_the_destinations_emulator_dies(lab: Lab) -> None:
    """The state finds no place there: the move fails in its pause, and the guest goes on here."""
    guest, handover = await in_precopy(lab)
    os.kill(emulators(lab, "host-b")[0], signal.SIGKILL)
    await assert_as_before(lab, guest, handover)


async def test_the_destinations_qemu_dies(lab: Lab) -> None:
    """Its emulator goes with it."""
    guest, handover = await in_precopy(lab)
    os.kill(qemu_of(lab, "host-b"), signal.SIGKILL)
    await assert_as_before(lab, guest, handover)


async def test_the_destinations_agent_dies(lab: Lab) -> None:
    """The next one removes what came, emulator and state, or lets it arrive."""
    guest, handover = await in_precopy(lab)
    lab.hosts["host-b"].agent.kill_worker()
    view = await wait_finished(lab, "host-a", handover)
    assert view.report is not None
    moved = view.report.outcome == Outcome.MOVED
    guest.moved_to("host-b" if moved else "host-a")
    await lab.hosts["host-b"].api.wait_answer()
    assert await said(guest) == state_after(1)
    await assert_only_on(lab, guest.host)
    await remove(lab, guest)


async def test_the_sources_emulator_dies_in_a_move(lab: Lab) -> None:
    """The state cannot be given: the move fails, the guest runs on with a TPM that fails, and that is told."""
    guest, handover = await in_precopy(lab)
    os.kill(emulators(lab, "host-a")[0], signal.SIGKILL)
    view = await wait_finished(lab, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome != Outcome.MOVED
    await wait_over(lab, "host-b", handover)
    await assert_tpm_is_lost(lab, guest)


async def test_the_sources_emulator_dies_before_postcopy(lab: Lab) -> None:
    """A state that cannot be given is found before the commit: the guest runs on here."""
    if not userfault.DEVICE.exists():
        pytest.skip(f"no {userfault.DEVICE} on this machine")
    with page_faults_for_all():
        guest = await with_tpm(lab, replace(GUEST, rate=1))
        handover = await migrate(lab, guest, "host-b", {"max_bandwidth": 4 * MIB, "postcopy_after": 2})
        await wait_state(lab, "host-a", handover, "precopy")
        os.kill(emulators(lab, "host-a")[0], signal.SIGKILL)
        view = await wait_finished(lab, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome != Outcome.MOVED, view.report
    await wait_over(lab, "host-b", handover)
    await assert_tpm_is_lost(lab, guest)


async def test_an_emulator_dies(lab: Lab) -> None:
    """The guest runs on with a TPM that fails; its view says so, no move is begun, and a stop and a start heal it."""
    guest = await with_tpm(lab)
    os.kill(emulators(lab, "host-a")[0], signal.SIGKILL)
    await assert_tpm_is_lost(lab, guest)


async def assert_tpm_is_lost(lab: Lab, guest: GuestRun) -> None:
    """It is told, blocks a move, and is healed by a stop and a start."""

    async def is_told() -> bool:
        return "emulator ended" in ((await guest.view()).note or "")

    await wait_until(is_told, "the note")
    assert (await guest.view()).run_state == RunState.RUNNING
    assert (await guest.oracle()).startswith("oracle clean")
    assert await said(guest) == "tpm error 9"  # TPM_FAIL, made by QEMU
    api = lab.hosts["host-a"].api
    found = await api.post(f"/v1/guests/{guest.name}/check", {"destination": "host-b"})
    assert [blocker["code"] for blocker in found["blockers"]] == ["tpm.emulator-ended"]
    await api.post(f"/v1/guests/{guest.name}/stop", {"force": True})
    await api.post(f"/v1/guests/{guest.name}/start")
    await guest.wait_ready()
    assert await said(guest) == "tpm pcr=0 nv=1"
    await assert_only_on(lab, "host-a")
    await remove(lab, guest)


async def test_it_outlives_the_agent(lab: Lab) -> None:
    """Kill -9 of the agent: the same emulator serves the guest, the next agent tells of its end, and moves it."""
    guest = await with_tpm(lab)
    before = emulators(lab, "host-a")
    lab.hosts["host-a"].agent.kill_worker()
    await lab.hosts["host-a"].api.wait_answer()
    assert emulators(lab, "host-a") == before
    assert await use(guest) == state_after(2)

    async def is_adopted() -> bool:
        return (await guest.view()).run_state == RunState.RUNNING

    await wait_until(is_adopted, "the next agent knows its QEMU")
    assert (await move(lab, guest, "host-b")).report.outcome == Outcome.MOVED
    assert await said(guest) == state_after(2)
    await assert_only_on(lab, "host-b")
    await remove(lab, guest)


@pytest.mark.parametrize("dies", ["emulator", "qemu"])
async def test_a_death_while_no_agent_watches(lab: Lab, dies: str) -> None:
    """The next agent sees that the emulator is gone, or that its QEMU is, and then leaves no emulator behind."""
    guest = await with_tpm(lab)
    pid = qemu_of(lab, "host-a") if dies == "qemu" else emulators(lab, "host-a")[0]
    lab.hosts["host-a"].agent.kill_worker()
    os.kill(pid, signal.SIGKILL)
    await lab.hosts["host-a"].api.wait_answer()
    if dies == "emulator":
        await assert_tpm_is_lost(lab, guest)
        return

    async def is_gone() -> bool:
        return (await guest.view()).note is not None and emulators(lab, "host-a") == []

    await wait_until(is_gone, "the end of both is seen")
    api = lab.hosts["host-a"].api
    await api.post(f"/v1/guests/{guest.name}/start")
    await guest.wait_ready()
    assert await said(guest) == "tpm pcr=0 nv=1"
    await remove(lab, guest)


async def test_beside_an_initrd_it_is_refused(lab: Lab) -> None:
    """QEMU would load the initrd over the firmware's tables: told before anything is made."""
    plan = replace(linux_guest("web-7", memory_mib=256, rate=0, bridge=False), extra={"tpm": "2.0"})
    with pytest.raises(Broken, match="a TPM beside an initrd"):
        await GuestRun.start(lab, plan, "host-a")
    assert [emulators(lab, host) + states(lab, host) for host in lab.hosts] == [[], []]


@pytest.mark.timeout(900)  # a whole distribution boots without KVM
async def test_a_stock_debian(lab: Lab) -> None:
    """UEFI measures into it, Linux's own driver reads it: the same before and after a move, and it still answers."""
    guest = await started(lab, replace(debian_guest(), extra={"tpm": "2.0"}))
    register = "cat /sys/class/tpm/tpm0/pcr-sha256/0"
    before = await guest.shell(register)
    assert len(before) == 64
    assert set(before) != {"0"}
    leg = await move(lab, guest, "host-b")
    assert leg.report.outcome == Outcome.MOVED, leg.report
    assert await guest.shell(register) == before
    await assert_only_on(lab, "host-b")
    await remove(lab, guest)
