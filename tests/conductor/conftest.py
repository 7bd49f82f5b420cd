"""Fixtures of the conductor's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from tests.conductor.fakes import HOST_A, HOST_B, SPEC, WatchedLink, make_pair
from tests.conductor.pair import Host, running

from vmferry.conductor import (
    destination,
    disk_copying,
    guest_devices,
    guests,
    postcopy_destination,
    postcopy_source,
    runner,
    source,
    steering,
)
from vmferry.core.handover.states import FACTS


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Log nothing; what matters is asserted."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=False)
    yield
    structlog.configure(**before)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every pause and every deadline be short; what waits for nobody is not changed by that."""
    monkeypatch.setattr(runner, "_BEGIN_AGAIN_S", 0.01)
    monkeypatch.setattr(runner, "_WRITE_AGAIN_S", 0.01)
    monkeypatch.setattr(source, "_ASK_AGAIN_S", 0.01)
    monkeypatch.setattr(source, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(steering, "_READ_EVERY_S", 0.01)
    monkeypatch.setattr(disk_copying, "_LISTEN_EVERY_S", 0.01)
    monkeypatch.setattr(postcopy_source, "_READ_EVERY_S", 0.01)
    monkeypatch.setattr(postcopy_source, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(postcopy_source, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(postcopy_source, "_LAST_WORD_S", 0.2)
    monkeypatch.setattr(postcopy_source, "_ASK_EVERY_S", 0.02)
    monkeypatch.setattr(postcopy_source, "_SILENT_S", 0.1)
    monkeypatch.setattr(postcopy_source, "_RECONNECT_S", 1.0)
    monkeypatch.setattr(postcopy_source, "_CONNECTS_S", 0.1)
    monkeypatch.setattr(postcopy_destination, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(destination, "_ASK_SOURCE_EVERY_S", 0.02)
    monkeypatch.setattr(guests, "_ADOPT_AGAIN_S", 0.01)
    monkeypatch.setattr(guest_devices, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(guest_devices, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(guests, "_ADOPT_FIRST_S", 0.05)
    for state, facts in list(FACTS.items()):
        if facts.deadline_ms is not None:
            monkeypatch.setitem(FACTS, state, replace(facts, deadline_ms=max(150, facts.deadline_ms // 50)))


@pytest.fixture
def link() -> WatchedLink:
    """What the two hosts share."""
    return WatchedLink()


@pytest.fixture
async def hosts(tmp_path: Path, link: WatchedLink, hurried: None) -> AsyncIterator[tuple[Host, Host]]:
    """Two hosts on fakes; the guest runs on the first."""
    pair = make_pair(tmp_path, link)
    here, there = pair.hosts[HOST_A], pair.hosts[HOST_B]
    async with running(here, there):
        await here.guests.run(SPEC)
        yield here, there
    assert link.doubled == []
