"""What libvirt can be asked for in a move, since when, and what becomes of a wish that it is too old for. A table.

Source: libvirt include/libvirt/libvirt-domain.h and NEWS.rst; the names of parameters are the API's own words.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

Version = tuple[int, int, int]


class Need(enum.StrEnum):
    """What a wish is worth."""

    REQUIRED = "required"  #: without it the move would be another one than was asked for
    PREFERRED = "preferred"  #: left out where libvirt does not know it, and told


@dataclass(frozen=True, slots=True)
class Term:
    """One flag or one parameter."""

    name: str  #: of a flag what stands behind VIR_MIGRATE_; of a parameter the API's word
    since: Version
    what: str


def _flag(name: str, since: Version, what: str) -> Term:
    return Term(name, since, what)


LIVE = _flag("LIVE", (0, 3, 2), "the guest runs meanwhile")
PEER2PEER = _flag("PEER2PEER", (0, 7, 2), "the source's daemon talks to the destination's")
PERSIST_DEST = _flag("PERSIST_DEST", (0, 7, 3), "the domain is defined at the destination")
UNDEFINE_SOURCE = _flag("UNDEFINE_SOURCE", (0, 7, 3), "the domain is undefined at the source")
PAUSED = _flag("PAUSED", (0, 7, 3), "the domain stands still at the destination")
UNSAFE = _flag("UNSAFE", (0, 9, 11), "storage that libvirt does not know for shared")
NON_SHARED_DISK = _flag("NON_SHARED_DISK", (0, 8, 2), "disks are copied")
CHANGE_PROTECTION = _flag("CHANGE_PROTECTION", (0, 9, 4), "nobody changes the domain meanwhile")
ABORT_ON_ERROR = _flag("ABORT_ON_ERROR", (1, 0, 1), "an I/O error of the guest ends the move")
COMPRESSED = _flag("COMPRESSED", (1, 0, 3), "pages are compressed")
AUTO_CONVERGE = _flag("AUTO_CONVERGE", (1, 2, 3), "QEMU slows a guest down that writes too fast")
POSTCOPY = _flag("POSTCOPY", (1, 3, 3), "post-copy may be begun")
TLS = _flag("TLS", (3, 2, 0), "QEMU encrypts, by the hosts' certificates")
PARALLEL = _flag("PARALLEL", (5, 2, 0), "several channels")

#: Nobody asks for it: libvirt has it by itself from then on, and then QEMU's since 7.1 do (NEWS.rst of 10.0.0).
PREEMPT = Term("postcopy-preempt", (10, 0, 0), "pages that the guest waits for overtake the others in post-copy")

BANDWIDTH = Term("bandwidth", (1, 1, 0), "MiB/s of the stream")
STREAM_URI = Term("migrate_uri", (1, 1, 0), "where the stream goes")
DESTINATION_XML = Term("destination_xml", (1, 1, 0), "the domain as it is at the destination")
MIGRATE_DISKS = Term("migrate_disks", (1, 2, 17), "which disks are copied")
COMPRESSION = Term("compression", (1, 3, 4), "by what pages are compressed")
PERSISTENT_XML = Term("persistent_xml", (1, 3, 4), "the domain as it is defined at the destination")
LISTEN_ADDRESS = Term("listen_address", (1, 1, 4), "where the destination listens")
DISKS_PORT = Term("disks_port", (1, 3, 3), "the port for copied disks")
DISKS_URI = Term("disks_uri", (6, 8, 0), "where copied disks go")
XBZRLE_CACHE = Term("compression.xbzrle.cache", (1, 3, 4), "bytes that are kept of pages sent before")
ZLIB_LEVEL = Term("compression.zlib.level", (9, 4, 0), "how hard zlib tries")
ZSTD_LEVEL = Term("compression.zstd.level", (9, 4, 0), "how hard zstd tries")
CONVERGE_INITIAL = Term("auto_converge.initial", (2, 0, 0), "percent that the brake begins with")
CONVERGE_INCREMENT = Term("auto_converge.increment", (2, 0, 0), "percent by which the brake is pulled harder")
TLS_DESTINATION = Term("tls.destination", (6, 0, 0), "the name in the destination's certificate")
BANDWIDTH_POSTCOPY = Term("bandwidth.postcopy", (5, 1, 0), "MiB/s of the pages that follow in post-copy")
CHANNELS = Term("parallel.connections", (5, 2, 0), "how many channels")

#: The same word, with values that it has known since then.
CHANNEL_COMPRESSION = Term("compression", (9, 4, 0), "zlib and zstd for channels")


def version_of(number: int) -> Version:
    """Return a version as libvirt packs it into a number."""
    return number // 1_000_000, number // 1000 % 1000, number % 1000
