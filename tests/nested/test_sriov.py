"""A host with an IOMMU and a card that makes virtual functions: our rules for its devices, on its own kernel."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from vmferry.lab.nested import HostPlan
from vmferry.lab.nested.image import host_image
from vmferry.lab.nested.sriov import MEMORY_MIB, SriovHost
from vmferry.lab.processes import MARK
from vmferry.lab.registry import claim, destroy
from vmferry.lab.toolchain import cache_dir, find_qemus

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.nested,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("nested"),
]
ROOT = Path(__file__).parents[2]
PLAN = HostPlan("host-a", "52:54:00:7e:00:01", "10.79.1.1/24", MEMORY_MIB)


@pytest_asyncio.fixture
async def host() -> AsyncIterator[SriovHost]:
    """A host with two cards that are joined."""
    lab = claim()
    try:
        directory = lab.directory / "host-a"
        directory.mkdir(mode=0o700)
        wire = ["-netdev", "user,id=wire,restrict=on"]
        env = {**os.environ, MARK: lab.id}
        made = SriovHost(
            PLAN, host_image(cache_dir()), find_qemus()[0], directory, env, wire, [["hubport,hubid=0"]] * 2
        )
        await made.start()
        try:
            yield made
        finally:
            await made.power_off()
    finally:
        destroy(lab)


async def test_a_real_kernel_keeps_to_the_kit(host: SriovHost) -> None:
    """The very rules that the fakes keep to."""
    words = ("-p", "no:cacheprovider", "-q", "-n0", "--rootdir", str(ROOT), str(ROOT / "tests/nested/on_sriov_host.py"))
    ran = await host.run("env", "-C", str(ROOT), sys.executable, "-m", "pytest", *words, timeout_s=400)
    assert ran.exit_code == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout
    assert "skipped" not in ran.stdout
