"""The list of a host's guests does not hang on one QEMU that does not answer."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.conductor.fakes import SPEC
from tests.conductor.pair import GUEST, Host

from vmferry.agent import views
from vmferry.agent.service import Service
from vmferry.core.errors import Broken
from vmferry.core.ids import GuestName
from vmferry.core.migration import RunState
from vmferry.qemu import QemuGuestProcess

OTHER = GuestName("db-1")


class HostView:
    """As much of a host's view as a list of guests needs."""

    offer = SimpleNamespace(acceleration_tag="tcg")


@pytest.fixture
async def service(hosts: tuple[Host, Host]) -> Service:
    """A service with two running guests, and nothing else in it."""
    here, _ = hosts
    await here.guests.run(replace(SPEC, name=OTHER, disks=()))
    parts: dict[str, Any] = dict.fromkeys((field.name for field in fields(Service)), None)
    return Service(**{**parts, "guests": here.guests, "host_view": HostView(), "guest_devices": here.given})


async def test_guests_are_asked_at_the_same_time(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each QEMU answers only when the other was asked too, and both are listed as running."""
    both = asyncio.Barrier(2)

    async def together() -> RunState:
        await both.wait()
        return RunState.RUNNING

    for name in (GUEST, OTHER):
        monkeypatch.setattr(service.guests.process(name), "query_run_state", together)
    listed = (await asyncio.wait_for(service.list_guests(), 20)).guests
    assert {view.name: view.run_state for view in listed} == {GUEST: RunState.RUNNING, OTHER: RunState.RUNNING}


async def test_a_silent_qemu_hides_no_other_guest(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest whose QEMU does not answer is listed with its process and without a run state."""

    async def silent() -> RunState:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(views, "_QEMU_LIMIT_S", 0.05)
    monkeypatch.setattr(service.guests.process(OTHER), "query_run_state", silent)
    listed = (await asyncio.wait_for(service.list_guests(), 20)).guests
    states = {view.name: (view.run_state, view.pid is not None) for view in listed}
    assert states == {GUEST: (RunState.RUNNING, True), OTHER: (None, True)}


@pytest.mark.parametrize("answer", [{}, [], None, "running"])
async def test_an_answer_without_a_status_is_broken(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    """What a QEMU says of its run state is never taken on trust."""

    async def execute(_command: str) -> object:
        return answer

    process = QemuGuestProcess(SPEC, cast("Any", None), cast("Any", SimpleNamespace(log=None)), None)
    monkeypatch.setattr(process._session, "execute", execute)
    with pytest.raises(Broken, match="QEMU of guest web-7 answered query-status with"):
        await process.query_run_state()
