"""Networks and claims for the lab's own tests, each removed whatever the test does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.lab.network import Network
from vmferry.lab.registry import Claim, claim, destroy


@pytest.fixture
def claimed(tmp_path: Path) -> Iterator[Claim]:
    """A lab's claim in a base directory of its own."""
    found = claim(tmp_path / "labs")
    yield found
    destroy(found)


@pytest.fixture
def network(claimed: Claim) -> Iterator[Network]:
    """Two hosts and a fabric."""
    made = Network(claimed)
    made.create()
    yield made
    made.destroy()
