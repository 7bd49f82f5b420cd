"""The kernel's files about devices: the only module that reads and writes below /sys.

A path is relative to the root (`bus/pci/devices/0000:03:00.0/driver`). What is not there is None or empty: devices come
and go while one looks.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

#: Attributes are a page at the most.
_PAGE = 4096


class Sysfs:
    """Reads and writes attributes.

    Args:
        root: where sysfs is mounted.
    """

    def __init__(self, root: Path = Path("/sys")) -> None:
        self.root = root

    def read(self, path: str) -> str | None:
        """Return an attribute without its line end; None: there is none, it says nothing, or the device is gone."""
        try:
            with (self.root / path).open("rb") as file:
                return file.read(_PAGE).decode("utf-8", "replace").strip("\n") or None
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """Return an attribute that is a number, in decimal or as 0x...; None: it is none."""
        text = self.read(path)
        try:
            return None if text is None else int(text, 0)
        except ValueError:
            return None

    def link(self, path: str) -> str | None:
        """Return the last part of what a link leads to."""
        try:
            return (self.root / path).readlink().name
        except OSError:
            return None

    def names(self, path: str) -> list[str]:
        """Return what is in a directory, sorted."""
        try:
            return sorted(entry.name for entry in (self.root / path).iterdir())
        except OSError:
            return []

    def parts(self, path: str) -> tuple[str, ...]:
        """Return the parts of where a directory really is, below the root; empty when it is nowhere."""
        try:
            return (self.root / path).resolve(strict=True).relative_to(self.root.resolve()).parts
        except (OSError, ValueError):
            return ()

    def size(self, path: str) -> int:
        """Return how large a file is; 0: there is none."""
        try:
            return (self.root / path).stat().st_size
        except OSError:
            return 0

    def exists(self, path: str) -> bool:
        """Tell whether there is such an attribute or directory."""
        return (self.root / path).exists()

    def write(self, path: str, text: str) -> None:
        """Write an attribute in one piece, as the kernel wants it.

        Raises:
            OSError: the kernel does not take it, in its number.
        """
        data = text.encode()
        file = os.open(self.root / path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.write(file, data) != len(data):
                raise OSError(errno.EIO, "the kernel took only a part of it", str(self.root / path))
        finally:
            os.close(file)
