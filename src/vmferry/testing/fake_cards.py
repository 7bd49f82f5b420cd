"""What cards are told of their virtual functions, without cards: as strict as the kernel and igb's driver."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Mapping
from typing import Any

from vmferry.core.functions import NO_MAC, FunctionSettings
from vmferry.testing.fake_sysfs import FakeKernel

_FRESH = FunctionSettings(NO_MAC, 0, trust=False, spoofchk=True, max_rate_mbit=0)


class FakeCards:
    """The network side of a kernel; its cards forget what they were told when their functions are made anew.

    Args:
        kernel: whose cards they are.
        cards: where each is, by the name of its interface.
    """

    def __init__(self, kernel: FakeKernel, cards: Mapping[str, str]) -> None:
        self._kernel = kernel
        self._cards = dict(cards)
        self._told: dict[tuple[str, int, int], FunctionSettings] = {}
        self.refusing: dict[str, int] = {}  #: settings that a driver does not take, with the kernel's number
        self.writes: list[tuple[str, int, str, str | int]] = []

    def read(self, card: str, number: int) -> FunctionSettings | None:
        """Return what a card was told of a function."""
        key = self._key(card, number)
        return None if key is None else self._told.get(key, _FRESH)

    def write(self, card: str, number: int, name: str, value: str | int) -> None:
        """Take a setting as the kernel does."""
        self.writes.append((card, number, name, value))
        key = self._key(card, number)
        if key is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if name in self.refusing:
            raise OSError(self.refusing[name], os.strerror(self.refusing[name]))
        if name == "max_rate_mbit" and not self._is_up(card):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        changed: dict[str, Any] = {name: bool(value) if name in {"trust", "spoofchk"} else value}
        self._told[key] = dataclasses.replace(self._told.get(key, _FRESH), **changed)

    def _is_up(self, card: str) -> bool:
        return bool((self._kernel.number(f"bus/pci/devices/{self._cards[card]}/net/{card}/flags") or 0) & 1)

    def _key(self, card: str, number: int) -> tuple[str, int, int] | None:
        where = self._cards.get(card)
        if where is None or number >= (self._kernel.number(f"bus/pci/devices/{where}/sriov_numvfs") or 0):
            return None
        return card, number, self._kernel.made.get(where, 0)
