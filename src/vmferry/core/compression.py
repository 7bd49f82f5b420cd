"""Does it pay to compress a guest's pages? What a sample of them came to, against what the link carries. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmferry.core.capabilities import DEFAULT_CHANNELS, Compression
from vmferry.core.units import Bytes, BytesPerSecond, format_rate

#: Compressing costs CPU that guests want, and QEMU reckons its switchover by what goes over the link: for less it is
#: not worth it.
LEAST_GAIN = 1.3
#: More threads than this never paid.
MOST_CHANNELS = 4
#: Fewer bytes than this say nothing of a guest.
LEAST_SAMPLE = Bytes(64 * 4096)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a sample of pages came to, with one way of compressing them."""

    compression: Compression
    size: Bytes  #: of the sample
    compressed: Bytes
    cpu_s: float  #: that it took, on one CPU

    @property
    def ratio(self) -> float:
        """Return compressed over original size."""
        return self.compressed / max(self.size, 1)

    @property
    def per_cpu(self) -> float:
        """Return how many original bytes one CPU compresses in a second."""
        return self.size / max(self.cpu_s, 1e-9)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What to do, and why in one clause."""

    compression: Compression
    channels: int | None
    why: str


def choose_compression(link: BytesPerSecond | None, samples: Sequence[Sample], free_cpus: int) -> Chosen:
    """Return whether to compress, and with what: the one with which most of the guest's memory gets through.

    Args:
        link: what the link carries; None: nobody knows.
        samples: of the ways that both QEMUs have; may be empty.
        free_cpus: of the source, that the guest itself does not have.
    """
    if link is None:
        return _none("nobody knows how fast the link is; `vmferry host probe` measures it")
    if not samples or min(sample.size for sample in samples) < LEAST_SAMPLE:
        return _none("there are too few pages that are not zero to sample")
    channels = max(1, min(free_cpus, MOST_CHANNELS))
    best = max(samples, key=lambda sample: _through(sample, link, channels))
    rate = _through(best, link, channels)
    told = (
        f"{best.compression} makes a sample of {best.size // 4096} pages {100 * best.ratio:.0f} % of its size at"
        f" {format_rate(best.per_cpu)} per CPU: {format_rate(rate)} of memory instead of {format_rate(link)}"
    )
    if rate < LEAST_GAIN * link:
        return _none(f"{told}, too little gain")
    return Chosen(best.compression, max(channels, DEFAULT_CHANNELS), told)


def _through(sample: Sample, link: BytesPerSecond, channels: int) -> float:
    """Return how much of the guest's memory gets through in a second: as the CPUs compress it, as the link takes it."""
    return min(channels * sample.per_cpu, link / max(sample.ratio, 1e-3))


def _none(why: str) -> Chosen:
    return Chosen(Compression.NONE, None, why)
