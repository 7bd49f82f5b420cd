"""All movers of a run, by name."""

from __future__ import annotations

from collections.abc import Sequence

from movers.base import Mover
from movers.ours import our_movers
from movers.plain import PlainAutoConverge, PlainMover, PlainPostcopy
from movers.steered import SteeredMover, SteeredPostcopy
from movers.virsh import VirshAutoConverge, VirshMover, VirshPostcopy
from vmferry.lab.hosts import Lab
from vmferry.lab.libvirt import LibvirtDaemon

#: Of `--short`: what people would take, and ours.
SHORT = (
    *("vmferry", "vmferry unencrypted", "vmferry post-copy"),
    *("virsh", "virsh auto-converge", "virsh post-copy", "qemu"),
)


def all_movers(lab: Lab, daemons: dict[str, LibvirtDaemon]) -> list[Mover]:
    """Return every mover."""
    return [
        *our_movers(lab),
        VirshMover(lab, daemons),
        VirshAutoConverge(lab, daemons),
        VirshPostcopy(lab, daemons),
        SteeredMover(lab, daemons),
        SteeredPostcopy(lab, daemons),
        PlainMover(lab),
        PlainAutoConverge(lab),
        PlainPostcopy(lab),
    ]


def chosen_movers(movers: Sequence[Mover], names: Sequence[str] | None, *, short: bool) -> list[Mover]:
    """Return the movers of a run: those named, or all, or those of the short version.

    Raises:
        SystemExit: no mover has such a name.
    """
    known = {mover.name: mover for mover in movers}
    if names:
        unknown = [name for name in names if name not in known]
        if unknown:
            raise SystemExit(f"no mover {', '.join(unknown)}; there are: {', '.join(known)}")
        return [known[name] for name in names]
    return [mover for mover in movers if not short or mover.name in SHORT]
