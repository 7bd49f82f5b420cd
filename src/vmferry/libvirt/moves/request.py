"""What is asked of a move in libvirt's flags and parameters; what cannot be had is a blocker, or left out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vmferry.core.capabilities import Compression, StreamWish, Transport
from vmferry.core.capabilities.features import version_text
from vmferry.core.errors import Blocker
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.libvirt.moves import terms
from vmferry.libvirt.moves.terms import Need, Term, Version

Value = int | str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """How a domain shall move.

    Attributes:
        stream: as for a guest of ours; what libvirt cannot do of it is a blocker.
        bandwidth: most that it may take; None: no limit.
        postcopy: it may be begun.
        auto_converge: QEMU may slow the guest down.
        disks: targets (`vda`) of the disks that are copied.
        is_persistent: the domain is defined at the source, so it shall be at the destination and not at the source.
        destination_xml: the domain as it shall be there; None: as it is.
        stream_uri: where QEMU sends to (`tcp://ADDRESS`); None: libvirt takes the destination's host name.
    """

    stream: StreamWish
    bandwidth: BytesPerSecond | None = None
    postcopy: bool = False
    auto_converge: bool = False
    disks: tuple[str, ...] = ()
    is_persistent: bool = False
    destination_xml: str | None = None
    stream_uri: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What libvirt is told."""

    flags: tuple[str, ...] = ()  #: without VIR_MIGRATE_
    parameters: Mapping[str, Value] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()  #: a sentence each
    blockers: tuple[Blocker, ...] = ()  #: not empty: the move is not to start


def make_request(wish: Wish, version: Version) -> Request:
    """Return what libvirt is told, all blockers at once.

    Args:
        wish: what is asked for.
        version: the older one of the two daemons'.
    """
    blockers, flags = list(_cannot(wish.stream)), []
    parameters: dict[str, Value] = {}
    left_out: list[str] = []
    for term, value, need in _asked(wish):
        if version >= term.since:
            if value is None:
                flags.append(term.name)
            else:
                parameters[term.name] = value
            continue
        old = f"libvirt {version_text(version)} is too old for {term.what} ({term.name}, {version_text(term.since)})"
        if need is Need.REQUIRED:
            fix = f"update libvirt on both hosts to {version_text(term.since)} or newer, or do without"
            blockers.append(Blocker("libvirt.too-old", old, fix))
        else:
            left_out.append(old)
    return Request(tuple(flags), parameters, tuple(left_out), tuple(blockers))


def mib_per_second(bandwidth: BytesPerSecond) -> int:
    """Return a bandwidth in libvirt's unit: never more than asked, and at least 1 (0 would be no limit)."""
    return max(1, bandwidth // MIB)


def _asked(wish: Wish) -> Iterator[tuple[Term, Value | None, Need]]:
    """Yield what is asked for; None is the value of a flag."""
    stream, required, preferred = wish.stream, Need.REQUIRED, Need.PREFERRED
    limit = None if wish.bandwidth is None else mib_per_second(wish.bandwidth)
    channels = next((one.value for one in stream.wanted if one.name == "multifd-channels"), None)
    compression = stream.compression if stream.compression not in (Compression.NONE, Compression.AUTO) else None
    compressed = terms.COMPRESSION if compression is Compression.XBZRLE else terms.CHANNEL_COMPRESSION
    flags: tuple[tuple[bool, Term, Need], ...] = (
        (True, terms.LIVE, required),
        (True, terms.PEER2PEER, required),
        (True, terms.CHANGE_PROTECTION, preferred),
        (True, terms.ABORT_ON_ERROR, preferred),
        (wish.is_persistent, terms.PERSIST_DEST, required),
        (wish.is_persistent, terms.UNDEFINE_SOURCE, required),
        (stream.encrypted, terms.TLS, required),
        (wish.postcopy, terms.POSTCOPY, required),
        (wish.auto_converge, terms.AUTO_CONVERGE, preferred),
        (bool(wish.disks), terms.NON_SHARED_DISK, required),
        (channels is not None, terms.PARALLEL, required),
        (compression is not None, terms.COMPRESSED, required),
    )
    parameters: tuple[tuple[Term, Value | None], ...] = (
        (terms.MIGRATE_DISKS, wish.disks or None),
        (terms.BANDWIDTH, limit),
        (terms.BANDWIDTH_POSTCOPY, limit if wish.postcopy else None),
        (terms.DESTINATION_XML, wish.destination_xml),
        (terms.STREAM_URI, wish.stream_uri),
        (terms.CHANNELS, channels),
        (compressed, compression),
    )
    yield from ((term, None, need) for is_asked, term, need in flags if is_asked)
    yield from ((term, value, required) for term, value in parameters if value is not None)


#: What libvirt passes on; of channels zlib and zstd.
_COMPRESSIONS = (Compression.NONE, Compression.AUTO, Compression.XBZRLE, Compression.ZLIB, Compression.ZSTD)


def _cannot(stream: StreamWish) -> Iterator[Blocker]:
    """Yield what libvirt has no words for, whatever its version."""
    if stream.transport is not Transport.TCP:
        asked = f"--pipeline {stream.pipeline}" if stream.pipeline else f"--link {stream.link}"
        yield Blocker("libvirt.link", f"libvirt moves its guests over TCP, not by {asked}", f"leave {asked} out")
    if stream.qemu_encrypts and not stream.by_certificates:
        yield Blocker(
            "libvirt.encryption",
            "libvirt has QEMU encrypt by certificates only, not by a key of the move's own",
            "move with --encryption x509 (certificates in /etc/pki/qemu on both hosts), or with --plain",
        )
    if stream.compression not in _COMPRESSIONS:
        yield Blocker(
            "libvirt.compression",
            f"libvirt cannot be told to compress by {stream.compression}",
            f"take one of {', '.join(_COMPRESSIONS)}",
        )
