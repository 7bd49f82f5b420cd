"""What cards are told of their virtual functions, without cards: as strict as the kernel and igb's driver."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Mapping
from typing import Any

from vmferry.core.functions import NO_MAC, FunctionSettings

_FRESH = FunctionSettings(NO_MAC, 0, trust=False, spoofchk=True, max_rate_mbit=0)


class FakeCards:
    """Cards with so many functions each, by the names of their interfaces.

    Args:
        cards: how many functions each has.
    """

    def __init__(self, cards: Mapping[str, int]) -> None:
        self.told = {(card, number): _FRESH for card, count in cards.items() for number in range(count)}
        self.refusing: dict[str, int] = {}  #: settings that a driver does not take, with the kernel's number
        self.writes: list[tuple[str, int, str, str | int]] = []

    def read(self, card: str, number: int) -> FunctionSettings | None:
        """Return what a card was told of a function."""
        return self.told.get((card, number))

    def write(self, card: str, number: int, name: str, value: str | int) -> None:
        """Take a setting as the kernel does."""
        self.writes.append((card, number, name, value))
        if (card, number) not in self.told:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if name in self.refusing:
            raise OSError(self.refusing[name], os.strerror(self.refusing[name]))
        changed: dict[str, Any] = {name: bool(value) if name in {"trust", "spoofchk"} else value}
        self.told[card, number] = dataclasses.replace(self.told[card, number], **changed)
