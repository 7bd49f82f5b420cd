"""An agent in memory: a journal that survives it, a machine that does not, and orders carried out one at a time.

What a real runner promises is kept to the letter: an event is handled, its transition is durable together with the
token, then its orders begin; a crash can come between any two of these. The entry of a `DEFERRED` state becomes durable
at any moment up to the next one's, and a crash before that loses it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from vmferry.core.handover.effects import AnyEffect
from vmferry.core.handover.events import AnyEvent, Happened
from vmferry.core.handover.machine import Machine, TokenChange, Transition
from vmferry.core.handover.replay import replay, to_json
from vmferry.core.handover.states import DEFERRED, FACTS, AnyState, Side
from vmferry.core.handover.table import OPENING
from vmferry.sim.network import Message, Network, Word
from vmferry.sim.qemu import Fact, SimQemu, Violation


@dataclass(frozen=True)
class Token:
    """Who owns the guest, as one journal has it."""

    epoch: int
    owner: Side
    intent: bool = False


#: change -> (epochs further, new owner)
_MOVES: Mapping[TokenChange, tuple[int, Side]] = {
    TokenChange.RELEASE: (1, Side.DESTINATION),
    TokenChange.ACQUIRE: (1, Side.DESTINATION),
    TokenChange.ACQUIRE_TO_START: (1, Side.DESTINATION),
    TokenChange.RETURN: (2, Side.SOURCE),
    TokenChange.TAKE_BACK: (2, Side.SOURCE),
    TokenChange.CLAIM: (2, Side.SOURCE),
}


@dataclass
class SimJournal:
    """What survives the agent."""

    side: Side
    rows: list[dict[str, object]] = field(default_factory=list)
    token: Token | None = None
    opened: bool = False
    finished: bool = False
    state: AnyState | None = None

    def write(self, happened: Happened, transition: Transition) -> None:
        """Make event, state and token durable in one write."""
        self.rows.append(to_json(happened))
        self.state = transition.after
        if transition.token is TokenChange.INTEND:
            if self.token is None:
                raise Violation("intent without a token")
            self.token = Token(self.token.epoch, self.token.owner, intent=True)
        elif transition.token is not None:
            epoch, owner = _MOVES[transition.token]
            if self.token is not None and epoch < self.token.epoch:
                raise Violation(f"epoch goes back from {self.token.epoch} to {epoch}")
            self.token = Token(epoch, owner, intent=transition.token is TokenChange.ACQUIRE_TO_START)


class SimAgent:
    """What both sides' agents have in common.

    Args:
        side: which one.
        network: carries messages.
    """

    #: what each fact of its QEMU is for its machine
    events: ClassVar[Mapping[Fact, AnyEvent]] = {}
    died: ClassVar[AnyEvent]
    restarted: ClassVar[AnyEvent]

    def __init__(self, side: Side, network: Network) -> None:
        self.side = side
        self.network = network
        self.alive = True
        self.qemu: SimQemu | None = None
        self.journal = SimJournal(side)
        self.machine: Machine | None = None
        self.unwritten: deque[tuple[Happened, Transition]] = deque()  #: entries of deferred states
        self.inbox: deque[tuple[AnyEvent, AnyState | None]] = deque()
        self.replies: list[AnyEvent] = []  #: QEMU's answers to orders; may be overtaken by its events
        self.orders: deque[AnyEffect] = deque()
        self.lasting: set[AnyEffect] = set()
        self.acts: Mapping[AnyEffect, Callable[[], bool]] = {}

    @property
    def state(self) -> AnyState | None:
        """Return where it stands, of a dead agent where its journal does; None: it never reached this host."""
        return self.journal.state if self.machine is None else self.machine.state

    def open(self) -> None:
        """Open the hand-over here."""
        self.machine = Machine(self.side)
        self.journal.opened = True
        self.journal.state = self.machine.state
        self.orders.extend(OPENING[self.side].effects)

    # -- one step each --------------------------------------------------------------------------------------------

    def take(self) -> bool:
        """Handle the next event; False when there is none."""
        if not self.inbox:
            return False
        event, only_in = self.inbox.popleft()
        if self.machine is not None and only_in in (None, self.machine.state):
            self.handle(event)
        return True

    def write_down(self) -> bool:
        """Make everything durable that has happened; False when it is."""
        wrote = bool(self.unwritten)
        while self.unwritten:
            self.journal.write(*self.unwritten.popleft())
        return wrote

    def take_reply(self) -> bool:
        """Have QEMU's oldest answer join the queue."""
        if not self.replies:
            return False
        self.post(self.replies.pop(0))
        return True

    def carry_out(self) -> bool:
        """Go on with the first order; False when there is none."""
        if not self.orders or self.machine is None:
            return False
        orders, effect = self.orders, self.orders.popleft()
        done = self.acts[effect]()
        if not done and self.orders is orders:
            orders.appendleft(effect)
        self._finish()
        return True

    def poll(self) -> None:
        """Ask the other side again, where an order says so."""

    def receive(self, word: Word) -> None:
        """Take a message."""
        raise NotImplementedError

    # -- helpers --------------------------------------------------------------------------------------------------

    def post(self, event: AnyEvent, only_in: AnyState | None = None) -> None:
        """Tell the machine; handled in turn."""
        self.inbox.append((event, only_in))

    def hear(self, fact: Fact) -> None:
        """Take what QEMU says."""
        if self.alive and self.machine is not None and fact in self.events:
            self.post(self.events[fact])

    def say(self, word: Word) -> None:
        """Send a message to the other side."""
        other = Side.DESTINATION if self.side is Side.SOURCE else Side.SOURCE
        self.network.send(Message(other, word))

    def handle(self, event: AnyEvent) -> None:
        """Have the machine handle an event, and make it durable."""
        if self.machine is None:
            raise Violation(f"{event} without a machine")
        before = self.machine.state
        happened = Happened(event)
        transition = self.machine.handle(happened)
        if transition.ignored:
            if self.machine.state is not before or transition.token is not None:
                raise Violation(f"ignored event {event} moved {before}")
            return
        self.unwritten.append((happened, transition))
        if transition.after not in DEFERRED:
            self.write_down()
        self.orders = deque(transition.effects)
        self.entered(transition)
        self._finish()

    def entered(self, transition: Transition) -> None:
        """Do what a state owes to others at once."""

    def _finish(self) -> None:
        if self.state is not None and FACTS[self.state].final and not self.orders:
            self.journal.finished = True

    def order_cont(self) -> bool:
        """Send `cont`, after holding that it may be sent."""
        token, qemu = self.journal.token, self.qemu
        if token is None or token.owner is not self.side or qemu is None:
            raise Violation(f"cont at the {self.side} without the token: {token}")
        if self.side is Side.DESTINATION and not token.intent:
            raise Violation("cont at the destination without the intent")
        return qemu.cont()

    # -- crash and restart ----------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Die; only the journal stays."""
        self.alive = False
        self.machine = None
        self.unwritten.clear()
        self.inbox.clear()
        self.replies.clear()
        self.orders = deque()
        self.lasting.clear()

    def restart(self, *, death_first: bool = False) -> None:
        """Come back: replay, then find out. Only the destination may hear of its QEMU's death first."""
        self.alive = True
        if not self.journal.opened:
            return
        self.machine = replay(self.side, self.journal.rows)
        if self.journal.finished:
            return
        dead = self.qemu is None or not self.qemu.alive
        if dead and death_first and self.side is Side.DESTINATION:
            self.post(self.died)
        self.post(self.restarted)
        if dead and self.side is Side.SOURCE:
            self.post(self.died)
