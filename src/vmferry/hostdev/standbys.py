"""Where a bridge hears a guest that has a virtual function and a standby on that bridge.

A bridge learns from each frame's sender: what the guest sends through its standby comes from the tap, what it sends
through its function comes from the card's network.

Source: Linux net/bridge/br_fdb.c, net/core/rtnetlink.c (rtnl_fdb_del).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vmferry.ports.host_devices import Carrier

#: What taps of guests are called (qemu/tap.py).
_TAP = "vftap"
#: NTF_MASTER: an entry of the port's bridge, not of the port itself.
_OF_THE_BRIDGE = 4


class BridgeStandbys:
    """Implements ports.host_devices.Standbys.

    Args:
        learned: behind which port a bridge believes an address to be (`measure.learned_port`).
    """

    def __init__(self, learned: Callable[[str, str], str | None]) -> None:
        self._learned = learned

    def heard(self, bridge: str, mac: str) -> Carrier | None:
        """Return where a bridge has heard a guest last; None: nowhere, or there is no such bridge."""
        port = self._port(bridge, mac)
        if port is None:
            return None
        return Carrier.STANDBY if port.startswith(_TAP) else Carrier.FUNCTION

    def forget(self, bridge: str, mac: str) -> None:
        """Have a bridge forget that it heard the guest from its tap: it asks everywhere then."""
        port = self._port(bridge, mac)
        if port is None or not port.startswith(_TAP):
            return
        with IPRoute() as route, contextlib.suppress(NetlinkError):  # it was heard elsewhere a moment ago
            for index in route.link_lookup(ifname=port):
                route.fdb("del", ifindex=index, lladdr=mac, flags=_OF_THE_BRIDGE)

    def _port(self, bridge: str, mac: str) -> str | None:
        with contextlib.suppress(OSError):
            return self._learned(bridge, mac)
        return None
