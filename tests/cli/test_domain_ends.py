"""What the end of a libvirt domain's move is called, and which figures stand in its report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from vmferry.cli.domain_moves import Plan, _finished
from vmferry.cli.libvirt_hosts import LibvirtHost
from vmferry.conductor.domain_move import Ended
from vmferry.conductor.plan import Asked, Choice
from vmferry.core.errors import NotFound, Refused
from vmferry.core.ids import GuestUuid
from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.progress import Finished, Outcome
from vmferry.core.units import MIB, Bytes, Milliseconds
from vmferry.libvirt.copies.images import Copies
from vmferry.libvirt.facts import Domain, DomainState
from vmferry.libvirt.moves.request import Request

HERE, THERE = (LibvirtHost(name, *(f"qemu+ssh://{name}/system",) * 2) for name in ("lv-a", "lv-b"))
ASKED = Asked(Choice(), Bytes(256 * MIB), None, None)
PLAN = Plan(HERE, THERE, ASKED, Request(), Request(), None, Copies(), "", (), (), "KVM")
#: What the source said last.
LAST = MigrationSample(
    MigrationStatus.POSTCOPY_ACTIVE, rounds=3, transferred_bytes=Bytes(200 * MIB), total_bytes=Bytes(257 * MIB)
)
NOTHING = MigrationSample(MigrationStatus.NONE)
MOVED = Ended(None, None, LAST, Milliseconds(30.0), None)


@dataclass
class Daemon:
    """One that says where the domain is, and how its last job ended."""

    state: DomainState | None
    last: MigrationSample = NOTHING

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
    return await _finished(PLAN, "web-7", ended, pair, Milliseconds(2000.0))


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


async def test_on_both_hosts_or_on_none_it_is_held() -> None:
    """Where it has a process is told, and nothing is to be started before somebody has looked."""
    for state, where in ((DomainState.PAUSED, "lv-a and on lv-b"), (None, "no host")):
        end = await finished(MOVED, Daemon(state), Daemon(state))
        assert (end.outcome, end.owner) == (Outcome.HELD, None)
        assert f"it has a process on {where}" in str(end.reason)
