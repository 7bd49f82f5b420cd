"""Compresses a sample of a guest's pages as QEMU's multifd channels would: level 1, a packet's pages at a time.

Source: migration/multifd-zstd.c and multifd-zlib.c; MULTIFD_PACKET_SIZE of QEMU 7.2 and 10.0; the levels' defaults.
"""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from collections.abc import Callable, Sequence

import zstandard

from vmferry.core.capabilities import Compression
from vmferry.core.compression import Sample
from vmferry.core.units import Bytes

PACKET_BYTES = 512 * 1024
LEVEL = 1


def _zstd() -> Callable[[bytes], bytes]:
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=False).compress


def _zlib() -> Callable[[bytes], bytes]:
    return lambda packet: zlib.compress(packet, LEVEL)


_KINDS: dict[Compression, Callable[[], Callable[[bytes], bytes]]] = {Compression.ZSTD: _zstd, Compression.ZLIB: _zlib}


class PageCompressing:
    """Tries compressions on this host."""

    @property
    def cpus(self) -> int:
        """Return how many CPUs this host gives to the agent."""
        return len(os.sched_getaffinity(0))

    async def samples(self, pages: bytes, kinds: Sequence[Compression]) -> list[Sample]:
        """Return what the pages come to with each of these; accelerators cannot be tried and are left out."""
        return [await asyncio.to_thread(_sample, kind, pages) for kind in kinds if kind in _KINDS]


def _sample(kind: Compression, pages: bytes) -> Sample:
    compress = _KINDS[kind]()
    began = time.thread_time()
    packets = (pages[at : at + PACKET_BYTES] for at in range(0, len(pages), PACKET_BYTES))
    size = sum(len(compress(packet)) for packet in packets)
    return Sample(kind, Bytes(len(pages)), Bytes(size), time.thread_time() - began)
