"""`--compression auto`: a sample of the guest's pages is compressed, and what it comes to decides."""

from __future__ import annotations

import dataclasses

from vmferry.conductor import plan
from vmferry.core.capabilities import Compression, StreamWish
from vmferry.core.compression import Chosen, choose_compression
from vmferry.core.convergence import Wishes
from vmferry.core.errors import Broken
from vmferry.ports.compression import Compressing
from vmferry.ports.hypervisor import GuestProcess

#: In this order where two come to the same.
CANDIDATES = (Compression.ZSTD, Compression.ZLIB)
SAMPLE_PAGES = 512
_NO_WISHES = Wishes()


async def settle(
    asked: plan.Asked, qemus: plan.Qemus, process: GuestProcess | None, vcpus: int, compressing: Compressing
) -> tuple[StreamWish, str | None]:
    """Return how the stream shall travel, with a compression that is none any more to be chosen, and why.

    Never raises: what cannot be found out is a reason not to compress.
    """
    if asked.stream.compression is not Compression.AUTO:
        return asked.stream, None
    chosen = await _choose(asked, qemus, process, vcpus, compressing)
    channels = asked.stream.channels or chosen.channels
    return dataclasses.replace(asked.stream, compression=chosen.compression, channels=channels), chosen.why


async def _choose(
    asked: plan.Asked, qemus: plan.Qemus, process: GuestProcess | None, vcpus: int, compressing: Compressing
) -> Chosen:
    common = qemus[0].compressions & qemus[1].compressions
    kinds = [kind for kind in CANDIDATES if str(kind) in common]
    if not kinds:
        return Chosen(Compression.NONE, None, "the two QEMUs have no compression in common")
    tried = dataclasses.replace(asked, stream=dataclasses.replace(asked.stream, compression=kinds[0]))
    if blockers := plan.choose_stream(tried, _NO_WISHES, qemus).blockers:
        return Chosen(Compression.NONE, None, blockers[0].what)
    try:
        pages = b"" if process is None else await process.sample_memory(SAMPLE_PAGES)
    except Broken as error:
        return Chosen(Compression.NONE, None, error.what)
    return choose_compression(asked.link, await compressing.samples(pages, kinds), compressing.cpus - vcpus)
