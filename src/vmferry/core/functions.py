"""What a card is told of one of its virtual functions: address, VLAN, trust, rate. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from vmferry.core.errors import BadInput

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)
_GROUP_BIT = 1
MOST_VLAN, MOST_RATE_MBIT = 4094, 1_000_000
#: "None was set": the guest chooses one.
NO_MAC = "00:00:00:00:00:00"


@dataclass(frozen=True, slots=True)
class FunctionSettings:
    """Settings of a virtual function; None: not said, or not known by this card."""

    mac: str | None = None  #: the only one that it may use, unless it is trusted; NO_MAC: any
    vlan: int | None = None  #: the card's own tag, which the guest does not see; 0: none
    trust: bool | None = None  #: it may change its MAC and listen to everything
    spoofchk: bool | None = None  #: what it sends under other addresses is dropped
    max_rate_mbit: int | None = None  #: Mbit/s that it may send; 0: no limit

    def __post_init__(self) -> None:
        """Refuse what no card can take.

        Raises:
            BadInput: a value is none; which one is told.
        """
        if self.mac is not None and (not _MAC.fullmatch(self.mac) or int(self.mac[:2], 16) & _GROUP_BIT):
            raise BadInput(f"MAC address {self.mac[:50]!r} is none of a card", fix="write one like 52:54:00:12:34:56")
        for name, value, most in (("VLAN", self.vlan, MOST_VLAN), ("rate", self.max_rate_mbit, MOST_RATE_MBIT)):
            if value is not None and not 0 <= value <= most:
                raise BadInput(f"{name} {value} is none", fix=f"it is 0 to {most}, 0 for none")

    @property
    def of_a_guest(self) -> FunctionSettings:
        """Return what a guest's own card changes of it: address and VLAN."""
        return FunctionSettings(mac=self.mac, vlan=self.vlan)

    def without(self, other: FunctionSettings) -> FunctionSettings:
        """Return what is said here and is not the same there."""
        there = other.given()
        return FunctionSettings(**{name: value for name, value in self.given().items() if there.get(name) != value})  # type: ignore[arg-type]

    def changed(self, new: FunctionSettings) -> FunctionSettings:
        """Return this with what is said there instead."""
        return FunctionSettings(**{**self.given(), **new.given()})  # type: ignore[arg-type]

    def given(self) -> dict[str, str | int]:
        """Return what is said, in the order in which it is set."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) is not None}


#: Nothing is said.
NOTHING_SAID = FunctionSettings()
#: Of a function whose guest's traffic goes another way now: the card delivers nothing to it.
QUIET = FunctionSettings(mac=NO_MAC, vlan=0)
