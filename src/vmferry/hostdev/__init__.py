"""The host's devices: what there is, which driver has it, and virtual functions. sysfs.py alone touches /sys."""

from vmferry.hostdev.binding import bind, give_back
from vmferry.hostdev.inventory import Known, read_inventory
from vmferry.hostdev.lending import DeviceLender
from vmferry.hostdev.netlink import Cards, Netlink
from vmferry.hostdev.settings import read_settings, set_function
from vmferry.hostdev.sriov import set_functions
from vmferry.hostdev.standbys import BridgeStandbys
from vmferry.hostdev.sysfs import Sysfs

__all__ = [
    "BridgeStandbys",
    "Cards",
    "DeviceLender",
    "Known",
    "Netlink",
    "Sysfs",
    "bind",
    "give_back",
    "read_inventory",
    "read_settings",
    "set_function",
    "set_functions",
]
