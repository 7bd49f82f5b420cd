"""Guests of one host: claims, starts and stops, and what a restarted agent makes of what it finds."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conductor.fakes import SPEC, WatchedLink, qemu_of
from tests.conductor.pair import GUEST, Host, wait_finished, wait_until

from vmferry.core.errors import BadInput, Broken, GuestBusy, NotFound, Refused, TimedOut
from vmferry.core.guest import Desired
from vmferry.core.handover.states import SourceState
from vmferry.core.ids import Epoch, GuestName, HostName
from vmferry.core.migration import RunState
from vmferry.ports.hypervisor import GuestProcess, HostResources
from vmferry.ports.store import GuestRow, Token
from vmferry.testing.fake_hypervisor import FakeGuestProcess, FakeHypervisor
from vmferry.testing.fake_qemu import FakeQemu


@pytest.fixture
def host(hosts: tuple[Host, Host]) -> Host:
    """The host on which the guest runs."""
    return hosts[0]


def row_of(host: Host) -> GuestRow:
    """Return the guest's row."""
    row = host.journal.guest(GUEST)
    assert row is not None
    return row


def fake_process(host: Host) -> FakeGuestProcess:
    """Return the handle that the host has on the guest's process."""
    process: GuestProcess | None = host.guests.process(GUEST)
    assert isinstance(process, FakeGuestProcess)
    return process


def living_qemu(host: Host, link: WatchedLink) -> FakeQemu:
    """Return the guest's process."""
    qemu = qemu_of(host, link)
    assert qemu is not None
    return qemu


def fake_hypervisor(host: Host) -> FakeHypervisor:
    """Return the host's hypervisor, to script its failures."""
    assert isinstance(host.hypervisor, FakeHypervisor)
    return host.hypervisor


async def test_claim_is_given_back_by_its_holder_only(host: Host) -> None:
    """A claim is exclusive, says who holds it, and whoever held it before cannot take it away."""
    host.guests.claim(GUEST, "arrival h1")
    with pytest.raises(GuestBusy, match="busy with arrival h1"):
        host.guests.claim(GUEST, "guest stop")
    host.guests.unclaim(GUEST, "arrival h1")
    host.guests.claim(GUEST, "hand-over h2")
    host.guests.unclaim(GUEST, "arrival h1")
    assert host.guests.busy_with(GUEST) == "hand-over h2"
    host.guests.unclaim(GUEST, "hand-over h2")


async def test_run_twice_is_refused_and_touches_nothing(host: Host, link: WatchedLink) -> None:
    """A name that is taken is refused, and the guest that has it runs on."""
    before = row_of(host)
    with pytest.raises(BadInput, match="exists already"):
        await host.guests.run(SPEC)
    assert row_of(host) == before
    assert len(link.running()) == 1


async def test_two_runs_of_one_name_make_one_guest(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """Of two that run the same new guest at once, one gets it and the other hears so."""
    spec = replace(SPEC, name=GuestName("web-8"), disks=())
    results = await asyncio.gather(*[hosts[0].guests.run(spec) for _ in range(2)], return_exceptions=True)
    assert [isinstance(result, GuestRow) for result in results].count(True) == 1
    assert len([qemu for qemu in link.alive() if qemu.guest.spec.name == "web-8"]) == 1


async def test_failed_run_leaves_nothing(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A guest whose vCPUs cannot be started is gone again: row, process and claim."""
    _, there = hosts
    fake_hypervisor(there).refuse_next("cont", Broken("no"))
    spec = replace(SPEC, name=GuestName("web-8"), disks=())
    with pytest.raises(Broken):
        await there.guests.run(spec)
    assert there.journal.guest(spec.name) is None
    assert [qemu for qemu in link.alive() if qemu.guest.spec.name == "web-8"] == []
    assert there.guests.busy_with(spec.name) is None


async def test_failed_start_can_be_tried_again(host: Host, link: WatchedLink) -> None:
    """A start that fails leaves no process that would look like a running guest."""
    await host.guests.stop(GUEST)
    fake_hypervisor(host).refuse_next("cont", Broken("no"))
    with pytest.raises(Broken):
        await host.guests.start(GUEST)
    assert link.alive() == []
    assert row_of(host).process is None
    await host.guests.start(GUEST)
    assert len(link.running()) == 1


async def test_power_down_waits_for_the_guest(host: Host, link: WatchedLink) -> None:
    """A guest that obeys its power button is stopped; one that does not runs on, and the operator hears so."""
    qemu = living_qemu(host, link)
    qemu.obeys_power_button = False
    with pytest.raises(TimedOut, match="did not power off"):
        await host.guests.stop(GUEST, power_down_s=0.02)
    assert qemu.state is RunState.RUNNING
    assert row_of(host).desired is Desired.RUNNING
    qemu.obeys_power_button = True
    await host.guests.stop(GUEST, power_down_s=5)
    assert not qemu.alive
    assert (row_of(host).note, row_of(host).process) == ("stopped by an operator", None)


async def test_guest_that_ended_can_be_started_again(host: Host, link: WatchedLink) -> None:
    """A guest that powered itself off is noted, is no running guest, and starts in a new process."""
    fake_process(host).guest_powers_off()
    await wait_until(lambda: row_of(host).note == "powered off by the guest", "the power-off is noted")
    await host.guests.start(GUEST)
    assert len(link.alive()) == len(link.running()) == 1
    assert row_of(host).note is None


async def test_death_is_noted(host: Host, link: WatchedLink) -> None:
    """A QEMU that dies on its own leaves a note, and no process in the row."""
    link.die(living_qemu(host, link))
    await wait_until(lambda: row_of(host).process is None, "the death is noted")
    assert row_of(host).note == "its QEMU process ended unexpectedly"


async def test_death_under_a_claim_is_noted_afterwards(host: Host, link: WatchedLink) -> None:
    """A death that comes while an operation holds the guest is noted when the operation has ended."""
    async with host.guests.operation(GUEST, "hand-over h1"):
        link.die(living_qemu(host, link))
        for _ in range(10):
            await asyncio.sleep(0)
        assert row_of(host).process is not None
    assert (row_of(host).process, row_of(host).note) == (None, "its QEMU process ended unexpectedly")


async def test_pause_and_resume_are_journalled(host: Host, link: WatchedLink) -> None:
    """What an operator wants stands in the journal with the token, and QEMU follows."""
    await host.guests.pause(GUEST)
    assert (row_of(host).desired, row_of(host).token.running) == (Desired.PAUSED, False)
    assert link.running() == []
    await host.guests.resume(GUEST)
    assert (row_of(host).desired, row_of(host).token.running) == (Desired.RUNNING, True)
    assert len(link.running()) == 1


async def test_resume_is_refused_under_a_handover(host: Host) -> None:
    """Who may run is the hand-over's decision while there is one."""
    await host.guests.pause(GUEST)
    host.guests.claim(GUEST, "hand-over h1")
    with pytest.raises(GuestBusy):
        await host.guests.resume(GUEST)
    assert row_of(host).token.running is False


async def test_pause_cannot_undo_a_commit(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause whose order to QEMU is under way when the token goes leaves the token where it went."""
    process = fake_process(host)
    gone = Token(Epoch(2), HostName("host-b"), running=False)

    async def stop() -> None:
        host.journal.put_guest(replace(row_of(host), token=gone))

    monkeypatch.setattr(process, "stop", stop)
    await host.guests.pause(GUEST)
    assert row_of(host).token == gone
    with pytest.raises(NotFound):
        await host.guests.pause(GUEST)


async def test_restarted_agent_adopts_the_living(host: Host, link: WatchedLink) -> None:
    """A living process is taken over, and the guest never noticed."""
    before = row_of(host)
    await host.restart()
    assert fake_process(host).qemu is living_qemu(host, link)
    assert row_of(host) == before


async def test_restarted_agent_notes_the_dead(host: Host, link: WatchedLink) -> None:
    """A process that died while the agent was away is noted, and the guest can be started again."""
    await host.stop()
    link.die(living_qemu(host, link))
    host.build()
    await host.start()
    assert (row_of(host).process, row_of(host).note) == (None, "its QEMU process ended unexpectedly")
    await host.guests.start(GUEST)
    assert len(link.running()) == 1


async def test_restarted_agent_ends_what_was_never_recorded(host: Host, link: WatchedLink) -> None:
    """An agent killed between a start and its record leaves a process; the next one ends it and can start the guest."""
    await host.guests.stop(GUEST)
    row = row_of(host)
    await host.stop()
    resources = HostResources(str(host.run_dir / "guests" / GUEST), None, None)
    orphan = await host.hypervisor.start(row.guest, resources, incoming=False)
    host.build()
    await host.start()
    assert not orphan.is_alive()
    await host.guests.start(GUEST)
    assert len(link.alive()) == 1


async def test_silent_is_not_dead(host: Host, link: WatchedLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that lives and does not answer keeps its guest: nobody starts a second one, removes it or moves it."""
    qemu = living_qemu(host, link)
    hypervisor = fake_hypervisor(host)
    adopt = hypervisor.adopt

    async def silent(*_: object) -> FakeGuestProcess:
        raise TimedOut("does not answer")

    await host.stop()
    monkeypatch.setattr(hypervisor, "adopt", silent)
    host.build()
    await host.start()
    guests = host.guests
    orders = (guests.start, guests.remove, guests.stop, guests.pause, guests.resume)
    for order in orders:
        with pytest.raises(GuestBusy, match="does not answer"):
            await order(GUEST)
    with pytest.raises(GuestBusy):
        await host.migrate(host.pair.hosts[HostName("host-b")])
    assert qemu.alive
    assert row_of(host).process == qemu.record
    assert row_of(host).note is None
    monkeypatch.setattr(hypervisor, "adopt", adopt)
    await guests.adopted(GUEST)
    assert fake_process(host).qemu is qemu
    await guests.pause(GUEST)
    assert link.running() == []


async def test_arrival_of_a_taken_name_is_refused(host: Host) -> None:
    """A name that is taken here is free for nobody."""
    with pytest.raises(Refused, match="is taken on host"):
        host.guests.check_free(GUEST)


async def test_a_name_never_leads_out_of_the_run_directory(host: Host, tmp_path: Path) -> None:
    """A guest that is named like a path is neither run, received nor forgotten: what is there stays."""
    victim = tmp_path / "etc"
    victim.mkdir()
    named = replace(SPEC, name=GuestName(str(victim)), disks=())
    guest = replace(row_of(host).guest, spec=named)
    rows = host.journal.guests()
    with pytest.raises(BadInput, match="cannot be the name of a guest"):
        await host.guests.run(named)
    with pytest.raises(BadInput, match="cannot be the name of a guest"):
        host.guests.arrival(guest, Epoch(1), HostName("host-b"), running=True)
    with pytest.raises(BadInput, match="cannot be the name of a guest"):
        host.guests.check_free(named.name)
    with pytest.raises(BadInput, match="cannot be the name of a guest"):
        await host.guests.forget(named.name)
    assert victim.is_dir()
    assert host.journal.guests() == rows


async def test_uids_are_not_shared(hosts: tuple[Host, Host]) -> None:
    """Each guest gets the lowest uid that no row holds; without a range there is none."""
    host = hosts[1]
    host.uids = range(70000, 70100)
    host.build()
    names = [GuestName(f"web-{number}") for number in range(3)]
    rows = [await host.guests.run(replace(SPEC, name=name, disks=())) for name in names]
    assert [row.uid for row in rows] == [70000, 70001, 70002]
    await host.guests.stop(names[1])
    await host.guests.remove(names[1])
    again = await host.guests.run(replace(SPEC, name=GuestName("web-9"), disks=()))
    assert again.uid == 70001
    assert row_of(hosts[0]).uid is None


async def test_uids_end_where_the_range_ends(host: Host, hosts: tuple[Host, Host]) -> None:
    """The uid behind the range is somebody else's: neither a new guest nor an arrival gets it, and nothing is left."""
    full = hosts[1]
    full.uids = range(70000, 70001)
    full.build()
    await full.guests.run(replace(SPEC, name=GuestName("web-1"), disks=()))
    with pytest.raises(Refused, match=r"All 1 user ids .* \(70000-70000\) are taken"):
        await full.guests.run(replace(SPEC, name=GuestName("web-2"), disks=()))
    source = await host.migrate(full)
    await wait_finished(host)
    assert source.runner.machine.state is SourceState.ABORTED
    assert [row.guest.spec.name for row in full.journal.guests()] == ["web-1"]
    assert full.journal.reservations() == []
