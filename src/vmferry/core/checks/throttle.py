"""What the write throttle needs of a guest; asked only of a move that wants it."""

from __future__ import annotations

from vmferry.core.errors import Blocker
from vmferry.core.guest import GuestSpec


def check_port(spec: GuestSpec) -> tuple[Blocker, ...]:
    """Return the blocker of a guest that was built without the throttle's port."""
    if spec.throttle:
        return ()
    return (
        Blocker(
            "throttle.no-port",
            f"guest {spec.name} has no port for the write throttle: its hardware was built without one",
            "stop and remove it, write throttle = true into its guest file and run it again, its programs under"
            " vmferry-throttle (docs/write-throttle.md); or move it without --throttle",
        ),
    )


def helper_silent(spec: GuestSpec, why: str) -> Blocker:
    """Return the blocker of a guest that has the port, at which nobody answers."""
    return Blocker(
        "throttle.no-helper",
        f"nobody in guest {spec.name} answers at its write throttle's port: {why}",
        "start the guest's programs under vmferry-throttle (docs/write-throttle.md), or move it without --throttle",
    )
