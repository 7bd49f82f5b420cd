"""Which cipher an encrypted stream gets: the one that this host's CPU has instructions for.

GnuTLS asked for nothing would take ChaCha20, which no CPU has instructions for: a key of ours goes with SHA-256, and of
the suites with that hash ChaCha20 comes first in its list. A stream was seen to send 100 MiB/s then, and 180 MiB/s with
AES (docs/design/qemu-driver.md). The side that connects decides, by the order of its list.

Source: GnuTLS manual, "Priority strings"; RFC 8446 section 4.2.11 (a key is bound to a hash) and appendix B.4.
"""

from __future__ import annotations

import functools
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
#: The CPU multiplies without carry and does AES: x86, and ARM.
_HARDWARE = (frozenset({"aes", "pclmulqdq"}), frozenset({"aes", "pmull"}))
_AES, _CHACHA = "AES-128-GCM", "CHACHA20-POLY1305"


def priority(cpuinfo: str) -> str:
    """Return GnuTLS's priority string for a host: TLS 1.3 only, and the faster cipher first.

    Args:
        cpuinfo: the text of /proc/cpuinfo; nothing in it: the CPU counts as one without AES.
    """
    rows = (line.partition(":") for line in cpuinfo.splitlines())
    flags = next((frozenset(value.split()) for name, _, value in rows if name.strip() in ("flags", "Features")), None)
    has_aes = flags is not None and any(needed <= flags for needed in _HARDWARE)
    first, second = (_AES, _CHACHA) if has_aes else (_CHACHA, _AES)
    return f"NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+{first}:+{second}"


@functools.cache
def cipher_priority() -> str:
    """Return it for this host."""
    try:
        return priority(_CPUINFO.read_text())
    except OSError:
        return priority("")
