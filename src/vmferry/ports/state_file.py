"""Files with a guest in them. What state such a file is in stands in its name, so that one rename changes it.

    FILE                 owns its guest; before that it is a mark that somebody writes it
    FILE.partial-ID      is being written by the save ID; worth nothing
    FILE.restoring-ID    is claimed by the restore ID; nobody else finds it
    FILE.restored-ID     was used up; worth nothing

Nothing here ever replaces or removes a file of another ID, or one that is none of ours.
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


class NewStateFile(StateFile, Protocol):
    """One that is being written."""

    async def measure(self) -> tuple[Bytes, str]:
        """Return size and checksum of the state; QEMU has written all of it. Takes as long as reading it."""

    async def seal(self, saved: SavedGuest) -> str:
        """Write the header, durably with all that is there, and return its digest; may be repeated.

        Raises:
            Broken: it cannot be written.
        """


class StateFiles(Protocol):
    """Makes and uses them. All methods wait for the disk outside of the event loop."""

    def check_path(self, path: str) -> None:
        """Return if there can be such a file here.

        Raises:
            BadInput: guests may not have files there, it is no path of a file, or a name that means something else.
        """

    async def create(self, path: str, mark: str, needed: Bytes) -> NewStateFile:
        """Mark FILE and open FILE.partial-ID for writing.

        Raises:
            BadInput: as `check_path`, or there is such a file, or it is being written or restored.
            Refused: the file system has not so many bytes left.
            Broken: it cannot be made.
        """

    async def publish(self, path: str, mark: str, digest: str) -> None:
        """Make FILE of FILE.partial-ID, whose header must be the one that was sealed. Idempotent.

        Raises:
            Broken: it cannot be renamed, or somebody has changed or removed it; nothing was replaced.
        """

    async def discard(self, path: str, mark: str) -> None:
        """Remove FILE.partial-ID and the mark. Idempotent.

        Raises:
            Broken: it cannot be removed.
        """

    async def read(self, path: str) -> SavedGuest:
        """Return what FILE says of its guest.

        Raises:
            BadInput: as `check_path`, or it is no such file.
            NotFound: there is none; one that is being written, is being restored, or was, is told.
        """

    async def claim(self, path: str, mark: str, expected: SavedGuest) -> StateFile:
        """Rename FILE so that nobody else finds it, and open it for reading.

        Raises:
            NotFound: somebody else was faster, or it is not the file any more that was read.
            Broken: its checksum is wrong; it has its name again.
        """

    async def give_back(self, path: str, mark: str) -> None:
        """Undo a claim. Idempotent.

        Raises:
            Broken: it cannot be renamed, or somebody has put another file there.
        """

    async def consume(self, path: str, mark: str) -> None:
        """Make FILE.restored-ID of a claimed one. Idempotent.

        Raises:
            Broken: it cannot be renamed.
        """
