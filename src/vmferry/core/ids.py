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


def is_name(text: str) -> bool:
    """Tell whether the text is a name as guests and hosts have them: DNS label, lower case."""
    return _NAME.match(text) is not None
