"""What pages come to, compressed."""

from __future__ import annotations

import os

from vmferry.core.capabilities import Compression
from vmferry.measure.compressing import PageCompressing

KINDS = (Compression.ZSTD, Compression.ZLIB)


async def test_random_pages_stay_as_they_are_and_others_shrink() -> None:
    """Each way is measured by itself, in size and in CPU time."""
    for pages, least, most in ((os.urandom(1 << 20), 0.99, 1.01), (b"0123456789abcdef" * 65536, 0.0, 0.05)):
        found = await PageCompressing().samples(pages, KINDS)
        assert [sample.compression for sample in found] == list(KINDS)
        assert all(least <= sample.ratio <= most for sample in found)
        assert all(sample.size == 1 << 20 and sample.cpu_s > 0 for sample in found)


async def test_what_cannot_be_tried_is_left_out() -> None:
    """An accelerator of the hosts is none of ours; nothing to compress is no mistake."""
    assert await PageCompressing().samples(b"x" * 4096, (Compression.QPL, Compression.XBZRLE)) == []
    (sample,) = await PageCompressing().samples(b"", (Compression.ZSTD,))
    assert sample.size == 0
    assert PageCompressing().cpus >= 1
