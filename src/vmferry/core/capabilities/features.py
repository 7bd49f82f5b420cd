"""What can be asked of a stream: capabilities, compressions, parameters, transports, each with its history. A table.

Whether a QEMU has one is asked over QMP (`QemuFacts`); the versions here are for people and for the page.
The order of the table is the order in which wishes are granted: see `choose`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmferry.core.units import KIB, MIB

#: (major, minor) or longer; tuples of different lengths compare as versions do.
Version = tuple[int, ...]
_HUGE = 1 << 62
Value = int | str  #: of a parameter; bool is an int


class Kind(enum.StrEnum):
    """What a feature is to QEMU."""

    CAPABILITY = "capability"  #: `migrate-set-capabilities`
    COMPRESSION = "compression"  #: a value of the parameter `multifd-compression`
    PARAMETER = "parameter"  #: `migrate-set-parameters`
    TRANSPORT = "transport"  #: what the URI names; given, not wished
    GIVEN = "given"  #: a fact of the guest or of the order; given, not wished


@dataclass(frozen=True, slots=True)
class Range:
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int
    power_of_two: bool = False

    def allows(self, value: Value | None) -> bool:
        """Tell whether QEMU takes this value."""
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            return False
        return not self.power_of_two or value & (value - 1) == 0

    def __str__(self) -> str:
        span = f"{self.low} or more" if self.high >= _HUGE else f"{self.low} to {self.high}"
        return span + (", a power of two" if self.power_of_two else "")


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some words."""

    words: tuple[Value, ...]

    def allows(self, value: Value | None) -> bool:
        """Tell whether QEMU takes this value."""
        return any(type(word) is type(value) and word == value for word in self.words)

    def __str__(self) -> str:
        return ", ".join(str(word).lower() for word in self.words)


@dataclass(frozen=True, slots=True)
class Feature:
    """One row: what it is, since when, and until when."""

    name: str  #: as in QAPI; compressions as `multifd-` and their value, transports as in the URI
    kind: Kind
    since: Version
    what: str
    removed: Version | None = None  #: first version without it
    never: str | None = None  #: why we never choose it although QEMU may have it
    values: Range | Choice | None = None  #: of a parameter
    default: Value | None = None  #: of a parameter, in a fresh QEMU of every version that has it


def _capability(name: str, since: Version, what: str, removed: Version | None = None) -> Feature:
    return Feature(name, Kind.CAPABILITY, since, what, removed)


def _never(name: str, since: Version, what: str, why: str, removed: Version | None = None) -> Feature:
    return Feature(name, Kind.CAPABILITY, since, what, removed, never=why)


def _parameter(name: str, since: Version, values: Range | Choice, default: Value, what: str) -> Feature:
    return Feature(name, Kind.PARAMETER, since, what, values=values, default=default)


def _given(name: str, since: Version, what: str, kind: Kind = Kind.TRANSPORT) -> Feature:
    return Feature(name, kind, since, what)


_PERCENT = Range(1, 99)
_SIZE = Range(0, (1 << 63) - 1)

#: Source: qapi/migration.json of QEMU 7.2, 9.1 and 10.0; defaults as fresh 7.2 and 10.0 answer.
FEATURES: tuple[Feature, ...] = (
    # What the way is made of: given.
    _given("tcp", (0, 12), "sockets over a network; several channels"),
    _given("unix", (0, 12), "local sockets; several channels"),
    _given("fd", (0, 12), "one connected socket that the agent hands over; both directions"),
    _given("pipe", (0, 12), "`fd:` with a pipe or a file: one direction"),
    Feature(
        *("exec", Kind.TRANSPORT, (0, 12), "a command that QEMU starts; most carry one direction"),
        never="QEMU runs with spawn=deny: 10.0 gets EPERM, 7.2 dies of it; have the agent run the command (fd, pipe)",
    ),
    _given("file", (8, 2), "a file that QEMU opens; one direction, seekable, no destination that runs meanwhile"),
    _given("rdma", (1, 3), "memory to memory through an RDMA device"),
    _given("tls", (2, 7), "TLS by QEMU itself (`tls-creds`)", Kind.GIVEN),
    # The hand-over itself.
    _capability("events", (2, 4), "MIGRATION and MIGRATION_PASS events"),
    _capability("return-path", (2, 10), "the destination's own word, also without post-copy"),
    _capability("pause-before-switchover", (2, 11), "a moment to hold before the last pages"),
    _capability("late-block-activate", (3, 0), "the destination leaves the disks alone until it is started"),
    _capability("validate-uuid", (4, 2), "the destination refuses another guest's stream"),
    # To arrive at all.
    _capability("postcopy-ram", (2, 6), "the guest may start at the destination before all its memory is there"),
    _parameter("max-postcopy-bandwidth", (3, 0), _SIZE, 0, "bytes/s of the background stream; 0 = no limit"),
    _capability("postcopy-preempt", (7, 1), "a page that the guest waits for overtakes the others"),
    _capability("postcopy-blocktime", (3, 0), "measures how long vCPUs waited for pages"),
    _capability("switchover-ack", (8, 1), "the switchover waits until the destination's devices are ready"),
    _never("dirty-limit", (8, 1), "slows down the vCPUs that write most", "nothing bounds how long a vCPU stalls"),
    Feature(
        *("vcpu-dirty-limit", Kind.PARAMETER, (8, 1), "MB/s that one vCPU may write"),
        never="it belongs to dirty-limit",
        values=Range(1, (1 << 63) - 1),
        default=1,
    ),
    _capability("auto-converge", (1, 6), "slows down all vCPUs, more and more"),
    _parameter("throttle-trigger-threshold", (5, 0), Range(1, 100), 50, "% of the sent bytes dirtied: throttle"),
    _parameter("cpu-throttle-initial", (2, 7), _PERCENT, 20, "% of the time that vCPUs sleep, at first"),
    _parameter("cpu-throttle-increment", (2, 7), _PERCENT, 10, "% more in each round that does not help"),
    _parameter("cpu-throttle-tailslow", (5, 1), Choice((False, True)), default=False, what="smaller steps at the end"),
    _parameter("max-cpu-throttle", (3, 1), _PERCENT, 99, "% of the time that vCPUs sleep, at most"),
    # To arrive sooner.
    _capability("mapped-ram", (9, 0), "each page has its own place in the file"),
    _capability("multifd", (4, 0), "several channels with a thread each"),
    _parameter("multifd-channels", (4, 0), Range(1, 255), 2, "how many"),
    Feature("multifd-zstd", Kind.COMPRESSION, (5, 0), "multifd channels compress with zstd"),
    _parameter("multifd-zstd-level", (5, 0), Range(0, 20), 1, "1 fast, 20 small"),
    Feature("multifd-zlib", Kind.COMPRESSION, (5, 0), "multifd channels compress with zlib"),
    _parameter("multifd-zlib-level", (5, 0), Range(0, 9), 1, "1 fast, 9 small"),
    Feature("multifd-qpl", Kind.COMPRESSION, (9, 1), "multifd channels compress with Intel's In-Memory Analytics"),
    Feature("multifd-uadk", Kind.COMPRESSION, (9, 1), "multifd channels compress with an accelerator of Kunpeng"),
    Feature("multifd-qatzip", Kind.COMPRESSION, (9, 2), "multifd channels compress with Intel's QuickAssist"),
    _capability("zero-copy-send", (7, 1), "the kernel sends from the guest's memory, without a copy"),
    _parameter(
        *("zero-page-detection", (9, 0), Choice(("none", "legacy", "multifd")), "multifd"),
        "which thread looks for pages of zeros",
    ),
    _capability("xbzrle", (1, 2), "pages sent again go as a difference"),
    _parameter(
        *("xbzrle-cache-size", (2, 11), Range(4 * KIB, _HUGE, power_of_two=True), 64 * MIB),
        "bytes of old pages kept for it",
    ),
    _capability("rdma-pin-all", (2, 0), "all memory is pinned before the first page"),
    _parameter("avail-switchover-bandwidth", (8, 2), _SIZE, 0, "bytes/s to reckon with at the switchover; 0 = QEMU's"),
    # For other purposes than moving a guest.
    _capability("dirty-bitmaps", (2, 12), "named dirty bitmaps of disks go along"),
    _capability("background-snapshot", (6, 0), "saves the guest as it was at the start, while it runs on"),
    # Known, and never chosen.
    _never("release-ram", (2, 9), "frees pages at the source during post-copy", "a broken post-copy cannot be resumed"),
    _never("zero-blocks", (1, 2), "blocks of zeros of block migration", "it belongs to block migration"),
    _never("compress", (2, 4), "compression of the single channel", "multifd compresses better", (9, 1)),
    _never("block", (2, 11), "disks in the stream", "disks go over NBD", (9, 1)),
    _never("x-colo", (2, 8), "never-ending replication", "experimental, and it never ends"),
    _never("x-ignore-shared", (4, 0), "leaves shared memory out", "experimental: the memory must be there already"),
)

BY_NAME = {feature.name: feature for feature in FEATURES}
ORDER = {feature.name: place for place, feature in enumerate(FEATURES)}

COMPRESSION_PARAMETER = "multifd-compression"
COMPRESSION_PREFIX = "multifd-"
#: Names of all compressions of multifd channels.
COMPRESSIONS = tuple(feature.name for feature in FEATURES if feature.kind is Kind.COMPRESSION)
NO_COMPRESSION = "none"


def version_text(version: Version) -> str:
    """Return a version as people write it."""
    return ".".join(map(str, version))
