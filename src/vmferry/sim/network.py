"""A network in memory: messages may wait, be lost, doubled or overtaken; a cut stops everything."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from vmferry.core.handover.states import Side


class Word(enum.Enum):
    """What the two agents say to each other."""

    RESERVE = "reserve"
    RESERVED = "reserved"
    REFUSED = "refused"
    ASK_LOADED = "ask-loaded"
    LOADED = "loaded"
    FAILED = "failed"
    COMMIT = "commit"
    RUNNING = "running"
    RETURNED = "returned"
    LOST = "lost"
    DISCARD = "discard"
    ASK_VERDICT = "ask-verdict"
    ASK_CROSSING = "ask-crossing"  #: post-copy, before the commit: how do you stand
    RECEIVING = "receiving"
    POSTCOPY_LOADED = "postcopy-loaded"
    ASK_PAGES = "ask-pages"  #: post-copy: my QEMU is postcopy-active
    LISTEN = "listen"  #: post-copy: my QEMU's stream is broken
    SOURCE_GONE = "source-gone"  #: post-copy: my QEMU is dead
    LISTENS = "listens"
    PAUSED = "paused"
    PAGES = "pages"  #: nothing is missing here


@dataclass(frozen=True)
class Message:
    """One word on its way."""

    to: Side
    word: Word


@dataclass
class Network:
    """Messages on their way, in no order."""

    up: bool = True
    loud: bool = False  #: who wants to connect while it is cut is told so at once
    brief: bool = False  #: a cut is over before anybody loses patience
    late: bool = False  #: what was asked during a cut is answered, and later than the one who asked has patience
    deaf: set[Side] = field(default_factory=set)  #: hosts whose agent is away: connections to it are refused
    messages: list[Message] = field(default_factory=list)

    def refuses(self, side: Side) -> bool:
        """Tell whether a new connection to a host's agent fails at once."""
        return side in self.deaf or self.loud

    def send(self, message: Message) -> None:
        """Put a message on its way."""
        self.messages.append(message)
