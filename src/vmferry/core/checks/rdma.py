"""A stream that is to go by RDMA: both hosts can, and nobody sends a guest in the clear who did not ask for that."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.capabilities import Transport
from vmferry.core.checks.case import Case
from vmferry.core.errors import Blocker

_OTHERWISE = ", or move it with --link tcp"


def check_rdma(case: Case) -> Iterator[Blocker]:
    """Both hosts have a device with the address of their streams that QEMU may use; RDMA itself encrypts nothing."""
    if case.stream.transport is not Transport.RDMA:
        return
    for host in (case.source, case.destination):
        if host.why_no_rdma is not None:
            yield Blocker(
                "stream.rdma-missing",
                f"guest {case.guest.spec.name} cannot move by RDMA: of {host.name}, {host.why_no_rdma}",
                f"do that on {host.name}{_OTHERWISE}",
            )
    if case.stream.encrypted:
        yield Blocker(
            "stream.rdma-in-the-clear",
            f"guest {case.guest.spec.name} would move by RDMA in the clear: QEMU encrypts nothing of that",
            f"move it with --plain over a network that you trust{_OTHERWISE}",
        )
