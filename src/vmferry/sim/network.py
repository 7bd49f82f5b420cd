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


@dataclass(frozen=True)
class Message:
    """One word on its way."""

    to: Side
    word: Word


@dataclass
class Network:
    """Messages on their way, in no order."""

    up: bool = True
    messages: list[Message] = field(default_factory=list)

    def send(self, message: Message) -> None:
        """Put a message on its way."""
        self.messages.append(message)
