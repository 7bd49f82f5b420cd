"""The machine: one side of one hand-over, living through events. Deterministic; it neither logs nor tells the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmferry.core.errors import IllegalTransition
from vmferry.core.handover.effects import AnyEffect
from vmferry.core.handover.events import AnyEvent, DestinationEvent, Happened, SourceEvent
from vmferry.core.handover.states import FACTS, AnyState, DestinationState, Facts, Owner, Side, SourceState
from vmferry.core.handover.table import DESTINATION_TABLE, IGNORED, OPENING, SOURCE_TABLE, Key, Step
from vmferry.core.handover.words import Word


class TokenChange(Word):
    """How an event changes the guest's token; written in the same transaction as the event."""

    RELEASE = "release"  #: epoch + 1, the destination
    ACQUIRE = "acquire"  #: epoch + 1, here
    ACQUIRE_TO_START = "acquire-to-start"  #: epoch + 1, here, `cont` is about to be sent
    INTEND = "intend"  #: same epoch, `cont` is about to be sent
    RETURN = "return"  #: epoch + 2, the source
    TAKE_BACK = "take-back"  #: epoch + 2, here, runs as before
    CLAIM = "claim"  #: epoch + 2, here, stopped: a person says that the other host is off


#: (event, state it led to) -> change. The only places where ownership moves.
TOKEN_CHANGES: Mapping[tuple[AnyEvent, AnyState], TokenChange] = {
    (SourceEvent.OWNERSHIP_RELEASED, SourceState.COMMITTED): TokenChange.RELEASE,
    (SourceEvent.OWNERSHIP_RELEASED, SourceState.POSTCOPY_COMMITTED): TokenChange.RELEASE,
    (SourceEvent.DESTINATION_RETURNED, SourceState.RETURNING): TokenChange.TAKE_BACK,
    (DestinationEvent.COMMIT_RECEIVED, DestinationState.ACQUIRED): TokenChange.ACQUIRE,
    # giving it back would help nobody: the source cannot run it either, so nothing is to be told apart by two writes
    (DestinationEvent.COMMIT_RECEIVED, DestinationState.POSTCOPY_STARTING): TokenChange.ACQUIRE_TO_START,
    # it cannot start the guest, but it holds the token until it has given it back
    (DestinationEvent.COMMIT_RECEIVED, DestinationState.GIVING_BACK): TokenChange.ACQUIRE,
    (DestinationEvent.INTENT_RECORDED, DestinationState.STARTING): TokenChange.INTEND,
    (DestinationEvent.CLEANED_UP, DestinationState.RETURNED): TokenChange.RETURN,
    (DestinationEvent.COMMIT_RECEIVED, DestinationState.RETURNED): TokenChange.RETURN,
}


@dataclass(frozen=True, slots=True)
class Transition:
    """What one event did: journal it when it `moved` or ordered something, then carry the effects out."""

    before: AnyState
    after: AnyState
    effects: tuple[AnyEffect, ...]
    token: TokenChange | None
    ignored: bool


class Machine:
    """One side's machine.

    Args:
        side: which table to live by.
        state: where to start; the side's first state by default.
    """

    def __init__(self, side: Side, state: AnyState | None = None) -> None:
        self.side = side
        self._table: Mapping[Key, Step] = SOURCE_TABLE if side is Side.SOURCE else DESTINATION_TABLE
        self.state: AnyState = state if state is not None else first_state(side)

    @property
    def facts(self) -> Facts:
        """Return owner, needs, step and deadline of the present state."""
        return FACTS[self.state]

    def handle(self, happened: Happened) -> Transition:
        """Move by one event and return what is to be done.

        Raises:
            IllegalTransition: neither the table nor the ignored events know it here; the state did not move.
        """
        before = self.state
        step = self._table.get((before, happened.kind))
        if step is None:
            if self.facts.final or happened.kind in IGNORED[before]:
                return Transition(before, before, (), None, ignored=True)
            raise IllegalTransition(
                f"event {happened.kind} cannot happen to the {self.side} machine in state {before}",
                fix="report this as a bug of vmferry; the hand-over's state did not move",
                side=str(self.side),
            )
        self.state = step.next
        return Transition(before, step.next, step.effects, self._token_change(happened, before), ignored=False)

    def _token_change(self, happened: Happened, before: AnyState) -> TokenChange | None:
        released = FACTS[before].owner is Owner.DESTINATION and self.state is SourceState.CRASHED
        if happened.kind is SourceEvent.DESTINATION_FENCED and released:
            return TokenChange.CLAIM
        return TOKEN_CHANGES.get((happened.kind, self.state))


def first_state(side: Side) -> AnyState:
    """Return the state in which a side's machine begins."""
    return OPENING[side].next
