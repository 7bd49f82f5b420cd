"""Names of things: which guest, which host, which hand-over, which epoch."""

from __future__ import annotations

import re
from typing import NewType

GuestName = NewType("GuestName", str)
HostName = NewType("HostName", str)
GuestUuid = NewType("GuestUuid", str)
HandoverId = NewType("HandoverId", str)
Epoch = NewType("Epoch", int)

#: One rule for names of guests and hosts: they become file names, QEMU ids and URL parts.
NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_NAME = re.compile(NAME_PATTERN)


def check_name(text: str) -> str:
    """Return a name of a guest or a host.

    Raises:
        ValueError: it is none.
    """
    if not is_name(text):
        raise ValueError("a name is 1 to 63 of a-z, 0-9 and -, not - at either end")
    return text


def is_name(text: str) -> bool:
    """Tell whether the text is a name as guests and hosts have them: DNS label, lower case."""
    return _NAME.fullmatch(text) is not None
