"""What is asked for, what the hosts offer, and what comes of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from vmferry.core.capabilities.features import Value
from vmferry.core.errors import BadInput, Blocker


class Level(enum.StrEnum):
    """How much something is wanted."""

    REQUIRED = "required"  #: without it the move is not to start
    PREFERRED = "preferred"  #: taken where it works


class Transport(enum.StrEnum):
    """How the stream travels; names of the table."""

    TCP = "tcp"
    UNIX = "unix"
    FD = "fd"
    PIPE = "pipe"
    EXEC = "exec"
    FILE = "file"
    RDMA = "rdma"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One thing that is wanted, by its name in the table; parameters with a value in QEMU's units."""

    name: str
    level: Level = Level.PREFERRED
    value: Value | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user or a policy asks for. Transport and encryption are given: nothing takes them away.

    Raises:
        BadInput: the same thing is wanted twice.
    """

    wanted: tuple[Wanted, ...] = ()
    transport: Transport = Transport.TCP
    encrypted: bool = True

    def __post_init__(self) -> None:
        names = [one.name for one in self.wanted]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BadInput(f"{', '.join(twice)} is wanted twice for one migration", fix="name it once")


#: What every hand-over through a two-way channel stands on.
HANDOVER = tuple(
    Wanted(name, Level.REQUIRED) for name in ("events", "return-path", "pause-before-switchover", "late-block-activate")
)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A wish that is not in the set."""

    wanted: Wanted
    why: str
    fix: str
    follows: str | None = None  #: what it needs was wished for and is left out itself: that one has the reason


@dataclass(frozen=True, slots=True)
class CapabilitySet:
    """What both sides are set to, alike, before the destination listens; and what is missing of the wish."""

    transport: Transport
    encrypted: bool
    chosen: tuple[Wanted, ...]  #: in the order in which they were granted
    capabilities: Mapping[str, bool]  #: those that are on; all others are off
    #: What was chosen, and QEMU's default for the rest: an earlier attempt leaves nothing behind.
    parameters: Mapping[str, Value]
    left_out: tuple[LeftOut, ...]
    blockers: tuple[Blocker, ...]  #: not empty: the migration is not to start
