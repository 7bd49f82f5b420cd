"""What a domain's XML must be at the destination: XML in, XML out; one concern per file.

Each is pure, changes nothing but its concern, and does nothing the second time. The names that they replace come from a
person (`renaming`); what comes out is shown by `check` and is the destination's XML of a move.
"""

from __future__ import annotations

from vmferry.libvirt.rewrites.cpu import disable_features, name_model
from vmferry.libvirt.rewrites.devices import replace_devices
from vmferry.libvirt.rewrites.disks import replace_disks
from vmferry.libvirt.rewrites.emulator import set_emulator
from vmferry.libvirt.rewrites.graphics import replace_listen
from vmferry.libvirt.rewrites.networks import replace_bridges, replace_cards, replace_networks

__all__ = [
    "disable_features",
    "name_model",
    "replace_bridges",
    "replace_cards",
    "replace_devices",
    "replace_disks",
    "replace_listen",
    "replace_networks",
    "set_emulator",
]
