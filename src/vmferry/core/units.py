"""Units that the type checker sees: no bare number crosses a module's edge.

A name carries its unit as suffix (``downtime_limit_ms``) and its type says it again. QEMU mixes
Mbit/s, bytes/s, ms and us; ``qemu/`` converts once, everything else uses these.
"""

from __future__ import annotations

from typing import NewType

Bytes = NewType("Bytes", int)
BytesPerSecond = NewType("BytesPerSecond", int)
Milliseconds = NewType("Milliseconds", float)
Nanoseconds = NewType("Nanoseconds", int)
Pages = NewType("Pages", int)
Percent = NewType("Percent", int)

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


def format_bytes(value: int) -> str:
    """Return a byte count as people read it, in binary units with one decimal, e.g. ``1.5 GiB``."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(value) >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value} B"


def format_rate(bytes_per_second: float) -> str:
    """Return a rate in MiB/s with one decimal, the unit in which links and guests are compared here."""
    return f"{bytes_per_second / MIB:.1f} MiB/s"


def format_ms(milliseconds: float) -> str:
    """Return a duration as people read it: ms below a second, seconds above."""
    if milliseconds < 1000:
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds / 1000:.2f} s"
