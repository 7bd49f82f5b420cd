"""Two hosts, one guest, one hand-over, and everything that can go wrong: the promises are held after every step.

The world does nothing by itself. `choices` names what could happen next, faults are methods, `check` holds the
promises, `settle` lets everything heal and go on until nothing moves any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vmferry.core.handover.events import DestinationEvent, Happened, SourceEvent
from vmferry.core.handover.machine import Machine
from vmferry.core.handover.states import FACTS, DestinationState, Side, SourceState
from vmferry.core.migration import RunState
from vmferry.sim import promises
from vmferry.sim.agent import SimAgent
from vmferry.sim.destination import SimDestination
from vmferry.sim.network import Message, Network, Word
from vmferry.sim.qemu import Disk, Fact, Fate, Guest, SimQemu, Stream, Violation
from vmferry.sim.source import SimSource

_MANY = 2000  #: steps after which a world that still moves is going round in circles


@dataclass(frozen=True)
class Death:
    """A QEMU that was killed, and whether the states of that moment say that the guest may die with it."""

    side: Side
    needed: bool


class World:
    """One hand-over from its start.

    Args:
        guest_runs: whether the guest runs when it begins, or is paused.
        return_path: whether the stream has two directions.
        postcopy: whether post-copy is ordered in the first round.
        converges: whether the rounds end by themselves; the order may then come too late.
        strands: whether QEMU hangs when the stream breaks on the way into post-copy (10.0), or says `failed` (7.2).
        pages: how many are sent in post-copy.
        devices: whether the guest has devices of its host.
    """

    def __init__(
        self,
        *,
        guest_runs: bool = True,
        return_path: bool = True,
        postcopy: bool = False,
        converges: bool | None = None,
        strands: bool = True,
        pages: int = 16,
        devices: bool = False,
    ) -> None:
        self.network = Network()
        self.guest = Guest(runs=guest_runs)
        self.disk = Disk()
        converges = not postcopy if converges is None else converges
        self.stream = Stream(return_path=return_path or postcopy, converges=converges, strands=strands, owed=pages)
        self.source = SimSource(self.network, self.guest, self.disk, postcopy=postcopy, devices=devices)
        self.destination = SimDestination(self.network, self.guest, self.disk, lambda: self._qemu(self.destination))
        self.source.qemu = self._qemu(self.source)
        self.source.qemu.devices = devices
        self.agents: dict[Side, SimAgent] = {Side.SOURCE: self.source, Side.DESTINATION: self.destination}
        self.deaths: list[Death] = []
        self.fenced = False
        self.refused = False
        self._qemu_first = False
        self._checked: dict[Side, tuple[object, ...]] = {}
        self.source.open()

    def _qemu(self, agent: SimAgent) -> SimQemu:
        return SimQemu(agent.side, self.guest, self.disk, self.stream, lambda fact: self._tell(agent, fact))

    @staticmethod
    def _tell(agent: SimAgent, fact: Fact) -> None:
        agent.hear(fact)

    # -- what could happen next -----------------------------------------------------------------------------------

    def choices(self) -> list[tuple[str, Callable[[], object]]]:
        """Name every step that something could take now, in an order that lets a hand-over go its way."""
        found: list[tuple[str, Callable[[], object]]] = []
        for side, agent in self.agents.items():
            if agent.alive and agent.inbox:
                found.append((f"{side} takes", agent.take))
            if agent.alive and agent.replies:
                found.append((f"{side} is answered", agent.take_reply))
            if agent.alive and agent.orders:
                found.append((f"{side} acts", agent.carry_out))
            if agent.alive and agent.unwritten:
                found.append((f"{side} writes down", agent.write_down))
        found += [
            (f"{message.to} hears {message.word.value}", partial(self.deliver, message))
            for message in dict.fromkeys(self.network.messages)
            if self.network.up
        ]
        return found

    def advance_qemu(self, side: Side) -> bool:
        """Let one QEMU do its next thing; False when it has none."""
        qemu = self.agents[side].qemu
        self.stream.up = self.network.up
        return qemu is not None and qemu.advance()

    def step(self) -> bool:
        """Do something that can be done, the agents and the QEMUs by turns; False when nothing can."""
        self._qemu_first = not self._qemu_first
        if self._qemu_first:
            return self._advance_any() or self._choose_first()
        return self._choose_first() or self._advance_any()

    def live(self, steps: int) -> None:
        """Let so many steps happen, asking again when nothing else does, and hold the promises after each."""
        for _ in range(steps):
            if not self.step():
                self.poll()
            self.check()

    def live_until(self, reached: Callable[[], bool]) -> None:
        """Live until something is true.

        Raises:
            Violation: it never is.
        """
        for _ in range(_MANY):
            if reached():
                return
            self.live(1)
        raise Violation(f"never got there: {self.describe()}")

    def _choose_first(self) -> bool:
        choices = self.choices()
        if choices:
            choices[0][1]()
        return bool(choices)

    def _advance_any(self) -> bool:
        return any(self.advance_qemu(side) for side in Side)

    def deliver(self, message: Message, *, keep: bool = False) -> None:
        """Bring a message to its agent; with `keep`, a second copy stays on its way. A dead agent hears nothing."""
        if not keep:
            self.network.messages.remove(message)
        if self.agents[message.to].alive:
            self.agents[message.to].receive(message.word)

    def poll(self) -> None:
        """Let both agents ask again, unless their last question is still on its way."""
        for agent in self.agents.values():
            if agent.alive:
                before = len(self.network.messages)
                agent.poll()
                fresh = self.network.messages[before:]
                del self.network.messages[before:]
                self.network.messages += [message for message in fresh if message not in self.network.messages]

    # -- faults ---------------------------------------------------------------------------------------------------

    def kill_agent(self, side: Side) -> None:
        """Do kill -9 of one agent."""
        self.agents[side].kill()
        self.network.deaf.add(side)

    def kill_qemu(self, side: Side) -> None:
        """Do kill -9 of one QEMU."""
        qemu = self.agents[side].qemu
        if qemu is not None and qemu.alive:
            self.deaths.append(Death(side, self._needed(side)))
            qemu.kill()

    def kill_host(self, side: Side) -> None:
        """Power loss of one host."""
        self.kill_agent(side)
        self.kill_qemu(side)

    def restart_agent(self, side: Side, *, death_first: bool = False) -> None:
        """Let a supervisor start an agent again."""
        if not self.agents[side].alive:
            self.agents[side].restart(death_first=death_first)
            self.network.deaf.discard(side)

    def cut(self, *, loud: bool = False, brief: bool = False) -> None:
        """Cut the two hosts off from each other; who connects is told of a loud cut, a brief one tries no patience."""
        self.network.up = False
        self.network.loud = loud
        self.network.brief = brief

    def heal(self) -> None:
        """Join them again."""
        self.network.up = True
        self.network.loud = self.network.brief = False
        if self.network.late:
            unanswered = (Word.ASK_CROSSING, Word.RECEIVING)
            self.network.messages = [each for each in self.network.messages if each.word not in unanswered]

    def break_stream(self, *, rest_arrives: bool) -> None:
        """Have the connection of the migration end; what was sent may still arrive."""
        if not self.stream.broken:
            self.stream.broken = True
            self.stream.rest_arrives = rest_arrives
            qemu = self.source.qemu
            if qemu is not None and qemu.is_on_the_way and self._needed(Side.DESTINATION):
                self.deaths.append(Death(Side.SOURCE, needed=True))  # as good as dead: it can never run the guest

    def pass_deadline(self, side: Side) -> bool:
        """Have the deadline of an agent's state pass; False when it has none."""
        agent = self.agents[side]
        if not agent.alive or agent.machine is None or agent.machine.facts.deadline_ms is None:
            return False
        event = SourceEvent.DEADLINE_PASSED if side is Side.SOURCE else DestinationEvent.PREPARATION_FAILED
        agent.post(event, only_in=agent.machine.state)
        return True

    def cancel(self) -> None:
        """Have an operator cancel."""
        if self.source.alive:
            self.source.post(SourceEvent.CANCEL_REQUESTED)

    def power_off(self) -> None:
        """Have the guest power itself off, wherever it runs."""
        for agent in self.agents.values():
            if agent.qemu is not None and agent.qemu.running:
                agent.qemu.power_off()

    def refuse_disk(self) -> None:
        """Have the storage refuse the destination from now on."""
        self.disk.refuses_destination = True
        self.refused = True

    def refuse_lease(self) -> None:
        """Have the destination's lock manager be gone from now on."""
        self.disk.leases_refuse_destination = True
        self.refused = True

    def hang_leases(self) -> None:
        """Have the source's lock manager answer nothing until everything heals."""
        self.disk.leases_hang = True

    def can_fence(self, side: Side) -> bool:
        """Tell whether a person may declare a host fenced: it is off for certain, and the other agent listens."""
        other = Side.DESTINATION if side is Side.SOURCE else Side.SOURCE
        qemu = self.agents[side].qemu
        off = not self.agents[side].alive and (qemu is None or not qemu.alive)
        return off and self.agents[other].alive and self.agents[other].machine is not None

    def fence(self, side: Side) -> None:
        """Have a person say that a host is off."""
        self.fenced = True
        if side is Side.DESTINATION:
            self.source.post(SourceEvent.DESTINATION_FENCED)
        else:
            self.destination.source_fenced()

    def _needed(self, side: Side) -> bool:
        """Tell whether a QEMU is needed by a state that an agent is in, or is about to enter by what it has heard."""
        return any(side in FACTS[state].needs for agent in self.agents.values() for state in _states_ahead(agent))

    # -- promises and the end -------------------------------------------------------------------------------------

    def check(self) -> None:
        """Hold every promise that must be true at any moment.

        Raises:
            Violation: one is broken.
        """
        promises.check_owner(self)
        for agent in self.agents.values():
            seen = (len(agent.journal.rows), len(agent.unwritten), agent.machine)
            if self._checked.get(agent.side) != seen:
                self._checked[agent.side] = seen
                promises.check_agent(agent)

    def fate(self) -> Fate:
        """Tell what became of the guest, from the QEMUs alone."""
        holders = [
            agent.qemu
            for agent in self.agents.values()
            if agent.qemu is not None and agent.qemu.alive and agent.qemu.copy == self.guest.present
            if not agent.qemu.gave_up
        ]
        source = self.source.qemu
        if holders and holders[0].needs_other and not (source is not None and source.alive):
            return Fate.LOST
        if not holders:
            return Fate.LOST
        if holders[0].needs_other and (self.stream.broken or not self.network.up):
            return Fate.HELD
        settled = RunState.RUNNING if self.guest.runs else RunState.PAUSED
        if len(holders) == 1 and holders[0].run in (settled, RunState.SHUTDOWN, RunState.POSTMIGRATE):
            stands = holders[0].run is RunState.POSTMIGRATE and self.guest.runs
            return Fate.HELD if stands else Fate.ONE
        return Fate.HELD

    def settle(self) -> Fate:
        """Heal everything, bring the agents back, let everything go on until nothing moves; hold how it ended."""
        self.heal()
        self.disk.leases_hang = False
        for side in Side:
            self.restart_agent(side)
        for _ in range(_MANY):
            if not (self._run_dry() or self._ask_again() or self._time_passes()):
                promises.check_end(self)
                return self.fate()
        raise Violation(f"never comes to rest: {self.describe()}")

    def _run_dry(self) -> bool:
        moved = False
        for _ in range(_MANY):
            if not self.step():
                return moved
            self.check()
            moved = True
        raise Violation(f"goes round in circles: {self.describe()}")

    def _ask_again(self) -> bool:
        """Let both ask once more; True when that changed anything."""
        before = self._snapshot()
        self.poll()
        self._run_dry()
        return self._snapshot() != before

    def _time_passes(self) -> bool:
        before = self._snapshot()
        for side in Side:
            self.pass_deadline(side)
        self._run_dry()
        return self._snapshot() != before

    def _snapshot(self) -> tuple[object, ...]:
        return tuple(
            (
                len(agent.journal.rows),
                agent.state,
                len(agent.orders),
                agent.qemu and (agent.qemu.alive, agent.qemu.status),
            )
            for agent in self.agents.values()
        )

    def describe(self) -> str:
        """Return where everything stands, for a failing test."""
        lines = [
            f"{side}: agent {'up' if agent.alive else 'dead'}, {agent.state}, token {agent.journal.token},"
            f" QEMU {_qemu_text(agent.qemu)}, journal {[row['kind'] for row in agent.journal.rows]},"
            f" inbox {[str(event) for event, _ in agent.inbox]}, orders {[str(order) for order in agent.orders]}"
            for side, agent in self.agents.items()
        ]
        words = [f"{message.to}:{message.word.value}" for message in self.network.messages]
        return "\n".join([*lines, f"guest {self.guest}, {self.disk}, {self.stream}, messages {words}", ""])


def _qemu_text(qemu: SimQemu | None) -> str:
    if qemu is None or not qemu.alive:
        return "dead"
    return f"{qemu.status}/{qemu.run} copy {qemu.copy}"


def _states_ahead(agent: SimAgent) -> list[SourceState | DestinationState]:
    """Return the state of an agent and those that what it has heard leads to."""
    if agent.state is None:
        return []
    if agent.machine is None:
        return [agent.state]
    machine = Machine(agent.side, agent.machine.state)
    found = [machine.state]
    for event, only_in in agent.inbox:
        if only_in in (None, machine.state):
            machine.handle(Happened(event))
            found.append(machine.state)
    return found
