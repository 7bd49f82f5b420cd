"""What excludes what, and what needs what, per QEMU version: our own table, stricter than QEMU. Pure data.

QEMU checks these in `migrate_caps_check`, in `migrate_params_check` and when a migration starts, each version some
more. What an older version accepts and fails at later is refused here for that version too.
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass

from vmferry.core.capabilities.features import COMPRESSIONS, Version


class Verdict(enum.StrEnum):
    """What a QEMU of that version does with it."""

    REFUSED = "refused"  #: says no, when it is set or when the migration starts
    FAILS = "accepted, fails later"  #: the migration fails or hangs, or a process dies
    IGNORED = "accepted, without effect"  #: the migration runs, one of the two does nothing
    OURS = "our choice"  #: QEMU may do it; we do not


@dataclass(frozen=True, slots=True)
class Span:
    """The versions from `since` to before `until`, and what they do."""

    verdict: Verdict
    since: Version = ()
    until: Version | None = None  #: None = no version can do it yet

    def covers(self, version: Version) -> bool:
        """Tell whether this is one of the versions."""
        return self.since <= version and (self.until is None or version < self.until)


class Ruled:
    """Anything that holds for spans of versions."""

    __slots__ = ()
    spans: tuple[Span, ...]

    def verdict(self, version: Version) -> Verdict | None:
        """Return what this version does; None: the rule does not hold for it."""
        return next((span.verdict for span in self.spans if span.covers(version)), None)


@dataclass(frozen=True, slots=True)
class Exclusion(Ruled):
    """Two that must not be together."""

    one: str
    other: str
    why: str
    source: str
    spans: tuple[Span, ...]
    unless: str | None = None  #: with this one on, both go together


@dataclass(frozen=True, slots=True)
class Requirement(Ruled):
    """One that needs another."""

    user: str
    needs: str
    why: str
    source: str
    spans: tuple[Span, ...]


class Resource(enum.StrEnum):
    """What a host must offer, found out by somebody who looked; what nobody looked at is not there."""

    USERFAULTFD = "userfaultfd for QEMU's user"
    WRITE_PROTECTION = "userfaultfd with write protection"
    LOCKED_MEMORY = "a limit of locked memory as large as the guest"
    RDMA_DEVICE = "an RDMA device"


@dataclass(frozen=True, slots=True)
class HostNeed:
    """One that needs something of a host."""

    user: str
    resource: Resource
    at_source: bool
    at_destination: bool
    source: str

    @property
    def where(self) -> str:
        """Return the sides that need it, in words."""
        sides = (("source", self.at_source), ("destination", self.at_destination))
        return " and ".join(side for side, concerned in sides if concerned)


_CAPS = "migration/options.c, migrate_caps_check"
_PARAMS = "migration/options.c, migrate_params_check"
_START = "migration/migration.c, migration_channels_and_transport_compatible"
_RDMA = "migration/options.c, migrate_rdma_caps_check"
_SCHEMA = "qapi/migration.json"
_TRIED = "tried on 7.2 and 10.0, where they have it"

_REFUSED = (Span(Verdict.REFUSED),)
_FAILS = (Span(Verdict.FAILS),)
_IGNORED = (Span(Verdict.IGNORED),)
_OURS = (Span(Verdict.OURS),)


def _until(version: Version, before: Verdict, end: Version | None = None) -> tuple[Span, ...]:
    """Return: accepted and bad before that version, refused from it on, fine from `end` on."""
    return Span(before, (), version), Span(Verdict.REFUSED, version, end)


_LATE = _until((8, 0), Verdict.FAILS)
_ONE_CHANNEL = "one channel is all that it has"
_NO_WAY_BACK = "nothing comes back through it"

_SNAPSHOT = tuple(
    Exclusion("background-snapshot", other, "the guest runs on at the source, there is no switchover", _CAPS, _REFUSED)
    for other in (
        *("postcopy-ram", "dirty-bitmaps", "postcopy-blocktime", "late-block-activate", "return-path", "multifd"),
        *("pause-before-switchover", "auto-converge", "rdma-pin-all", "xbzrle", "validate-uuid", "zero-copy-send"),
    )
)

_CHANNELS = (
    *(
        Exclusion(user, way, _ONE_CHANNEL, f"{_START}; {_TRIED}", _LATE)
        for user in ("multifd", "postcopy-preempt")
        for way in ("fd", "pipe", "exec")
    ),
    *(Exclusion(user, "rdma", _ONE_CHANNEL, _START, _LATE) for user in ("multifd", "postcopy-preempt")),
    Exclusion("multifd", "file", _ONE_CHANNEL, f"{_START}; {_TRIED}", _REFUSED, unless="mapped-ram"),
    Exclusion("postcopy-preempt", "file", _ONE_CHANNEL, f"{_START}; {_TRIED}", _REFUSED),
)

_ONE_WAY = tuple(
    Exclusion(user, way, _NO_WAY_BACK, f"{source}; {_TRIED}", _FAILS)
    for user, source in (
        ("return-path", "migration/migration.c, open_return_path_on_source"),
        ("postcopy-ram", "migration/migration.c, open_return_path_on_source"),
        ("tls", "migration/tls.c: the handshake needs answers"),
    )
    for way in ("pipe", "exec", "file")
)

EXCLUSIONS: tuple[Exclusion, ...] = (
    Exclusion(
        *("postcopy-ram", "multifd", "multifd channels do not carry post-copy pages"),
        f"{_CAPS}; tried on 7.2: the source completes, the destination dies (yank.c, QLIST_EMPTY)",
        _until((8, 0), Verdict.FAILS, (10, 1)),
    ),
    Exclusion(
        *("multifd", "xbzrle", "multifd sends whole pages"),
        f"{_CAPS}; tried on 7.2: no page reaches the cache of xbzrle",
        _until((8, 2), Verdict.IGNORED),
    ),
    Exclusion("mapped-ram", "xbzrle", "a page has one place in the file", _CAPS, _REFUSED),
    Exclusion("postcopy-ram", "mapped-ram", "a file answers no requests", _CAPS, _REFUSED),
    *(
        Exclusion("mapped-ram", one, "a page has its full place in the file", f"{_START}; zstd: {_TRIED}", _REFUSED)
        for one in COMPRESSIONS
    ),
    Exclusion("mapped-ram", "tls", "pages are written at places, not as a stream", f"{_START}; {_TRIED}", _REFUSED),
    *(
        Exclusion(one, other, "one parameter holds one of them", _SCHEMA, _OURS)
        for one, other in itertools.combinations(COMPRESSIONS, 2)
    ),
    *(
        Exclusion("zero-copy-send", one, "what is compressed is a copy", f"{_CAPS}; {_PARAMS}", _REFUSED)
        for one in COMPRESSIONS
    ),
    Exclusion("zero-copy-send", "tls", "what is encrypted is a copy", f"{_CAPS}; {_PARAMS}", _REFUSED),
    Exclusion("zero-copy-send", "xbzrle", "a difference is a copy", _CAPS, _REFUSED),
    Exclusion("zero-copy-send", "unix", "the kernel has it for TCP only", f"io/channel-socket.c; {_TRIED}", _FAILS),
    Exclusion("xbzrle", "rdma", "RDMA writes whole pages", _RDMA, _until((8, 2), Verdict.IGNORED)),
    Exclusion(
        *("postcopy-ram", "rdma", "post-copy over RDMA was given up in 10.1"),
        f"{_RDMA}; before 10.1 never tried by us",
        _until((10, 1), Verdict.OURS),
    ),
    Exclusion(
        *("return-path", "rdma", "when the link breaks, QEMU waits for an answer for ever, and the guest stands still"),
        "migration/rdma.c; tried on 7.2, which fails at once, and on 10.0, which hangs",
        _FAILS,
    ),
    Exclusion("tls", "rdma", "the RDMA channel is never encrypted", "migration/rdma.c", _IGNORED),
    *_SNAPSHOT,
    *_CHANNELS,
    *_ONE_WAY,
)


def _without(user: str, needs: str, why: str) -> Requirement:
    return Requirement(user, needs, why, _SCHEMA, _IGNORED)


REQUIREMENTS: tuple[Requirement, ...] = (
    Requirement("postcopy-preempt", "postcopy-ram", "it is a mode of post-copy", _CAPS, _REFUSED),
    Requirement("switchover-ack", "return-path", "the destination has to answer", _CAPS, _REFUSED),
    Requirement("zero-copy-send", "multifd", "only multifd channels have it", _CAPS, _REFUSED),
    Requirement("mapped-ram", "file", "it needs a file that can be written at any place", _START, _REFUSED),
    _without("postcopy-blocktime", "postcopy-ram", "there is nothing else to measure"),
    _without("max-postcopy-bandwidth", "postcopy-ram", "it limits post-copy only"),
    _without("multifd-channels", "multifd", "a plain stream has one channel"),
    *(_without(one, "multifd", "the single channel does not compress") for one in COMPRESSIONS),
    _without("multifd-zstd-level", "multifd-zstd", "nothing else compresses"),
    _without("multifd-zlib-level", "multifd-zlib", "nothing else compresses"),
    _without("xbzrle-cache-size", "xbzrle", "nothing else has this cache"),
    *(
        _without(name, "auto-converge", "it says how much to slow down")
        for name in (
            *("throttle-trigger-threshold", "cpu-throttle-initial", "cpu-throttle-increment"),
            *("cpu-throttle-tailslow", "max-cpu-throttle"),
        )
    ),
    _without("rdma-pin-all", "rdma", "it pins for the RDMA device"),
)

HOST_NEEDS: tuple[HostNeed, ...] = (
    HostNeed(
        *("postcopy-ram", Resource.USERFAULTFD),
        at_source=False,
        at_destination=True,
        source="migration/postcopy-ram.c, postcopy_ram_supported_by_host",
    ),
    HostNeed("background-snapshot", Resource.WRITE_PROTECTION, at_source=True, at_destination=False, source=_CAPS),
    HostNeed("zero-copy-send", Resource.LOCKED_MEMORY, at_source=True, at_destination=False, source=_SCHEMA),
    HostNeed("rdma", Resource.RDMA_DEVICE, at_source=True, at_destination=True, source="migration/rdma.c"),
    HostNeed("rdma", Resource.LOCKED_MEMORY, at_source=True, at_destination=True, source="migration/rdma.c; tried"),
)
