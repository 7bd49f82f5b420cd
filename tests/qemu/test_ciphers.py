"""The cipher of a stream is the one that the host's CPU has instructions for, asked of GnuTLS in its own words."""

from __future__ import annotations

import pytest

from vmferry.qemu.ciphers import priority

AES_FIRST = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+CHACHA20-POLY1305"
CHACHA_FIRST = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+CHACHA20-POLY1305:+AES-128-GCM"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu aes avx pclmulqdq vaes\n\n", AES_FIRST),
        ("processor\t: 0\nFeatures\t: fp asimd aes pmull sha2\n\n", AES_FIRST),
        ("processor\t: 0\nflags\t\t: fpu aes avx\n\n", CHACHA_FIRST),  # it would multiply bit by bit
        ("processor\t: 0\nflags\t\t: fpu sse2 vaes_of_somebody\n\n", CHACHA_FIRST),
        ("", CHACHA_FIRST),
        ("no rows at all", CHACHA_FIRST),
    ],
)
def test_priority_follows_the_cpu(cpuinfo: str, expected: str) -> None:
    """AES comes first where it is fast; both are offered everywhere, so any two hosts agree."""
    assert priority(cpuinfo) == expected
