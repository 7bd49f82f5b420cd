"""Labs for tests on real QEMU: one per module, since two agents take seconds to start."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from vmferry.core.errors import NotFound
from vmferry.lab.hosts import Lab
from vmferry.lab.toolchain import find_qemu


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab() -> AsyncIterator[Lab]:
    """Two hosts with the newest QEMU."""
    async with Lab() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mixed_lab() -> AsyncIterator[Lab]:
    """The older QEMU on host-a, the newer on host-b."""
    try:
        qemus = {"host-a": find_qemu(7, 2), "host-b": find_qemu(10, 0)}
    except NotFound as error:
        pytest.skip(str(error))
    async with Lab(qemus=qemus) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local_lab() -> AsyncIterator[Lab]:
    """Two hosts, each with a directory of its own at the same path."""
    async with Lab(local_dirs=True) as made:
        yield made
