"""A guest in a file: what the file says of it. While a guest is saved its file owns it, and no host does."""

from __future__ import annotations

from dataclasses import dataclass

from vmferry.core.guest import FrozenGuest
from vmferry.core.ids import Epoch, HostName
from vmferry.core.units import Bytes

#: The owner of a guest that is in a file; no host can have this name.
SAVED = HostName(":saved")


@dataclass(frozen=True, slots=True)
class SavedGuest:
    """What stands at the start of a file with a guest in it."""

    guest: FrozenGuest
    epoch: Epoch  #: in which the file owns it; who restores it acquires the next one
    running: bool  #: whether it ran when it was saved
    host: HostName  #: that saved it
    qemu: tuple[int, int, int]  #: version of the QEMU that wrote the state
    mapped: bool  #: each page has its own place (QEMU 9.0 and later read it); else it is one stream
    saved_at: float  #: Unix time
    state_bytes: Bytes  #: of the state behind the header; 0 until it was measured
    sha256: str  #: of the same; empty until it was measured
