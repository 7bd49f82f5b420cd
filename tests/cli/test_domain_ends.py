"""What the end of a libvirt domain's move is called, and which figures stand in its report."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from vmferry.cli.domain_moves import Plan, _carry_out, _finished, _tidy_interrupted, migrate
from vmferry.cli.libvirt_hosts import LibvirtHost
from vmferry.cli.libvirt_records import MoveRecord, find_record, steering
from vmferry.cli.output import INTERRUPTED
from vmferry.conductor.domain_move import DomainMove, Ended
from vmferry.conductor.plan import Asked, Choice
from vmferry.core.errors import NotFound, Refused, Unreachable, VmferryError
from vmferry.core.ids import GuestUuid
from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.progress import Finished, Outcome
from vmferry.core.units import MIB, Bytes, Milliseconds
from vmferry.libvirt.adapter import LibvirtConnection
from vmferry.libvirt.copies.images import Copies
from vmferry.libvirt.facts import Domain, DomainState
from vmferry.libvirt.locks import Fence
from vmferry.libvirt.moves.request import Request
from vmferry.libvirt.moves.standing import ABSENT, Standing, run_of

HERE, THERE = (LibvirtHost(name, *(f"qemu+ssh://{name}/system",) * 2) for name in ("lv-a", "lv-b"))
ASKED = Asked(Choice(), Bytes(256 * MIB), None, None)
PLAN = Plan(HERE, THERE, ASKED, Request(), Request(), None, Copies(), Fence(""), False, False, (), (), "KVM")
#: What the source said last.
LAST = MigrationSample(
    MigrationStatus.POSTCOPY_ACTIVE, rounds=3, transferred_bytes=Bytes(200 * MIB), total_bytes=Bytes(257 * MIB)
)
NOTHING = MigrationSample(MigrationStatus.NONE)
MOVED = Ended(None, None, LAST, Milliseconds(30.0), None)


RECORD = MoveRecord("web-7", "lv-a", "lv-b", {}, ("LIVE", "PERSIST_DEST"), was_defined_there=False)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator of whom nothing is known."""
    monkeypatch.setenv("VMFERRY_CONFIG", str(tmp_path / "vmferry"))


@dataclass
class Daemon:
    """One that says where the domain is, and how its last job ended."""

    state: DomainState | None
    last: MigrationSample = NOTHING
    reason: str = "booted"
    is_defined: bool = False
    done: list[str] = field(default_factory=list)

    async def standing(self, name: str) -> Standing:
        """Return how the domain stands."""
        if self.state is None:
            return ABSENT
        run = run_of(self.state, self.reason)
        return Standing(run, is_persistent=self.is_defined, says=f"{self.state} ({self.reason})")

    async def resume(self, name: str) -> None:
        """Let it run."""
        self.done.append("resume")
        self.state, self.reason = DomainState.RUNNING, "unpaused"

    async def destroy(self, name: str) -> None:
        """End its process."""
        self.done.append("destroy")
        self.state = DomainState.SHUTOFF if self.is_defined else None

    async def undefine(self, name: str) -> None:
        """Forget its definition."""
        self.done.append("undefine")
        self.state, self.is_defined = None, False

    async def domain(self, name: str) -> Domain:
        """Return the domain."""
        if self.state is None:
            raise NotFound(f"no {name}")
        return Domain(name, GuestUuid("6f1c1a1e-0000-4000-8000-000000000007"), self.state, is_persistent=False)

    async def last_job(self, name: str) -> MigrationSample:
        """Return its last job."""
        return self.last


async def finished(ended: Ended, here: Daemon, there: Daemon) -> Finished:
    """Return what the command says."""
    pair: Any = (here, there)
    return await _finished(PLAN, RECORD, ended, pair, Milliseconds(2000.0))


async def test_figures_are_the_destinations_where_it_has_them() -> None:
    """It saw the move to its end."""
    told = replace(LAST, status=MigrationStatus.COMPLETED, rounds=5)
    end = await finished(MOVED, Daemon(None), Daemon(DomainState.RUNNING, told))
    assert (end.outcome, end.owner) == (Outcome.MOVED, "lv-b")
    assert end.report is not None
    assert (end.report.rounds, end.report.transferred_bytes) == (5, 200 * MIB)


async def test_after_postcopy_they_are_the_sources_last_ones() -> None:
    """The destination's libvirt knows no last job then (9.0 and 11.3), and its nothing is no figure."""
    end = await finished(MOVED, Daemon(None), Daemon(DomainState.RUNNING))
    assert end.report is not None
    assert (end.report.rounds, end.report.transferred_bytes, end.report.ram_bytes) == (3, 200 * MIB, 257 * MIB)


@pytest.mark.parametrize(("gave_up", "fix"), [(None, "do this"), ("interrupted", None)])
async def test_why_it_did_not_move_comes_with_what_to_do(gave_up: str | None, fix: str | None) -> None:
    """Libvirt's failure has a fix; one that was given up needs none."""
    failed = replace(MOVED, failure=Refused("no room there", fix="do this"), gave_up=gave_up)
    end = await finished(failed, Daemon(DomainState.RUNNING), Daemon(None))
    assert end.outcome is (Outcome.CANCELLED if gave_up else Outcome.ABORTED)
    assert (end.owner, end.reason, end.fix) == ("lv-a", gave_up or "no room there", fix)


FAILED = replace(MOVED, failure=Refused("the stream broke", fix="do this"))
RUNNING, PAUSED, SHUTOFF = DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTOFF
#: what the hosts have after a failure -> (outcome, owner, words of the reason, words of the fix)
DOUBTS: dict[str, tuple[Daemon, Daemon, Outcome, str | None, str, str]] = {
    "its QEMU died at the destination in post-copy": (
        *(Daemon(PAUSED, reason="post-copy-failed"), Daemon(None)),
        *(Outcome.LOST, None, "died at the destination in post-copy", "never resume it there"),
    ),
    "it may have run at the destination": (
        *(Daemon(PAUSED, reason="migration"), Daemon(SHUTOFF, is_defined=True)),
        *(Outcome.HELD, None, "where it may have run", "virsh resume"),
    ),
    "it runs on both": (
        *(Daemon(RUNNING), Daemon(RUNNING)),
        *(Outcome.HELD, None, "it runs on both hosts", "suspend one of them"),
    ),
    "it runs nowhere": (
        *(Daemon(None), Daemon(None)),
        *(Outcome.HELD, None, "it may have arrived and shut itself down", "virsh start"),
    ),
    "libvirt failed when it ran at the destination": (
        *(Daemon(None), Daemon(RUNNING)),
        *(Outcome.HELD, "lv-b", "it runs at the destination alone", "vmferry recover web-7"),
    ),
}


@pytest.mark.parametrize("case", DOUBTS)
async def test_a_guest_in_doubt_is_not_called_the_sources(case: str) -> None:
    """Only a proof that it stayed makes it an abort: what both daemons say is told, and what to do."""
    here, there, outcome, owner, words, fix = DOUBTS[case]
    end = await finished(FAILED, replace(here, done=[]), replace(there, done=[]))
    assert (end.outcome, end.owner) == (outcome, owner)
    assert str(end.reason).startswith("the stream broke; ")
    assert words in str(end.reason)
    assert "lv-a is the source" in str(end.reason)
    assert fix in str(end.fix)


async def test_what_a_failed_move_left_at_the_destination_is_removed() -> None:
    """Before it is said that the domain stayed."""
    there = Daemon(SHUTOFF, is_defined=True)
    end = await finished(FAILED, Daemon(RUNNING, is_defined=True), there)
    assert (end.outcome, end.owner, end.fix) == (Outcome.ABORTED, "lv-a", "do this")
    assert there.done == ["undefine"]


async def test_an_old_copy_at_the_source_is_ended_when_libvirt_has_finished() -> None:
    """It moved: the destination runs it."""
    here = Daemon(PAUSED, reason="migration")
    end = await finished(MOVED, here, Daemon(RUNNING))
    assert (end.outcome, end.owner) == (Outcome.MOVED, "lv-b")
    assert here.done == ["destroy"]


def _having(monkeypatch: pytest.MonkeyPatch, end: BaseException | None, connects: VmferryError | None = None) -> None:
    """Have a move end with an exception, and its connections not be made."""

    @asynccontextmanager
    async def carrier() -> AsyncIterator[None]:
        yield

    class Connection:
        async def close(self) -> None:
            """Close nothing."""

    async def connect(_: str) -> Connection:
        if connects is not None:
            raise connects
        return Connection()

    async def run(_: DomainMove) -> Ended:
        if end is not None:
            raise end
        return FAILED

    monkeypatch.setattr(LibvirtConnection, "connect", connect)
    monkeypatch.setattr(DomainMove, "run", run)
    monkeypatch.setattr(Daemon, "listening", lambda *_: carrier(), raising=False)


async def _carried_out(here: Daemon, there: Daemon) -> Finished:
    pair: Any = (here, there)
    async with AsyncExitStack() as stack:
        return await _carry_out(stack, replace(PLAN, request=Request(RECORD.flags)), "web-7", {}, pair, 0.0, print)


async def test_ctrl_c_ends_with_what_is_half_done_at_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition goes, and the record of it with it: nothing is left for the next attempt to mistake."""
    there = Daemon(None)

    async def interrupted(_: DomainMove) -> Ended:
        there.state, there.is_defined = SHUTOFF, True  # libvirt's Finish has got so far
        raise asyncio.CancelledError

    _having(monkeypatch, None)
    monkeypatch.setattr(DomainMove, "run", interrupted)
    with pytest.raises(asyncio.CancelledError):
        await _carried_out(Daemon(RUNNING, is_defined=True), there)
    assert there.done == ["undefine"]
    assert find_record("web-7") is None


async def test_ctrl_c_in_doubt_leaves_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the destination had before, for `recover`."""
    _having(monkeypatch, asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await _carried_out(Daemon(PAUSED, reason="post-copy-failed"), Daemon(None))
    record = find_record("web-7")
    assert record is not None
    assert not record.was_defined_there


async def test_a_move_that_never_began_leaves_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stand in the way of the next one."""
    _having(monkeypatch, None, Unreachable("lv-a is away"))
    with pytest.raises(Unreachable):
        await _carried_out(Daemon(RUNNING), Daemon(None))
    assert find_record("web-7") is None


async def test_a_record_that_came_meanwhile_is_not_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another vmferry steered a move while this one was being planned, and left it open."""
    _having(monkeypatch, None)
    other = replace(RECORD, destination="lv-c")
    with steering(other):
        pass
    with pytest.raises(Refused, match="from lv-a to lv-c was not brought to its end"):
        await _carried_out(Daemon(RUNNING), Daemon(None))
    assert find_record("web-7") == other


def test_an_interrupted_move_is_not_called_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In post-copy, or too late, it is not: the guest may run there."""

    async def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("vmferry.cli.domain_moves._migrate", interrupted)
    assert migrate({}, "web-7", "lv-b", {}, as_json=False) == INTERRUPTED
    said = capsys.readouterr().err
    assert "was given up" not in said
    assert "web-7 may run on lv-b" in said
    assert "vmferry recover web-7" in said


async def test_after_ctrl_c_the_definition_there_is_removed_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Else the next attempt would take it for one that was there before; where the domain is is told."""
    there = Daemon(SHUTOFF, is_defined=True)
    pair: Any = (Daemon(RUNNING, is_defined=True), there)
    await _tidy_interrupted(RECORD, PLAN, pair)
    assert there.done == ["undefine"]
    assert "web-7: it runs at the source" in capsys.readouterr().err
