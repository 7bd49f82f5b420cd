"""A QEMU whose agent was killed between its start and its record is no orphan that keeps image and memory.

The journal had no pid to look for, so the next agent took the guest for stopped; its start then failed on the image
lock of a process that nobody knew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conductor.fakes import HOST_A
from tests.conductor.pair import NoBeats

from vmferry.conductor.guests import Guests, HostSettings
from vmferry.core.guest import Acceleration, Desired, Disk
from vmferry.core.ids import Epoch
from vmferry.lab.toolchain import find_qemus
from vmferry.ports.store import GuestRow, Token
from vmferry.qemu import QemuBinaryConfig, QemuHypervisor
from vmferry.testing.conformance_hypervisor import SPEC
from vmferry.testing.fake_journal import FakeJournal

pytestmark = pytest.mark.real

#: Starts the guest as an agent does and is killed: as soon as QEMU was spawned, or when it answers.
AGENT = """
import asyncio, json, os, signal, sys
from pathlib import Path
from vmferry.core.guest import Acceleration, Disk
from vmferry.ports.hypervisor import HostResources
from vmferry.qemu import QemuBinaryConfig, QemuHypervisor, hypervisor
from vmferry.testing.conformance_hypervisor import SPEC
from dataclasses import replace

def die():
    os.kill(os.getpid(), signal.SIGKILL)

async def main(argv, env, state, run_dir, image, when):
    here = QemuHypervisor(QemuBinaryConfig(tuple(argv), env), Acceleration.TCG, state_dir=Path(state))
    guest = await here.freeze(replace(SPEC, disks=(Disk(image, cache="writeback"),)))
    if when == "spawned":
        spawn = hypervisor.spawn
        hypervisor.spawn = lambda *args, **kwargs: (spawn(*args, **kwargs), die())
    await here.start(guest, HostResources(run_dir, None), incoming=False)
    die()

asyncio.run(main(*json.loads(sys.argv[1])))
"""


def processes_in(directory: Path) -> list[str]:
    """Return the processes that work in a directory."""
    found = []
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if cwd.readlink() == directory:
                found.append(cwd.parent.name)
    return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The guest's disk."""
    path = tmp_path / "web-7.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "16M"], check=True)
    return path


@pytest.fixture
async def guests(tmp_path: Path, image: Path) -> AsyncIterator[Guests]:
    """What a new agent has, with the row of a guest that the killed one was about to start."""
    found = find_qemus()[0]
    binary = QemuBinaryConfig(found.argv, found.env)
    hypervisor = QemuHypervisor(binary, Acceleration.TCG, state_dir=tmp_path / "state")
    guest = await hypervisor.freeze(replace(SPEC, disks=(Disk(str(image), cache="writeback"),)))
    journal = FakeJournal()
    journal.put_guest(GuestRow(guest, Token(Epoch(1), HOST_A, running=True), Desired.RUNNING, None))
    guests = Guests(HostSettings(HOST_A, tmp_path, None, tmp_path / "tpm"), journal, hypervisor, NoBeats())
    yield guests
    if guests.process(SPEC.name) is not None:
        await guests.stop(SPEC.name)
    await guests.close()


@pytest.mark.parametrize("when", ["spawned", "answered"])
async def test_killed_between_start_and_record(guests: Guests, tmp_path: Path, image: Path, when: str) -> None:
    """The next agent ends the process, whether it answers yet or not, and the guest can be started."""
    found = find_qemus()[0]
    run_dir = tmp_path / "guests" / SPEC.name
    run_dir.parent.mkdir()
    arguments = json.dumps([found.argv, dict(found.env), str(tmp_path / "state"), str(run_dir), str(image), when])
    command = [sys.executable, "-c", AGENT, arguments]
    killed = await asyncio.to_thread(subprocess.run, command, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(processes_in(run_dir)) == 1
    await guests.adopt_all()
    await guests.adopted(SPEC.name)
    assert processes_in(run_dir) == []
    await guests.start(SPEC.name)
    assert len(processes_in(run_dir)) == 1
