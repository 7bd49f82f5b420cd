"""What is asked of a move in libvirt's flags and parameters; what cannot be had is a blocker, or left out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from vmferry.core.capabilities import Compression, StreamWish, Transport
from vmferry.core.capabilities.features import version_text
from vmferry.core.convergence import throttle
from vmferry.core.errors import Blocker
from vmferry.core.units import MIB, BytesPerSecond, Percent
from vmferry.libvirt.moves import terms
from vmferry.libvirt.moves.terms import Need, Term, Version
from vmferry.libvirt.moves.tuning import DIRECT, Tuning, postcopy_limit

Value = int | str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """How a domain shall move.

    Attributes:
        stream: as for a guest of ours; what libvirt cannot do of it is a blocker.
        bandwidth: most that it may take; None: no limit.
        postcopy: it may be begun.
        auto_converge: QEMU may slow the guest down.
        brake: percent that this begins with, and then goes on as slowly as may be; 0: as QEMU sees fit.
        disks: targets (`vda`) of the disks that are copied.
        held: it stands still at the destination until the source has no process of it any more; whoever has it moved
            lets it run then.
        is_persistent: the domain is defined at the source, so it shall be at the destination and not at the source,
            unless `tuning` says otherwise.
        destination_xml: the domain as it shall be there; None: as it is.
        persistent_xml: the domain as it shall be defined there; None: as it is defined here.
        stream_uri: where QEMU sends to (`tcp://ADDRESS`); None: libvirt takes the destination's host name.
        tuning: what was asked for in libvirt's own words.
    """

    stream: StreamWish
    bandwidth: BytesPerSecond | None = None
    postcopy: bool = False
    auto_converge: bool = False
    brake: Percent = throttle.NONE
    disks: tuple[str, ...] = ()
    held: bool = False
    is_persistent: bool = False
    destination_xml: str | None = None
    persistent_xml: str | None = None
    stream_uri: str | None = None
    tuning: Tuning = field(default_factory=Tuning)

    @property
    def defines(self) -> bool:
        """Whether the domain is defined at the destination."""
        return self.is_persistent if self.tuning.define is None else self.tuning.define

    @property
    def undefines(self) -> bool:
        """Whether the domain is undefined at the source."""
        return self.is_persistent if self.tuning.undefine is None else self.is_persistent and self.tuning.undefine


@dataclass(frozen=True, slots=True)
class Request:
    """What libvirt is told."""

    flags: tuple[str, ...] = ()  #: without VIR_MIGRATE_
    parameters: Mapping[str, Value] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()  #: a sentence each
    blockers: tuple[Blocker, ...] = ()  #: not empty: the move is not to start
    preempts: bool = False  #: pages that the guest waits for overtake the others in post-copy


def make_request(wish: Wish, version: Version) -> Request:
    """Return what libvirt is told, all blockers at once.

    Args:
        wish: what is asked for.
        version: the older one of the two daemons'.
    """
    blockers, flags = [*_cannot(wish.stream), *_idle(wish), *_unheld(wish)], []
    parameters: dict[str, Value] = {}
    left_out: list[str] = []
    for term, value, need in _asked(wish):
        if version >= term.since:
            if value is None:
                flags.append(term.name)
            else:
                parameters[term.name] = value
            continue
        old = _too_old(version, term)
        if need is Need.REQUIRED:
            fix = f"update libvirt on both hosts to {version_text(term.since)} or newer, or do without"
            blockers.append(Blocker("libvirt.too-old", old, fix))
        else:
            left_out.append(old)
    preempts = wish.postcopy and version >= terms.PREEMPT.since
    if wish.postcopy and not preempts:
        left_out.append(f"{_too_old(version, terms.PREEMPT)}: it may stand for a second or two once it has left")
    return Request(tuple(flags), parameters, tuple(left_out), tuple(blockers), preempts)


def _too_old(version: Version, term: Term) -> str:
    return f"libvirt {version_text(version)} is too old for {term.what} ({term.name}, {version_text(term.since)})"


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
        (wish.tuning.flow != DIRECT, terms.PEER2PEER, required),
        (True, terms.CHANGE_PROTECTION, preferred),
        (True, terms.ABORT_ON_ERROR, preferred),
        (wish.defines, terms.PERSIST_DEST, required),
        (wish.undefines, terms.UNDEFINE_SOURCE, required),
        (wish.tuning.paused or wish.held, terms.PAUSED, required),
        (wish.tuning.unsafe, terms.UNSAFE, required),
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
        (terms.BANDWIDTH_POSTCOPY, postcopy_limit(wish.tuning, limit) if wish.postcopy else None),
        (terms.DESTINATION_XML, wish.destination_xml),
        (terms.PERSISTENT_XML, wish.persistent_xml if wish.defines else None),
        (terms.STREAM_URI, wish.stream_uri),
        (terms.CHANNELS, channels),
        (compressed, compression),
        (terms.CONVERGE_INITIAL, wish.brake or None),
        (terms.CONVERGE_INCREMENT, 1 if wish.brake else None),
        *((term, value) for term, value in wish.tuning.parameters.items() if term is not terms.BANDWIDTH_POSTCOPY),
    )
    yield from ((term, None, need) for is_asked, term, need in flags if is_asked)
    yield from ((term, value, required) for term, value in parameters if value is not None)


#: parameters -> (whether what they are of is asked for, what that is)
_NEEDS: tuple[tuple[tuple[Term, ...], Callable[[Wish], bool], str], ...] = (
    ((terms.DISKS_PORT, terms.DISKS_URI), lambda wish: bool(wish.disks), "no disk is copied (--copy-disks)"),
    ((terms.TLS_DESTINATION,), lambda wish: wish.stream.encrypted, "nothing is encrypted"),
    ((terms.BANDWIDTH_POSTCOPY,), lambda wish: wish.postcopy, "post-copy is not allowed (--postcopy)"),
    ((terms.XBZRLE_CACHE,), lambda wish: wish.stream.compression is Compression.XBZRLE, "--compression is not xbzrle"),
    ((terms.ZLIB_LEVEL,), lambda wish: wish.stream.compression is Compression.ZLIB, "--compression is not zlib"),
    ((terms.ZSTD_LEVEL,), lambda wish: wish.stream.compression is Compression.ZSTD, "--compression is not zstd"),
    (
        (terms.CONVERGE_INITIAL, terms.CONVERGE_INCREMENT),
        lambda wish: wish.auto_converge,
        "auto-converge is not on (--throttle auto-converge, or a policy that wants it)",
    ),
)


def _idle(wish: Wish) -> Iterator[Blocker]:
    """Yield what was asked for and would do nothing: whoever asked for it expects something."""
    asked = wish.tuning.parameters
    for names, is_there, why in _NEEDS:
        for term in names:
            if term in asked and not is_there(wish):
                told = f"--libvirt {term.name} ({term.what}) would do nothing: {why}"
                yield Blocker("libvirt.idle", told, "leave it out, or ask for what it is of")
    if wish.tuning.held and wish.tuning.paused:
        told = "--libvirt held=yes would do nothing: paused=yes leaves the domain standing still at the destination"
        yield Blocker("libvirt.idle", told, "leave one of the two out")
    if wish.tuning.undefine is not None and not wish.is_persistent:
        told = "--libvirt undefine would do nothing: the domain is transient, so nothing of it stays here"
        yield Blocker("libvirt.idle", told, "leave it out")


def _unheld(wish: Wish) -> Iterator[Blocker]:
    """Yield why a domain cannot be held at its arrival: in post-copy it would stand until the last page is there."""
    if wish.tuning.held and wish.postcopy:
        told = "--libvirt held=yes cannot be had with post-copy: libvirt would hold the domain all through it"
        yield Blocker("libvirt.held", told, "leave --postcopy out, or held=yes")


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
