"""Images that two hosts do not share: mirrored before the memory, whole before the guest runs, gone after a failure."""

from __future__ import annotations

import asyncio

import pytest
from tests.conductor.fakes import SPEC, WatchedLink, qemu_of
from tests.conductor.pair import GUEST, Host, wait_finished, wait_until
from tests.conductor.test_handovers import state_of

from vmferry.conductor import disk_copying
from vmferry.core.errors import Broken
from vmferry.core.handover.states import AnyState, DestinationState, SourceState
from vmferry.core.migration import RunState
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.testing.fake_hypervisor import FakeHypervisor
from vmferry.testing.fake_mirrors import FakeMirrors

DISK = SPEC.disks[0].path


def called(host: Host) -> list[str]:
    """Return what a host's hypervisor was asked, in order."""
    assert isinstance(host.hypervisor, FakeHypervisor)
    return [call.name for call in host.hypervisor.calls]


def forget_calls(hosts: tuple[Host, Host]) -> None:
    """Begin the record of calls anew."""
    for host in hosts:
        assert isinstance(host.hypervisor, FakeHypervisor)
        host.hypervisor.calls.clear()


def in_order(calls: list[str], *names: str) -> bool:
    """Tell whether the first calls of these names came in this order."""
    places = [calls.index(name) for name in names]
    return places == sorted(places)


def assert_untouched(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """The guest runs where it was, without mirrors; nothing is left at the destination."""
    here, there = hosts
    qemu = qemu_of(here, link)
    assert qemu is not None
    assert (qemu.state, qemu.mirrors) == (RunState.RUNNING, [])
    assert len(link.alive()) == 1
    assert (there.files.arriving, there.files.own) == ({}, set())
    assert (here.files.aside, here.files.dropped) == ([], [])


@pytest.mark.parametrize(("postcopy", "encrypted"), [(False, False), (False, True), (True, False)])
async def test_there_and_back(hosts: tuple[Host, Host], link: WatchedLink, postcopy: bool, encrypted: bool) -> None:
    """Mirrored before the memory is sent, ended while the guest stands still, served no longer when it runs."""
    for here, there in (hosts, (hosts[1], hosts[0])):
        forget_calls(hosts)
        after = 1 if postcopy else None
        source = await here.migrate(there, copy_disks=True, postcopy_after=after, encrypted=encrypted)
        await wait_finished(here, there)
        assert state_of(here, source.request.handover, "source") == "done"
        assert in_order(called(here), "begin_mirrors", "write_through", "migrate", "end_mirrors", "migrate_continue")
        assert in_order(called(there), "serve", "listen", "stop_serving", "cont")
        assert there.files.own == {DISK}
        assert here.files.aside == [f"{DISK}.left-{source.request.handover}"]
        assert source.disks.paths == (DISK,)
        assert source.disks.copied_bytes == 8 * MIB
    assert len(link.running()) == 1


async def test_no_image_is_copied_that_is_shared(hosts: tuple[Host, Host]) -> None:
    """A move without copies has none of their calls, states or files."""
    here, there = hosts
    await here.migrate(there)
    await wait_finished(here, there)
    assert {"begin_mirrors", "end_mirrors", "serve", "stop_serving"} & {*called(here), *called(there)} == set()


async def test_the_link_is_shared_with_what_was_asked_for(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """`--bandwidth` holds for disks too."""
    here, there = hosts
    await here.migrate(there, copy_disks=True, bandwidth=BytesPerSecond(10 * MIB))
    qemu = qemu_of(here, link)
    assert qemu is not None
    await wait_finished(here, there)
    assert qemu.mirror_bandwidth == 10 * MIB


async def test_a_guest_that_writes_as_fast_as_is_copied_is_held_to_the_copy(
    hosts: tuple[Host, Host], link: WatchedLink
) -> None:
    """After one pass each of its writes goes to both, and the copy comes into step."""
    here, there = hosts
    qemu = qemu_of(here, link)
    assert qemu is not None
    qemu.writes_much = True
    await here.migrate(there, copy_disks=True)
    await wait_finished(here, there)
    assert called(here).count("write_through") == 2
    assert there.files.own == {DISK}


@pytest.mark.parametrize(
    "state", [SourceState.COPYING_DISKS, SourceState.RESERVED, SourceState.PRECOPY, SourceState.PRE_SWITCHOVER]
)
async def test_a_mirror_that_fails_ends_the_move(hosts: tuple[Host, Host], link: WatchedLink, state: AnyState) -> None:
    """At whatever moment: the guest goes on at the source, and the half copy is removed."""
    here, there = hosts
    here.hold.ask(state)
    source = await here.migrate(there, copy_disks=True)
    await here.hold.wait_reached(state)
    qemu = qemu_of(here, link)
    assert qemu is not None
    process = here.guests.process(GUEST)
    assert process is not None
    if state is SourceState.COPYING_DISKS:
        link.cut()
    else:
        mirrors = process.mirrors
        assert isinstance(mirrors, FakeMirrors)
        mirrors.fail(qemu.mirrors[0], "No space left on device")
    here.hold.let_go(state)
    await wait_until(lambda: source.runner.machine.state is SourceState.ABORTED, "it is given up")
    link.heal()
    await wait_finished(here, there)
    if state is not SourceState.COPYING_DISKS:
        assert "copy of image image0 failed: No space left on device" in str(source.reason)
    assert there.files.dropped == [DISK]
    assert_untouched(hosts, link)


@pytest.mark.parametrize("state", [SourceState.COPYING_DISKS, SourceState.RESERVED, SourceState.PRE_SWITCHOVER])
async def test_an_agent_that_comes_back_gives_the_copies_up(
    hosts: tuple[Host, Host], link: WatchedLink, state: AnyState
) -> None:
    """Nobody watched the mirrors: they are dropped in the guest's QEMU, which outlived the agent."""
    here, there = hosts
    here.hold.ask(state)
    await here.migrate(there, copy_disks=True)
    await here.hold.wait_reached(state)
    await here.restart()
    here.hold.let_go(state)
    await wait_finished(here, there)
    assert there.files.dropped == [DISK]
    assert_untouched(hosts, link)


async def test_an_agent_that_comes_back_in_precopy_goes_on(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """Which images are copied stands in the journal, and the mirrors in QEMU."""
    here, there = hosts
    here.hold.ask(SourceState.PRECOPY)
    await here.migrate(there, copy_disks=True)
    await here.hold.wait_reached(SourceState.PRECOPY)
    link.rounds = 10**6
    await here.restart()
    here.hold.let_go(SourceState.PRECOPY)
    link.rounds = 2
    link.nudge()
    await wait_finished(here, there)
    assert there.files.own == {DISK}
    assert len(here.files.aside) == 1
    assert len(link.running()) == 1


async def test_a_destination_that_comes_back_before_the_memory_goes_on(
    hosts: tuple[Host, Host], link: WatchedLink
) -> None:
    """Its QEMU serves the images all the time."""
    here, there = hosts
    here.hold.ask(SourceState.RESERVED)
    await here.migrate(there, copy_disks=True)
    await here.hold.wait_reached(SourceState.RESERVED)
    await there.restart()
    here.hold.let_go(SourceState.RESERVED)
    await wait_finished(here, there)
    assert there.files.own == {DISK}
    assert len(link.running()) == 1


@pytest.mark.parametrize("state", [DestinationState.LOADED, DestinationState.STARTING])
async def test_a_destination_that_comes_back_knows_its_images(
    hosts: tuple[Host, Host], link: WatchedLink, state: AnyState
) -> None:
    """Their paths stand in its journal, so that they are kept, or removed."""
    here, there = hosts
    there.hold.ask(state)
    await here.migrate(there, copy_disks=True)
    await there.hold.wait_reached(state)
    await there.restart()
    there.hold.let_go(state)
    await wait_finished(here, there)
    assert there.files.own == {DISK}
    assert len(link.running()) == 1


async def test_a_destination_whose_qemu_dies_removes_its_images(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """Before the guest ran there they are worth nothing."""
    here, there = hosts
    here.hold.ask(SourceState.RESERVED)
    await here.migrate(there, copy_disks=True)
    await here.hold.wait_reached(SourceState.RESERVED)
    arrival = qemu_of(there, link)
    assert arrival is not None
    link.die(arrival, "killed")
    here.hold.let_go(SourceState.RESERVED)
    await wait_finished(here, there)
    assert there.files.dropped == [DISK]
    assert_untouched(hosts, link)


@pytest.mark.parametrize("hangs", [False, True], ids=["it answers", "it hangs"])
@pytest.mark.parametrize("restarted", [False, True], ids=["watched", "restarted"])
async def test_a_guest_that_waits_for_its_copy_is_not_left_waiting(
    hosts: tuple[Host, Host], link: WatchedLink, monkeypatch: pytest.MonkeyPatch, restarted: bool, hangs: bool
) -> None:
    """The destination answers no write: given up, also by an agent that came back, also when QEMU waits for it too."""
    monkeypatch.setattr(disk_copying, "_MOST_SILENCE_MS", 50.0)
    here, there = hosts
    link.rounds = 10**9
    source = await here.migrate(there, copy_disks=True)
    await wait_until(lambda: source.runner.machine.state is SourceState.PRECOPY, "memory is sent")
    if restarted:
        await here.restart()
    qemu = qemu_of(here, link)
    assert qemu is not None
    qemu.disk_answers = False
    if hangs:
        await wait_until(lambda: here.handovers.unfinished() != [], "it is taken up")
        qemu.deaf = qemu.hangs_for_a_mirror = True
    await wait_finished(here, there)
    assert state_of(here, source.request.handover, "source") == "aborted"
    assert there.files.dropped == [DISK]
    assert_untouched(hosts, link)


async def test_a_guest_whose_writes_are_answered_is_left_alone(
    hosts: tuple[Host, Host], link: WatchedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is always a request on its way, and always another one."""
    monkeypatch.setattr(disk_copying, "_MOST_SILENCE_MS", 50.0)
    here, there = hosts
    link.rounds = 10**9
    await here.migrate(there, copy_disks=True)
    await asyncio.sleep(0.3)
    link.rounds = 2
    link.nudge()
    await wait_finished(here, there)
    assert there.files.own == {DISK}


async def test_an_image_that_somebody_has_locked_is_not_handed_over(
    hosts: tuple[Host, Host], link: WatchedLink
) -> None:
    """Seen before the commit, when none of ours holds it: the guest goes back to where it was."""
    here, there = hosts
    here.files.locked.add(DISK)
    source = await here.migrate(there)
    await wait_finished(here, there)
    assert state_of(here, source.request.handover, "source") == "aborted"
    assert source.reason == f"image {DISK} is locked by another"
    assert "cont" not in called(there)
    assert_untouched(hosts, link)


async def test_the_lock_of_an_image_that_is_copied_is_nobodys_business(hosts: tuple[Host, Host]) -> None:
    """The destination takes its own copy, not that one."""
    here, there = hosts
    here.files.locked.add(DISK)
    await here.migrate(there, copy_disks=True)
    await wait_finished(here, there)
    assert there.files.own == {DISK}


async def test_a_cancel_ends_the_copies(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """Also while disks are copied, which may take hours."""
    here, there = hosts
    here.hold.ask(SourceState.COPYING_DISKS)
    source = await here.migrate(there, copy_disks=True)
    await here.hold.wait_reached(SourceState.COPYING_DISKS)
    source.cancel()
    here.hold.let_go(SourceState.COPYING_DISKS)
    await wait_finished(here, there)
    assert_untouched(hosts, link)


async def test_an_image_with_a_foreign_file_in_its_place_is_refused(
    hosts: tuple[Host, Host], link: WatchedLink
) -> None:
    """It came there after the check: it is neither written over nor removed."""
    here, there = hosts
    there.files.own.add(DISK)
    source = await here.migrate(there, copy_disks=True)
    await wait_finished(here, there)
    assert "a file is there already" in str(source.reason)
    assert there.files.own == {DISK}
    there.files.own.clear()
    assert_untouched(hosts, link)


async def test_a_copy_whose_source_is_off_for_good_is_left(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """A person says so: the arrival is undone, but what came of the disk may be all that is left of it."""
    here, there = hosts
    here.hold.ask(SourceState.LOADED)
    await here.migrate(there, copy_disks=True)
    await here.hold.wait_reached(SourceState.LOADED)
    await here.stop()
    there.handovers.fenced(here.name)
    await wait_finished(there)
    assert (there.files.left, there.files.dropped) == ([DISK], [])


async def test_a_guest_that_was_given_back_has_its_own_image(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """Committed, never run there, returned: the copy goes, the source's image was never put aside."""
    here, there = hosts
    assert isinstance(there.hypervisor, FakeHypervisor)
    there.hypervisor.refuse_next("cont", Broken("an image is locked"))
    await here.migrate(there, copy_disks=True)
    await wait_finished(here, there)
    assert there.files.dropped == [DISK]
    assert_untouched(hosts, link)


async def test_a_guest_that_dies_when_it_starts_keeps_the_copy(hosts: tuple[Host, Host], link: WatchedLink) -> None:
    """It may have written there: the copy is the guest's disk now, and the source's is put aside."""
    here, there = hosts
    there.hold.ask(DestinationState.STARTING)
    await here.migrate(there, copy_disks=True)
    await there.hold.wait_reached(DestinationState.STARTING)
    arrival = qemu_of(there, link)
    assert arrival is not None
    link.die(arrival, "killed")
    there.hold.let_go(DestinationState.STARTING)
    await wait_finished(here, there)
    assert there.files.own == {DISK}
    assert len(here.files.aside) == 1
