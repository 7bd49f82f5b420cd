"""The emulator of a TPM: one per state, ended with its QEMU, its own end told; on the real program, without a guest."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from vmferry.core.errors import Broken, TimedOut
from vmferry.ports.hypervisor import GuestEvent, GuestEventKind
from vmferry.qemu import run_lock
from vmferry.qemu.process import Process
from vmferry.qemu.tpm import TpmWatch, end_left, query_version, serving

needs_swtpm = pytest.mark.skipif(shutil.which("swtpm") is None, reason="no swtpm: apt-get install swtpm")


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[Path]:
    """A directory for a state; nobody has it at the end."""
    directory = tmp_path / "state"
    directory.mkdir()
    yield directory
    await asyncio.to_thread(end_left, directory)


def start(state: Path) -> tuple[Process, int]:
    """Start one; returns it and QEMU's end of its connection, to be closed by the test."""
    with serving(state, state.parent / "swtpm.log", None) as emulator:
        assert emulator is not None
        return emulator.process, os.dup(emulator.connection)


async def answers() -> str:
    """Be a QEMU that lives."""
    return "running"


async def ends() -> str:
    """Be a QEMU that is ending."""
    raise Broken("it is gone")


async def hangs() -> str:
    """Be a QEMU that does not answer."""
    raise TimedOut("no answer")


@needs_swtpm
async def test_it_serves_one_state(state: Path) -> None:
    """It has the directory from its start to its end. 0.7.1 waits for ever when QEMU has said nothing, and is ended."""
    process, connection = await asyncio.to_thread(start, state)
    holder = await asyncio.to_thread(run_lock.find_holder, state)
    assert holder is not None
    assert holder.record == process.record
    holder.close()
    os.close(connection)
    await TpmWatch("web-7", state, process).end()
    assert run_lock.find_holder(state) is None


@needs_swtpm
async def test_a_start_ends_what_was_left(state: Path) -> None:
    """An emulator whose QEMU is gone, and which has not noticed, makes place for the next."""
    left, connection = await asyncio.to_thread(start, state)
    process, another = await asyncio.to_thread(start, state)
    assert not left.is_alive()
    assert process.is_alive()
    os.close(connection)
    os.close(another)
    watch = TpmWatch("web-7", state, process)
    await watch.end()
    assert run_lock.find_holder(state) is None
    left.close()


@needs_swtpm
async def test_a_start_that_fails_ends_it(state: Path) -> None:
    """When its QEMU cannot be started nothing is left of it."""

    def fail() -> Process:
        with serving(state, state.parent / "swtpm.log", None) as emulator:
            assert emulator is not None
            raise ValueError(emulator.process.record.pid)

    with pytest.raises(ValueError, match=r"\d+") as caught:
        await asyncio.to_thread(fail)
    assert not Path(f"/proc/{caught.value.args[0]}").exists()
    assert run_lock.find_holder(state) is None


@needs_swtpm
@pytest.mark.parametrize(("asks", "told"), [(answers, True), (hangs, True), (ends, False)])
async def test_its_end_is_told_unless_its_qemu_ends(state: Path, asks: Callable[..., object], told: bool) -> None:
    """A QEMU that ends takes it along, and that is no news."""
    process, connection = await asyncio.to_thread(start, state)
    events: list[GuestEvent] = []
    asked = asyncio.Event()

    async def ask() -> object:
        asked.set()
        return await asks()  # type: ignore[misc]

    watch = TpmWatch("web-7", state, process)
    watch.start(ask, events.append)
    await asyncio.sleep(0)
    assert not watch.has_ended
    os.kill(process.record.pid, signal.SIGKILL)
    await asyncio.wait_for(asked.wait(), 5.0)
    assert watch.has_ended  # whoever knows that its QEMU lives may say so at once
    await asyncio.sleep(0)
    assert [event.kind for event in events] == ([GuestEventKind.TPM_ENDED] if told else [])
    os.close(connection)
    await watch.end()


@needs_swtpm
async def test_it_is_found_again(state: Path) -> None:
    """A later agent has no handle on it, finds it by its lock, and tells of its end too."""
    process, connection = await asyncio.to_thread(start, state)
    events: list[GuestEvent] = []
    told = asyncio.Event()

    def publish(event: GuestEvent) -> None:
        events.append(event)
        told.set()

    watch = TpmWatch("web-7", state)
    watch.start(answers, publish)
    os.kill(process.record.pid, signal.SIGKILL)
    await asyncio.wait_for(told.wait(), 5.0)
    os.close(connection)
    await watch.close()
    await watch.end()
    assert not process.is_alive()
    process.close()


@needs_swtpm
async def test_one_that_does_not_end_is_ended(state: Path) -> None:
    """Seen with 0.7.1: its QEMU is killed, and it lives on. Here somebody else keeps its connection open."""
    process, connection = await asyncio.to_thread(start, state)
    began = time.monotonic()
    pid = process.record.pid
    await TpmWatch("web-7", state, process).end()
    assert not Path(f"/proc/{pid}").exists()
    assert time.monotonic() - began < 5.0
    os.close(connection)


def test_a_guest_without_one(tmp_path: Path) -> None:
    """Nothing is started, looked for or ended."""
    with serving(None, tmp_path / "log", None) as emulator:
        assert emulator is None
    end_left(None)
    assert list(tmp_path.iterdir()) == []


async def test_a_host_without_the_program(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told by name, with what to install."""
    monkeypatch.setenv("PATH", str(state))
    assert query_version() is None
    with pytest.raises(Broken, match="no swtpm on this host") as caught:
        await asyncio.to_thread(start, state)
    assert "install swtpm" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ('{"type": "swtpm", "features": ["tpm-1.2", "tpm-2.0"], "version": "0.7.1"}', (0, 7, 1)),
        ('{"type": "swtpm", "features": ["tpm-2.0"], "version": "0.10.0-rc1"}', (0, 10, 0)),
        ('{"type": "swtpm", "features": ["tpm-1.2"], "version": "0.7.1"}', None),
        ('{"type": "swtpm", "features": ["tpm-2.0"]}', None),
        ('{"type": "swtpm", "features": ["tpm-2.0"], "version": 7}', None),
        ("[]", None),
        ("usage: swtpm", None),
    ],
)
def test_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, version: object) -> None:
    """What does not emulate a TPM 2.0, or does not say so, is none."""
    program = tmp_path / "swtpm"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert query_version() == version


@needs_swtpm
def test_the_real_ones_version() -> None:
    """The installed program is understood."""
    found = query_version()
    assert found is not None
    assert found >= (0, 7, 0)
