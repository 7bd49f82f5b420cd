"""Makes transitions durable: event, state and token in one write; tells the log and the watchers afterwards.

What leads to a `DEFERRED` state is kept and written with what comes next.

A hand-over is finished not with its final state but with the last effect of it; whoever runs it says so then
(`Journal.finish`).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from vmferry.core.errors import Broken
from vmferry.core.handover.events import Happened
from vmferry.core.handover.machine import TokenChange, Transition
from vmferry.core.handover.replay import to_json
from vmferry.core.handover.states import DEFERRED, FACTS, AnyState, Owner, Side
from vmferry.core.ids import Epoch, GuestName, HandoverId, HostName
from vmferry.core.progress import StateEntered
from vmferry.core.units import Milliseconds
from vmferry.ports.store import Journal, Token

_log = structlog.get_logger(__name__)


_TO_DESTINATION = frozenset({TokenChange.RELEASE, TokenChange.ACQUIRE, TokenChange.ACQUIRE_TO_START})


@dataclasses.dataclass(frozen=True, slots=True)
class Parties:
    """Whose hand-over it is."""

    handover: HandoverId
    guest: GuestName
    source: HostName
    destination: HostName

    def owner(self, state: AnyState) -> HostName:
        """Return the host whose vCPUs may run in a state."""
        return self.source if FACTS[state].owner is Owner.SOURCE else self.destination


def changed_token(token: Token, change: TokenChange, parties: Parties) -> Token:
    """Return the token after a change of ownership; pure."""
    if change is TokenChange.INTEND:
        return dataclasses.replace(token, cont_intent=True)
    owner = parties.destination if change in _TO_DESTINATION else parties.source
    running = token.running and change is not TokenChange.CLAIM
    return Token(Epoch(token.epoch + 1), owner, running, cont_intent=change is TokenChange.ACQUIRE_TO_START)


class JournalRecorder:
    """Records one side of one hand-over.

    Args:
        side: which side's rows.
        parties: whose hand-over.
        journal: where to.
        tell: takes what watchers see; None at the destination.
        since_start_ms: the hand-over's clock.
    """

    def __init__(
        self,
        side: Side,
        parties: Parties,
        journal: Journal,
        tell: Callable[[StateEntered], None] | None,
        since_start_ms: Callable[[], Milliseconds],
    ) -> None:
        self._side = side
        self._parties = parties
        self._journal = journal
        self._tell = tell
        self._since_start_ms = since_start_ms
        self._entered_ms: deque[Milliseconds] = deque()  #: of the transitions that were not told yet
        self._kept: list[tuple[Happened, Transition]] = []  #: deferred, not journalled yet
        self.timeline_ms: dict[str, float] = {}

    def record(self, happened: Happened, transition: Transition) -> None:
        """Journal event, state and token in one write, with all that was kept; keep a deferred state's."""
        if transition.after in DEFERRED:
            self._kept.append((happened, transition))
        else:
            self._write([*self._kept, (happened, transition)])
        # what an operator reads later: when the state was entered, not when it was told
        at_ms = self._since_start_ms()
        self._entered_ms.append(at_ms)
        self.timeline_ms.setdefault(str(transition.after), at_ms)

    def write_down(self) -> None:
        """Journal what was kept; raises, and keeps it, when that cannot be written."""
        if self._kept:
            self._write(self._kept)

    def _write(self, passed: Sequence[tuple[Happened, Transition]]) -> None:
        self._journal.append(
            self._parties.handover,
            str(self._side),
            [(to_json(happened), str(transition.after)) for happened, transition in passed],
            token=self._token([transition.token for _, transition in passed if transition.token is not None]),
        )
        self._kept = []

    def _token(self, changes: Sequence[TokenChange]) -> tuple[GuestName, Token] | None:
        if not changes:
            return None
        name = self._parties.guest
        row = self._journal.guest(name)
        if row is None:
            raise Broken(f"Guest {name} is not in the journal: its token cannot {changes[0]}")
        token = row.token
        for change in changes:
            token = changed_token(token, change, self._parties)
        return name, token

    def entered(self, happened: Happened, transition: Transition) -> None:
        """Tell the log and the watchers."""
        state = transition.after
        at_ms = self._entered_ms.popleft()
        _log.info(
            "hand-over",
            handover=self._parties.handover,
            guest=self._parties.guest,
            side=str(self._side),
            state=str(state),
            by=str(happened.kind),
            why=happened.why,
        )
        if self._tell is not None:
            facts = FACTS[state]
            self._tell(StateEntered(at_ms, str(state), facts.step, self._parties.owner(state), happened.why))
