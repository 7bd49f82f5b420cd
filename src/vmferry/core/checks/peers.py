"""The pair of hosts: two different ones, that understand each other, with a free port for the stream."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case
from vmferry.core.checks.disk import images_to_copy
from vmferry.core.errors import Blocker


def check_same_host(case: Case) -> Iterator[Blocker]:
    """A guest moves between two hosts, not from one to itself."""
    if case.source.name == case.destination.name:
        yield Blocker(
            "host.same",
            f"guest {case.guest.spec.name} already runs on {case.destination.name}",
            "name another host as destination (`vmferry host list` shows them)",
        )


def check_protocol(case: Case) -> Iterator[Blocker]:
    """Agents of protocol N and N-1 work together, others do not."""
    here, there = case.source.protocol, case.destination.protocol
    if abs(here - there) <= 1:
        return
    older, newer = (case.source, case.destination) if here < there else (case.destination, case.source)
    yield Blocker(
        "protocol.versions",
        f"agent on {case.source.name} speaks protocol {here} (vmferry {case.source.agent_version}), agent on"
        f" {case.destination.name} speaks {there} (vmferry {case.destination.agent_version}); they may differ by one",
        f"update the agent on {older.name} to a version that speaks protocol {newer.protocol - 1} or"
        f" {newer.protocol}; its guests run on meanwhile",
    )


def check_ports(case: Case) -> Iterator[Blocker]:
    """The stream needs a port on which the destination can listen, and disks that are copied another one."""
    needed, free = 2 if images_to_copy(case) else 1, case.destination.migration_ports_free
    if free >= needed:
        return
    yield Blocker(
        "port.none-free",
        f"no migration port is free on {case.destination.name} ({free} of its range), {needed} is needed"
        if needed == 1
        else f"{free} migration ports are free on {case.destination.name}, {needed} are needed: disks are copied",
        "wait until an arrival there has ended, or widen the range of migration ports in its agent's configuration",
    )
