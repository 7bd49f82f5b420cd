"""SHA-256 of files that nobody writes, made piece by piece: a check waits for some of it, and the next one goes on.

A golden image takes longer to read than anybody waits for an answer. What was read of it is kept, for as long as it is
the same file and was not changed.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vmferry.core.units import MIB, Bytes

_PIECE = 4 * MIB
#: Of files that are remembered; each is some hundred bytes.
_MOST_FILES = 256

#: Device, inode, size, and when it was changed last: a file with the same of all these has the same content.
_Version = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Digest:
    """What is known of a file's content."""

    sha256: str | None  #: None: not all of it was read yet, or it cannot be
    read_bytes: Bytes


@dataclass(slots=True)
class _Reading:
    """How far a file was read."""

    version: _Version
    sum: Any = field(default_factory=hashlib.sha256)
    read_bytes: int = 0
    sha256: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)  #: one reads it at a time


class Digests:
    """Reads files, each by one at a time, and remembers.

    Args:
        now: the time in seconds, that never goes back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._files: OrderedDict[str, _Reading] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, path: str, until: float | None = None) -> Digest:
        """Return what is known of a file's content, after reading on until then; never raises.

        Args:
            path: the file.
            until: the time at which the reading pauses; None: not before the end.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return Digest(None, Bytes(0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # swapped since somebody looked: it may have no end
                return Digest(None, Bytes(0))
            reading = self._reading(path, descriptor)
            with reading.lock:
                self._read_on(reading, descriptor, until)
                return Digest(reading.sha256, Bytes(reading.read_bytes))
        except OSError:  # read again from the start: an error is nothing to remember
            with self._lock:
                self._files.pop(path, None)
            return Digest(None, Bytes(0))
        finally:
            os.close(descriptor)

    def _reading(self, path: str, descriptor: int) -> _Reading:
        version = _version(descriptor)
        with self._lock:
            known = self._files.get(path)
            if known is None or known.version != version:
                known = self._files[path] = _Reading(version)
            self._files.move_to_end(path)
            while len(self._files) > _MOST_FILES:
                self._files.popitem(last=False)
            return known

    def _read_on(self, reading: _Reading, descriptor: int, until: float | None) -> None:
        while reading.sha256 is None:
            piece = os.pread(descriptor, _PIECE, reading.read_bytes)
            reading.sum.update(piece)
            reading.read_bytes += len(piece)
            if not piece:
                reading.sha256 = reading.sum.hexdigest() if _version(descriptor) == reading.version else None
                if reading.sha256 is None:
                    raise OSError("it was changed while it was read")
            elif until is not None and self._now() >= until:
                return


def _version(descriptor: int) -> _Version:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns
