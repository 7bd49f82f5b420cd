"""How much of a stream may wait unsent in the source's kernel.

What waits there goes out before the last pages and the device state, and is part of the gap; QEMU counts it as sent.
Left alone, TCP lets 2 MiB wait: 0.17 s at 100 Mbit/s (docs/design/qemu-driver.md, "What waits in the kernel").
"""

from __future__ import annotations

from vmferry.core.units import KIB, Bytes, BytesPerSecond

#: Long enough for QEMU to be woken and write more before the link runs dry.
_LASTS_MS = 20
_LEAST = Bytes(256 * KIB)


def most_unsent(link: BytesPerSecond) -> Bytes:
    """Return what lasts a link for about 20 ms; 256 KiB at the least."""
    return Bytes(max(_LEAST, link * _LASTS_MS // 1000))
