"""The line protocol with the helper in the guest, version 1, as values: pure.

The host speaks first, each line gets one line back. A guest is not trusted: what is not exactly a known answer, with
numbers in range, is garbage and said to be so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Final

from vmferry.core.errors import BadInput, Broken, Refused
from vmferry.core.guest import THROTTLE_PORT
from vmferry.core.units import BytesPerSecond, Milliseconds

#: Of the virtio-serial port, in guest files, on QEMU's command line and in the helper.
PORT_NAME: Final = THROTTLE_PORT
VERSION: Final = 1
#: The helper's largest answer has 300 bytes.
LINE_LIMIT: Final = 512
PAGE_BYTES: Final = 4096

#: Of Clark et al. and of the article.
DEFAULT_WRITES: Final = 40
#: 8 MB/s for each process: less than 100 Mbit/s carry, and no write is held for longer than a video frame or two.
DEFAULT_SLOT_MS: Final = 20
DEFAULT_MAX_STALL_MS: Final = 100
#: Longer than a busy host's hiccup, shorter than anybody's patience; `ThrottleChannel` renews it four times as often.
DEFAULT_LEASE_MS: Final = 2000

_SLOT_RANGE: Final = (1, 1000)
#: Shorter slots cost the helper more than they give the guest.
_LEAST_SLOT_MS: Final = 5
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ERROR: Final = re.compile(r"1 error ([a-z]{1,16}) ([ -~]{0,200})")
#: Another order is in force: its host is gone perhaps, and then it ends with its lease.
_BUSY: Final = "busy"
_ANSWER: Final = re.compile(r"1 (begun|kept|ended|expired|status) (\S{1,64})((?: [a-z_]{1,24}=\d{1,19})+)")


@dataclass(frozen=True, slots=True)
class ThrottleOrder:
    """What the processes in the guest may write while an order is in force.

    Attributes:
        id: names the order, e.g. the hand-over's id: 1 to 64 of A-Z a-z 0-9 . _ -
        writes: pages per slot and process, 1 to 4096.
        slot_ms: length of a slot, 1 to 1000.
        max_stall_ms: no write is held longer, whatever the budget says; from slot_ms to 10000.
        lease_ms: without a word from the host for so long the guest lets everything go; 100 to 60000.

    Raises:
        BadInput: a value is out of its range.
    """

    id: str
    writes: int = DEFAULT_WRITES
    slot_ms: int = DEFAULT_SLOT_MS
    max_stall_ms: int = DEFAULT_MAX_STALL_MS
    lease_ms: int = DEFAULT_LEASE_MS

    def __post_init__(self) -> None:
        """Refuse what the helper would refuse."""
        ranges = {
            "writes": (1, 4096),
            "slot_ms": _SLOT_RANGE,
            "max_stall_ms": (self.slot_ms, 10000),
            "lease_ms": (100, 60000),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise BadInput(f"Write throttle: {name} is {value}, allowed are {least} to {most}")
        if not _ID.fullmatch(self.id):
            raise BadInput(f"Write throttle: id {self.id!r} is not 1 to 64 of A-Z a-z 0-9 . _ -")

    @property
    def dirty_bound(self) -> BytesPerSecond:
        """What one process can dirty at the most: its pages per slot."""
        return BytesPerSecond(self.writes * PAGE_BYTES * 1000 // self.slot_ms)

    def begin_line(self) -> bytes:
        """Return the line that puts the order into force, or changes the one of the same id."""
        words = (VERSION, "begin", self.writes, self.slot_ms, self.max_stall_ms, self.lease_ms, self.id)
        return _line(*words)

    def keep_line(self) -> bytes:
        """Return the line that renews the lease."""
        return _line(VERSION, "keep", self.id)

    def end_line(self) -> bytes:
        """Return the line that ends the order."""
        return _line(VERSION, "end", self.id)


STATUS_LINE: Final = b"1 status\n"


def order_for_link(
    order_id: str,
    bandwidth: BytesPerSecond,
    max_gap_ms: Milliseconds,
    *,
    processes: int = 1,
    writes: int = DEFAULT_WRITES,
) -> ThrottleOrder:
    """Return an order under which the guest dirties at most half of what the link carries.

    Half, so that each round is at most half as long as the one before; the slot is the shortest that does it, from
    5 ms up. No write is held longer than the promised gap; if the link is too slow for both, the gap wins.

    Args:
        order_id: names the order.
        bandwidth: what the link gives to this migration.
        max_gap_ms: the longest stall that was promised, 1 ms or more.
        processes: how many write at once: each has a budget of its own.
        writes: pages per slot and process.

    Raises:
        BadInput: `bandwidth` or `max_gap_ms` is too small, or `writes` out of range.
    """
    if bandwidth <= 0 or max_gap_ms < _SLOT_RANGE[0] or processes < 1:
        raise BadInput(f"Write throttle: {bandwidth} B/s, a gap of {max_gap_ms} ms and {processes} processes")
    needed = -(-2 * 1000 * processes * writes * PAGE_BYTES // bandwidth)  # rounded up
    stall = min(int(max_gap_ms), 10000)
    slot = max(_SLOT_RANGE[0], min(max(needed, _LEAST_SLOT_MS), stall, _SLOT_RANGE[1]))
    return ThrottleOrder(order_id, writes, slot, max(stall, slot))


@dataclass(frozen=True, slots=True)
class ThrottleFigures:
    """What the helper says about an order: the one in force, or the one that has just ended.

    Attributes:
        order_id: of the order in force; None for none.
        processes: under protection.
        uncovered: that run unthrottled (a seccomp filter, a debugger, 32 bits); the guest's log says which and why.
        covered_kib: private anonymous memory under protection.
        faults: writes that were caught.
        holds: of these, that had to wait for a slot.
        overruns: let go on top of the budget, because they would have waited longer than promised.
        errors: faults that the kernel would not let us answer; the thread was woken all the same.
        slots: that have passed.
        longest_hold_us: the longest time from a fault to its answer.
    """

    order_id: str | None
    processes: int
    uncovered: int
    covered_kib: int
    faults: int
    holds: int
    overruns: int
    errors: int
    slots: int
    longest_hold_us: int


_FIGURES: Final = tuple(field.name for field in fields(ThrottleFigures))[1:]


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of the helper: begun, kept, ended, expired or status, with its figures."""

    word: str
    figures: ThrottleFigures


def parse_answer(line: bytes) -> Answer:
    """Return what a line of the helper says; keys that this version does not know are passed over.

    Raises:
        Refused: it is an error of the helper's; `retry` says that it passes with the other order's lease.
        Broken: it is no line of this protocol.
    """
    text = line.removesuffix(b"\n").removesuffix(b"\r").decode("ascii", "replace")
    if error := _ERROR.fullmatch(text):
        raise Refused(f"The guest's throttle helper refused: {error[1]}: {error[2]}", retry=error[1] == _BUSY)
    found = _ANSWER.fullmatch(text)
    if found is None or len(line) > LINE_LIMIT:
        raise _garbage(text)
    pairs = [pair.split("=") for pair in found[3].split()]
    numbers = {key: int(value) for key, value in pairs}
    if len(numbers) != len(pairs) or not numbers.keys() >= set(_FIGURES):
        raise _garbage(text)
    order_id = None if found[2] == "-" else found[2]
    figures = ThrottleFigures(order_id, *(numbers[name] for name in _FIGURES))
    return Answer(found[1], figures)


def _garbage(text: str) -> Broken:
    return Broken(
        f"The guest's throttle channel said {text[:80]!r}, which is no answer of protocol version {VERSION}",
        fix="install the vmferry-throttle of this release in the guest",
    )


def _line(*words: object) -> bytes:
    return (" ".join(str(word) for word in words) + "\n").encode("ascii")
