"""The states of TPMs: one per guest of this host, never an older one, and none of a guest that is not here."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conductor.fakes import SPEC, WatchedLink
from tests.conductor.pair import Host, wait_finished, wait_until

from vmferry.conductor.tpm_states import TpmStates
from vmferry.core.errors import BadInput, Broken, Refused
from vmferry.core.handover.states import DestinationState, SourceState
from vmferry.core.ids import GuestName
from vmferry.core.migration import RunState
from vmferry.ports.hypervisor import GuestEventKind
from vmferry.testing.fake_qemu import FakeQemu

NAME = GuestName("web-8")
WITH_TPM = replace(SPEC, name=NAME, tpm="2.0", disks=())


def state(host: Host) -> Path:
    """Return where the guest's state is on a host."""
    return host.run_dir / "tpm" / NAME


def test_what_begins_gets_an_empty_directory(tmp_path: Path) -> None:
    """Whatever lies there goes; nobody else may look in."""
    states = TpmStates(tmp_path / "tpm")
    states.renew(NAME, None)
    (states.path(NAME) / "tpm2-00.permall").touch()
    states.renew(NAME, None)
    assert list(states.path(NAME).iterdir()) == []
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "tpm", states.path(NAME))] == [0o700, 0o700]


def test_a_name_never_leads_out(tmp_path: Path) -> None:
    """Nothing is made, removed or looked at elsewhere, whatever a peer calls its guest."""
    (tmp_path / "victim").mkdir()
    states = TpmStates(tmp_path / "tpm")
    for act in (states.remove, states.check, states.check_free, states.flush, lambda name: states.renew(name, None)):
        with pytest.raises(BadInput, match="cannot be the name"):
            act(GuestName("../victim"))
    assert (tmp_path / "victim").is_dir()


def test_a_state_that_is_gone_is_told(tmp_path: Path) -> None:
    """A directory without a permanent state is none: an emulator would make a new one there."""
    states = TpmStates(tmp_path)
    for _ in range(2):
        with pytest.raises(Broken, match="new and empty one"):
            states.check(NAME)
        states.renew(NAME, None)
    (states.path(NAME) / "tpm2-00.permall").touch()
    states.check(NAME)


async def test_a_state_without_a_row_is_kept(hosts: tuple[Host, Host]) -> None:
    """A journal that was lost says nothing of whose keys these are: a new guest of that name does not replace them."""
    host = hosts[0]
    (state(host) / "keys").mkdir(parents=True)
    await host.restart()
    with pytest.raises(Refused, match="of which the journal knows nothing"):
        await host.guests.run(WITH_TPM)
    assert host.journal.guest(NAME) is None
    assert (state(host) / "keys").exists()


async def test_a_state_goes_before_its_row(hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that is killed between the two has a row left, by which it is done again."""
    host = hosts[0]
    await host.guests.run(WITH_TPM)
    await host.guests.stop(NAME)
    seen = []
    monkeypatch.setattr(TpmStates, "remove", lambda *_: seen.append(host.journal.guest(NAME) is not None))
    await host.guests.remove(NAME)
    assert seen == [True]


def test_a_full_host_is_told(tmp_path: Path) -> None:
    """A directory that cannot be made is an error that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(Broken, match="state of a TPM cannot be kept in"):
        TpmStates(tmp_path / "file").renew(NAME, None)


async def test_a_state_is_there_as_long_as_its_guest(hosts: tuple[Host, Host]) -> None:
    """It stays over a stop, and goes with the guest; one that was lost keeps the guest from starting."""
    host = hosts[0]
    await host.guests.run(WITH_TPM)
    await host.guests.stop(NAME)
    kept = state(host) / "kept"
    kept.touch()
    await host.guests.start(NAME)
    assert kept.exists()
    await host.guests.stop(NAME)
    (state(host) / "tpm2-00.permall").unlink()
    with pytest.raises(Broken, match="new and empty one"):
        await host.guests.start(NAME)
    await host.guests.remove(NAME)
    assert not state(host).exists()


async def test_a_run_that_fails_leaves_no_state(hosts: tuple[Host, Host]) -> None:
    """Nothing is left of a guest that did not start."""
    host = hosts[0]
    host.hypervisor.refuse_next("start", Broken("no"))  # type: ignore[attr-defined]
    with pytest.raises(Broken, match="no"):
        await host.guests.run(WITH_TPM)
    assert not state(host).exists()


async def test_a_move_leaves_none_behind_and_finds_none(hosts: tuple[Host, Host]) -> None:
    """The destination begins with an empty directory, whatever was left there; the source's goes with its row."""
    source, destination = hosts
    await source.guests.run(WITH_TPM)
    state(destination).mkdir(parents=True)
    (state(destination) / "old").touch()
    moving = await source.migrate(destination, guest=NAME)
    await wait_finished(source, destination)
    assert moving.state is SourceState.DONE
    assert not state(source).exists()
    assert [path.name for path in state(destination).iterdir()] == ["tpm2-00.permall"]


async def test_what_arrived_is_on_disk_before_the_source_removes_its_own(
    hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the time of the flush both hosts have the state; a flush that fails is told and ends nothing."""
    source, destination = hosts
    await source.guests.run(WITH_TPM)
    seen = []

    def flush(_: TpmStates, name: GuestName) -> None:
        seen.append((name, state(source).exists(), state(destination).exists()))
        raise OSError("disk is gone")

    monkeypatch.setattr(TpmStates, "flush", flush)
    moving = await source.migrate(destination, guest=NAME)
    await wait_finished(source, destination)
    assert moving.state is SourceState.DONE
    assert seen == [(NAME, True, True)]


def test_a_flush_follows_and_awaits_nothing(tmp_path: Path) -> None:
    """Whatever the emulator's user puts there is an error at most: no link is followed, no pipe is waited for."""
    states = TpmStates(tmp_path / "tpm")
    states.renew(NAME, None)
    (states.path(NAME) / "tpm2-00.permall").write_text("state")
    states.flush(NAME)
    (states.path(NAME) / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="link"):
        states.flush(NAME)
    (states.path(NAME) / "link").unlink()
    os.mkfifo(states.path(NAME) / "pipe")
    with pytest.raises(OSError, match="Invalid argument"):
        states.flush(NAME)


async def test_a_failed_move_leaves_none_there(hosts: tuple[Host, Host]) -> None:
    """What was made for the arrival goes; the source's is as it was."""
    source, destination = hosts
    await source.guests.run(WITH_TPM)
    (state(source) / "kept").touch()
    destination.hypervisor.refuse_next("prepare_migration", Broken("no"))  # type: ignore[attr-defined]
    moving = await source.migrate(destination, guest=NAME)
    await wait_finished(source, destination)
    assert moving.state is not SourceState.DONE
    await wait_until(lambda: not state(destination).exists(), "the end of the state there")
    assert (state(source) / "kept").exists()


async def test_an_emulator_that_ends_is_noted(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """The guest runs on, and its row says what is the matter, also when it happened while no agent listened."""
    host = hosts[0]
    await host.guests.run(WITH_TPM)
    qemu = qemu_on(host, link)
    await asyncio.sleep(0)  # whoever notes it listens from now on
    qemu.emit(GuestEventKind.TPM_ENDED)
    await wait_until(lambda: "emulator ended" in (host.guests.row(NAME).note or ""), "the note")
    assert host.guests.process(NAME) is not None
    host.guests.put(host.guests.row(NAME), note=None)
    qemu.has_lost_tpm = True
    await host.restart()
    await wait_until(lambda: "emulator ended" in (host.guests.row(NAME).note or ""), "the note")


def qemu_on(host: Host, link: WatchedLink) -> FakeQemu:
    """Return the process of the guest with a TPM on a host."""
    row = host.journal.guest(NAME)
    assert row is not None
    assert row.process is not None
    return link.processes[row.process.pid]


async def test_an_arrival_whose_emulator_ends_is_given_up(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """Before all is loaded the move ends at once, long before QEMU would fail in the guest's pause."""
    source, destination = hosts
    await source.guests.run(WITH_TPM)
    source.hold.ask(SourceState.PRECOPY)
    moving = await source.migrate(destination, guest=NAME)
    await source.hold.wait_reached(SourceState.PRECOPY)
    qemu_on(destination, link).emit(GuestEventKind.TPM_ENDED)
    await wait_until(lambda: destination.journal.guest(NAME) is None, "the end of the arrival")
    source.hold.let_go(SourceState.PRECOPY)
    await wait_finished(source, destination)
    assert moving.state is not SourceState.DONE
    assert source.guests.process(NAME) is not None
    assert not state(destination).exists()


async def test_an_emulator_that_ended_while_nobody_listened_is_seen(
    hosts: tuple[Host, Host], link: WatchedLink
) -> None:
    """An arrival is looked at when it begins to be watched, and its guest when it is here."""
    source, destination = hosts
    await source.guests.run(WITH_TPM)
    destination.hold.ask(DestinationState.LOADED)
    await source.migrate(destination, guest=NAME)
    await destination.hold.wait_reached(DestinationState.LOADED)
    qemu_on(destination, link).has_lost_tpm = True
    destination.hold.let_go(DestinationState.LOADED)
    await wait_finished(source, destination)
    await wait_until(lambda: "emulator ended" in (destination.guests.row(NAME).note or ""), "the note")


async def test_post_copy_is_not_begun_without_it(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """Asked for right before the point of no return: the guest goes on where it is."""
    source, destination = hosts
    await source.guests.run(WITH_TPM)
    source.hold.ask(SourceState.PRECOPY)
    moving = await source.migrate(destination, guest=NAME, postcopy_after=1)
    await source.hold.wait_reached(SourceState.PRECOPY)
    qemu_on(source, link).has_lost_tpm = True
    source.hold.let_go(SourceState.PRECOPY)
    await wait_finished(source, destination)
    assert moving.state is SourceState.ABORTED
    assert "what emulates the TPM of guest web-8 has ended" in str(moving.runner.why)
    assert qemu_on(source, link).state is RunState.RUNNING
    assert not state(destination).exists()
