"""A small fleet with one served agent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vmferry.testing.fleet_kit import World, serve_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Serve host-a."""
    async with serve_world(tmp_path) as world:
        yield world
