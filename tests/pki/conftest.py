"""Agents as they really start, with a fake inside, on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vmferry.testing.fleet_agents import FleetAgents


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[FleetAgents]:
    """No agents yet."""
    async with FleetAgents(tmp_path) as agents:
        yield agents
