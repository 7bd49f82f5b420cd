"""The base of this room's enums."""

from __future__ import annotations

import enum


class Word(enum.Enum):
    """A member prints as its value and equals only itself.

    Not `StrEnum`: there, the source's `loaded` and the destination's `loaded` would be equal, and one key in a table.
    """

    def __str__(self) -> str:
        """Return the stable text, as it stands in the journal."""
        return str(self.value)
