"""Devices of a libvirt host: which there are, taking them from the host, giving one to a running guest and back.

The words are pure (`facts`, `elements`, `checks`); `calls` asks a daemon, and `plugging` waits for the guest.
"""

from __future__ import annotations

from vmferry.libvirt.devices.checks import check_detach, check_plug
from vmferry.libvirt.devices.elements import Pairing
from vmferry.libvirt.devices.facts import PciDevice
from vmferry.libvirt.devices.host import HostDevices
from vmferry.libvirt.devices.plugging import plug, unplug

__all__ = ["HostDevices", "Pairing", "PciDevice", "check_detach", "check_plug", "plug", "unplug"]
