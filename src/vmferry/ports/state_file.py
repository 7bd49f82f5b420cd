"""Files with a guest in them. What state such a file is in stands in its name, so that one rename changes it.

FILE.partial         is being written; worth nothing
FILE                 owns its guest
FILE.restoring-ID    is claimed by one restore; nobody else finds it
FILE.restored        was used up; worth nothing
"""

from __future__ import annotations

from typing import Protocol

from vmferry.core.saved import SavedGuest
from vmferry.core.units import Bytes


class StateFile(Protocol):
    """An open file, for one direction; QEMU is given its descriptor."""

    @property
    def offset(self) -> Bytes:
        """Return where the state begins."""

    def fileno(self) -> int:
        """Return its descriptor here."""

    def close(self) -> None:
        """Close it here."""


class StateFiles(Protocol):
    """Makes and uses them. All methods wait for the disk outside of the event loop."""

    async def create(self, path: str, needed: Bytes) -> StateFile:
        """Open FILE.partial for writing.

        Raises:
            BadInput: guests may not have a file there, or there is one.
            Refused: the file system has not so many bytes left.
            Broken: it cannot be made.
        """

    async def seal(self, path: str, saved: SavedGuest) -> SavedGuest:
        """Write the header of FILE.partial, with size and checksum of what is there; durable when it returns.

        Raises:
            Broken: it cannot be written.
        """

    async def publish(self, path: str) -> None:
        """Make FILE of FILE.partial; never over another file. Idempotent.

        Raises:
            Broken: it cannot be renamed; both names stay as they are.
        """

    async def discard(self, path: str) -> None:
        """Remove FILE.partial. Idempotent."""

    async def read(self, path: str) -> SavedGuest:
        """Return what FILE says of its guest.

        Raises:
            BadInput: it may not be used, or it is no such file.
            NotFound: there is none; one that is being restored, or was, is told.
        """

    async def claim(self, path: str, claim: str) -> StateFile:
        """Rename FILE so that nobody else finds it, and open it for reading.

        Raises:
            NotFound: somebody else was faster.
            Broken: its checksum is wrong; it has its name again.
        """

    async def give_back(self, path: str, claim: str) -> None:
        """Undo a claim. Idempotent.

        Raises:
            Broken: it cannot be renamed.
        """

    async def consume(self, path: str, claim: str) -> None:
        """Make FILE.restored of a claimed one. Idempotent.

        Raises:
            Broken: it cannot be renamed.
        """
