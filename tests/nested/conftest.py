"""Nested hosts: one pair for all tests of this folder, since they take a quarter of a minute to start."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from tests.nested import sanlock

from vmferry.lab.nested import NestedLab, nfs, rdma


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def lab() -> AsyncIterator[NestedLab]:
    """Two nested hosts."""
    async with NestedLab(packages=(*nfs.PACKAGES, *rdma.PACKAGES, *sanlock.PACKAGES)) as made:
        yield made


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def sriov_lab() -> AsyncIterator[NestedLab]:
    """Two nested hosts with an IOMMU, KVM, two joined cards each that make virtual functions, and devices to spare."""
    async with NestedLab(cards=2, spares=("nvme", "virtio-blk", "e1000e")) as made:
        yield made
