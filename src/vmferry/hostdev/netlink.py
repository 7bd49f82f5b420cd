"""The kernel's rtnetlink, for what a card is told of its virtual functions. Alone with pyroute2.

Source: Linux include/uapi/linux/if_link.h (IFLA_VFINFO_LIST), net/core/rtnetlink.c.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Protocol

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vmferry.core.functions import MOST_RATE_MBIT, MOST_VLAN, FunctionSettings

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
        """Return what a card was told of a function; None: nothing of it is known, or the card is gone."""
        told = _told(card, number)
        return None if told is None else _settings(told)

    def write(self, card: str, number: int, name: str, value: str | int) -> None:
        """Tell a card one setting of a function; raises as `Cards.write`."""
        told = _told(card, number)
        if told is None:
            raise OSError(errno.ENODEV, f"interface {card} has no function {number}")
        with IPRoute() as route:
            index = _index(route, card)
            try:
                route.link("set", index=index, vf={"vf": number, **_word(name, value, told)})
            except NetlinkError as error:
                raise OSError(error.code, os.strerror(error.code)) from error


def _told(card: str, number: int) -> Any:
    """Return netlink's attributes of a function; None: there is no such card, or it has no such function."""
    with IPRoute() as route:
        try:
            links = route.link("get", index=_index(route, card), ext_mask=_WITH_FUNCTIONS)
        except NetlinkError:
            return None
    for link in links:
        told = link.get_attr("IFLA_VFINFO_LIST")
        for one in () if told is None else told.get_attrs("IFLA_VF_INFO"):
            mac = one.get_attr("IFLA_VF_MAC")
            if mac is not None and mac["vf"] == number:
                return one
    return None


def _index(route: IPRoute, card: str) -> int:
    """Return an interface's number; 0, which none has: there is no such one."""
    found = route.link_lookup(ifname=card)
    return int(found[0]) if found else 0


def _word(name: str, value: str | int, told: Any) -> dict[str, Any]:
    """Return a setting in netlink's words; what goes with it and is not ours stays as it was told."""
    word = _WORDS[name]
    if name == "max_rate_mbit":
        return {word: {"min_tx_rate": _value(told, "IFLA_VF_RATE", "min_tx_rate") or 0, "max_tx_rate": value}}
    if name == "vlan":
        return {word: {"vlan": value, "qos": (_value(told, "IFLA_VF_VLAN", "qos") or 0) if value else 0}}
    return {word: value if name == "mac" else int(value)}


def _settings(told: Any) -> FunctionSettings:
    """Return the settings out of one function's attributes; what is out of their range says that there is none."""
    return FunctionSettings(
        mac=str(told.get_attr("IFLA_VF_MAC")["mac"])[:17],
        vlan=_within(_value(told, "IFLA_VF_VLAN", "vlan"), MOST_VLAN),
        trust=_flag(_value(told, "IFLA_VF_TRUST", "trust")),
        spoofchk=_flag(_value(told, "IFLA_VF_SPOOFCHK", "spoofchk")),
        max_rate_mbit=_within(_value(told, "IFLA_VF_RATE", "max_tx_rate"), MOST_RATE_MBIT),
    )


def _value(told: Any, attribute: str, field: str) -> int | None:
    found = told.get_attr(attribute)
    return None if found is None else int(found[field])


def _within(value: int | None, most: int) -> int | None:
    return value if value is not None and value <= most else None


def _flag(value: int | None) -> bool | None:
    """Return a flag; a driver that does not know it answers with -1."""
    return bool(value) if value in {0, 1} else None
