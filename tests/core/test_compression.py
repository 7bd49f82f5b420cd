"""Whether it pays to compress, by samples and link."""

from __future__ import annotations

import pytest

from vmferry.core.capabilities import Compression
from vmferry.core.compression import LEAST_SAMPLE, Chosen, Sample, choose_compression
from vmferry.core.units import MIB, Bytes, BytesPerSecond

GIGABIT = BytesPerSecond(125_000_000)


def sample(compression: Compression, ratio: float, mib_s: float, size: int = MIB) -> Sample:
    """Return what a sample came to."""
    return Sample(compression, Bytes(size), Bytes(round(size * ratio)), size / (mib_s * MIB))


def chosen(link: BytesPerSecond | None, *samples: Sample, cpus: int = 2) -> Chosen:
    """Decide."""
    return choose_compression(link, samples, cpus)


@pytest.mark.parametrize(
    ("link", "ratio", "mib_s", "cpus", "expected"),
    [
        (GIGABIT, 0.3, 400.0, 2, Compression.ZSTD),
        (GIGABIT, 0.3, 100.0, 1, Compression.NONE),  # the CPU is slower than the link
        (GIGABIT, 0.3, 100.0, 2, Compression.ZSTD),
        (GIGABIT, 0.9, 400.0, 2, Compression.NONE),  # random data
        (BytesPerSecond(1_250_000_000), 0.3, 400.0, 2, Compression.NONE),  # 10 Gbit/s
        (BytesPerSecond(1_250_000_000), 0.3, 500.0, 8, Compression.ZSTD),
        (BytesPerSecond(12_500_000), 0.5, 40.0, 1, Compression.ZSTD),
        (None, 0.1, 9999.0, 8, Compression.NONE),
    ],
)
def test_cpu_and_link_decide(
    link: BytesPerSecond | None, ratio: float, mib_s: float, cpus: int, expected: Compression
) -> None:
    """It pays where the link is the narrow place and stays so when CPUs compress for it."""
    assert chosen(link, sample(Compression.ZSTD, ratio, mib_s), cpus=cpus).compression is expected


def test_the_better_of_two_is_taken() -> None:
    """Smaller is no use when it is slower than the link; faster is none when it is not smaller."""
    fast, small = sample(Compression.ZSTD, 0.4, 400.0), sample(Compression.ZLIB, 0.3, 60.0)
    assert chosen(GIGABIT, fast, small).compression is Compression.ZSTD
    assert chosen(BytesPerSecond(5_000_000), fast, small).compression is Compression.ZLIB


def test_what_cannot_be_judged_is_left_alone() -> None:
    """No samples, or hardly any pages that are not zero."""
    assert chosen(GIGABIT).compression is Compression.NONE
    few = sample(Compression.ZSTD, 0.1, 400.0, size=LEAST_SAMPLE - 4096)
    assert "too few pages" in chosen(GIGABIT, few).why


def test_the_reason_has_the_figures() -> None:
    """A person can follow it."""
    why = chosen(GIGABIT, sample(Compression.ZSTD, 0.25, 400.0)).why
    assert "zstd makes a sample of 256 pages 25 % of its size at 400.0 MiB/s per CPU" in why
    assert "476.8 MiB/s of memory instead of 119.2 MiB/s" in why
