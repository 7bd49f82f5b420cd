"""Trying compressions on a guest's pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vmferry.core.capabilities import Compression
from vmferry.core.compression import Sample


class Compressing(Protocol):
    """Compresses as QEMU's channels would, on this host's CPUs."""

    @property
    def cpus(self) -> int:
        """Return how many CPUs this host has."""

    async def samples(self, pages: bytes, kinds: Sequence[Compression]) -> Sequence[Sample]:
        """Return what some pages come to with each of these; those that cannot be tried here are left out."""
