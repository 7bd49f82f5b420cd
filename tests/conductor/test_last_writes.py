"""The last writes of a hand-over, and a restarted agent's first looks, are done again until they work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.conductor.fakes import WatchedLink
from tests.conductor.pair import GUEST, Host, wait_finished, wait_until

from vmferry.core.errors import Broken, GuestBusy, Refused
from vmferry.core.handover.states import SourceState
from vmferry.core.ids import HandoverId
from vmferry.core.units import Milliseconds
from vmferry.ports.hypervisor import MigrationSetup
from vmferry.ports.peer import ReserveRequest
from vmferry.testing.fake_hypervisor import FakeHypervisor


def refuse(host: Host, monkeypatch: pytest.MonkeyPatch, write: str, *numbers: int) -> list[str]:
    """Have a host's journal refuse some of the calls of a write, counted from 1; return how each call went."""
    real: Callable[..., None] = getattr(host.journal, write)
    calls: list[str] = []

    def refusing(*arguments: object) -> None:
        calls.append("refused" if len(calls) + 1 in numbers else "written")
        if calls[-1] == "refused":
            raise Broken("the disk is full")
        real(*arguments)

    monkeypatch.setattr(host.journal, write, refusing)
    return calls


@pytest.mark.parametrize(
    ("side", "numbers", "expected"),
    [
        ("destination", (1, 2), ["refused", "refused", "written"]),
        ("source", (1,), ["refused", "written", "written"]),  # its name is free, then its report is written
        ("source", (2,), ["written", "refused", "written"]),
    ],
)
async def test_a_journal_that_refuses_the_last_write_holds_nobody(
    hosts: tuple[Host, Host],
    monkeypatch: pytest.MonkeyPatch,
    side: str,
    numbers: tuple[int, ...],
    expected: list[str],
) -> None:
    """The end of a hand-over is written as soon as the disk has room, with its report; the guest moves on."""
    here, there = hosts
    calls = refuse(here if side == "source" else there, monkeypatch, "finish", *numbers)
    source = await here.migrate(there)
    await wait_until(lambda: not here.handovers.lives and not there.handovers.lives, "both sides have ended")
    assert calls == expected
    assert [h.handovers.unfinished() for h in hosts] == [[], []]
    assert here.reports == [(source.request.handover, SourceState.DONE)]
    await there.migrate(here)
    await wait_finished(here, there)
    assert here.guests.row(GUEST).token.owner == here.name


async def test_an_arrival_gives_its_reservation_back_when_the_disk_has_room(
    hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused write at the announcement costs the destination no memory and the guest no note."""
    here, there = hosts
    calls = refuse(there, monkeypatch, "release", 1)
    await here.migrate(there)
    await wait_finished(here, there)
    assert calls[:2] == ["refused", "written"]
    assert list(there.journal.reservations()) == []
    assert there.guests.row(GUEST).note is None


@pytest.mark.parametrize("write", ["release", "remove_guest"])
async def test_a_discarded_arrival_leaves_nothing_behind_a_full_disk(
    hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """What is left of an arrival that was undone goes when the disk has room, and the guest may come again."""
    here, there = hosts
    assert isinstance(there.hypervisor, FakeHypervisor)
    there.hypervisor.refuse_next("listen", Broken("port is taken"))
    # the first release is that of the clean-up, which begins again by itself
    calls = refuse(there, monkeypatch, write, 2 if write == "release" else 1)
    row = here.guests.row(GUEST)
    setup = MigrationSetup({}, None, Milliseconds(100.0))
    request = ReserveRequest(HandoverId("h1"), row.guest, row.token.epoch, True, here.name, setup)
    with pytest.raises(Refused, match="port is taken"):
        await there.handovers.arrivals.reserve(request)
    await wait_finished(here, there)
    assert "refused" in calls
    assert calls[-1] == "written"
    assert (there.journal.guest(GUEST), there.handovers.unfinished()) == (None, [])


async def test_a_process_that_cannot_be_looked_at_is_not_taken_for_certain(
    hosts: tuple[Host, Host], link: WatchedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the system's while an agent finds its guests again is no proof: it looks again, and goes on then."""
    here, there = hosts
    here.hold.ask(SourceState.LOADED)
    source = await here.migrate(there)
    await here.hold.wait_reached(SourceState.LOADED)
    hypervisor = here.hypervisor
    assert isinstance(hypervisor, FakeHypervisor)
    adopt, looks = hypervisor.adopt, []

    async def fails(*_: object) -> None:
        looks.append("failed")
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(hypervisor, "adopt", fails)
    await here.restart()
    here.hold.let_go(SourceState.LOADED)
    await wait_until(lambda: len(looks) > 2, "it is looked for again")
    assert here.guests.busy_with(GUEST) == f"hand-over {source.request.handover}"
    with pytest.raises(GuestBusy, match="does not answer"):
        here.guests._check_certain(GUEST)
    monkeypatch.setattr(hypervisor, "adopt", adopt)
    await wait_finished(here, there)
    assert len(link.running()) == 1


async def test_a_death_that_cannot_be_noted_is_noted_later(
    hosts: tuple[Host, Host], link: WatchedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at an agent's start leaves no guest with a process that is gone."""
    here, _ = hosts
    await here.stop()
    link.die(link.running()[0])
    calls = refuse(here, monkeypatch, "put_guest", 1)
    here.build()
    await here.start()
    await here.guests.adopted(GUEST)
    assert calls == ["refused", "written"]
    assert here.guests.row(GUEST).process is None
