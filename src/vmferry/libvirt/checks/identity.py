"""The domain's name must be free at the destination, or be its own there."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.errors import Blocker
from vmferry.libvirt.checks.case import Case


def check_identity(case: Case) -> Iterator[Blocker]:
    """No other domain has the name, and the domain itself does not run there."""
    host = case.destination.host
    for domain in case.destination.domains:
        if domain.name == case.name and domain.uuid != case.uuid:
            yield Blocker(
                "identity.name-taken",
                f"{host} has another domain of the name {case.name}, with UUID {domain.uuid}",
                "rename or undefine that one, or give this one another name there (virsh migrate --dname)",
            )
        if domain.uuid == case.uuid and domain.name != case.name:
            yield Blocker(
                "identity.uuid-taken",
                f"{host} has domain {domain.name} with the UUID {case.uuid} of domain {case.name}",
                "undefine one of the two: it is a copy that was given no UUID of its own",
            )
        if domain.uuid == case.uuid and domain.is_active:
            yield Blocker(
                "identity.runs-there",
                f"domain {case.name} is {domain.state.value} on {host} already",
                f"find out which of the two is the right one before anything else: virsh domstate {case.name} on both",
            )
