"""The kernel's rtnetlink, for what a card is told of its virtual functions. Alone with pyroute2.

Source: Linux include/uapi/linux/if_link.h (IFLA_VFINFO_LIST), net/core/rtnetlink.c.
"""

from __future__ import annotations

import errno
from typing import Any, Protocol

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vmferry.core.functions import FunctionSettings

#: Have the answer tell of virtual functions (RTEXT_FILTER_VF).
_WITH_FUNCTIONS = 1
#: How netlink calls each setting, and how it wants its value.
_WORDS = {"mac": "mac", "vlan": "vlan", "trust": "trust", "spoofchk": "spoofchk", "max_rate_mbit": "rate"}


class Cards(Protocol):
    """What is asked of the network's kernel side."""

    def read(self, card: str, number: int) -> FunctionSettings | None:
        """Return what a card was told of a function; None: nothing of it is known."""

    def write(self, card: str, number: int, name: str, value: str | int) -> None:
        """Tell a card one setting of a function.

        Raises:
            OSError: the kernel, or the card's driver, does not take it.
        """


class Netlink:
    """Cards by the names of their interfaces; one socket a call, which is rare."""

    def read(self, card: str, number: int) -> FunctionSettings | None:
        """Return what a card was told of a function; None: nothing of it is known."""
        with IPRoute() as route:
            index = _index(route, card)
            if index is None:
                return None
            (link,) = route.link("get", index=index, ext_mask=_WITH_FUNCTIONS)
        told = link.get_attr("IFLA_VFINFO_LIST")
        for one in () if told is None else told.get_attrs("IFLA_VF_INFO"):
            found = _settings(one, number)
            if found is not None:
                return found
        return None

    def write(self, card: str, number: int, name: str, value: str | int) -> None:
        """Tell a card one setting of a function; raises as `Cards.write`."""
        with IPRoute() as route:
            index = _index(route, card)
            if index is None:
                raise OSError(errno.ENODEV, f"there is no interface {card}")
            try:
                route.link("set", index=index, vf={"vf": number, **_word(name, value)})
            except NetlinkError as error:
                raise OSError(error.code, error.args[1] if len(error.args) > 1 else str(error)) from error


def _index(route: IPRoute, card: str) -> int | None:
    found = route.link_lookup(ifname=card)
    return found[0] if found else None


def _word(name: str, value: str | int) -> dict[str, Any]:
    word = _WORDS[name]
    if name == "max_rate_mbit":
        return {word: {"min_tx_rate": 0, "max_tx_rate": value}}
    if name == "vlan":
        return {word: {"vlan": value, "qos": 0}}
    return {word: value if name == "mac" else int(value)}


def _settings(info: Any, number: int) -> FunctionSettings | None:
    """Return the settings out of one function's attributes; None: it is another's."""
    mac = info.get_attr("IFLA_VF_MAC")
    if mac is None or mac["vf"] != number:
        return None

    def value(attribute: str, field: str) -> int | None:
        found = info.get_attr(attribute)
        return None if found is None else int(found[field])

    trust, spoofchk = value("IFLA_VF_TRUST", "trust"), value("IFLA_VF_SPOOFCHK", "spoofchk")
    return FunctionSettings(
        mac=str(mac["mac"])[:17],
        vlan=value("IFLA_VF_VLAN", "vlan"),
        trust=_flag(trust),
        spoofchk=_flag(spoofchk),
        max_rate_mbit=value("IFLA_VF_RATE", "max_tx_rate"),
    )


def _flag(value: int | None) -> bool | None:
    """Return a flag; a driver that does not know it answers with -1."""
    return bool(value) if value in {0, 1} else None
