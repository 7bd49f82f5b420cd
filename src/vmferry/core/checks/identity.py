"""What must exist once: the guest's name, its UUID and its MAC addresses."""

from __future__ import annotations

from collections.abc import Iterator

from vmferry.core.checks.case import Case, name_list
from vmferry.core.errors import Blocker


def check_identity(case: Case) -> Iterator[Blocker]:
    """Nothing at the destination has the guest's name, UUID or one of its MAC addresses."""
    guest, host, probe = case.guest, case.destination.name, case.probe
    if guest.uuid in probe.uuids_taken and case.runtime.busy_with is not None:
        return  # it is just arriving there: its name, UUID and MACs clash with itself, and `guest.busy` says so
    if guest.spec.name in probe.names_taken:
        yield Blocker(
            "identity.name-taken",
            f"{host} has another guest of the name {guest.spec.name}",
            f"remove that one (`vmferry guest remove {guest.spec.name}` when it is stopped), or run this one under"
            " another name",
        )
    if guest.uuid in probe.uuids_taken:
        yield Blocker(
            "identity.uuid-taken",
            f"{host} has another guest with UUID {guest.uuid} of guest {guest.spec.name}",
            "one of the two is a copy: remove it and run it anew, it then gets a UUID of its own",
        )
    macs = {mac.lower() for mac in guest.macs} & {mac.lower() for mac in probe.macs_taken}
    if macs:
        yield Blocker(
            "identity.mac-taken",
            f"MAC address {name_list(macs)} of guest {guest.spec.name} is in use by another guest on {host}",
            "give one of the two guests another `mac` in its file (or none: one is made) and restart it",
        )
