"""RDMA in software (soft-RoCE) on nested hosts."""

from __future__ import annotations

from vmferry.lab.nested.host import NestedHost

#: How programs find the kernel's soft-RoCE device.
PACKAGES = ("ibverbs-providers",)


async def add_device(host: NestedHost) -> None:
    """Make the host's network card an RDMA device; rxe wants crc32 to be there first."""
    await host.shell("modprobe -a crc32_generic rdma_rxe ib_uverbs rdma_ucm; rdma link add rxe0 type rxe netdev eth0")


async def remove_device(host: NestedHost) -> None:
    """Take it away again, if it is there."""
    await host.shell("! rdma link | grep -q rxe0 || rdma link del rxe0")
