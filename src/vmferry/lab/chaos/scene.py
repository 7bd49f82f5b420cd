"""The stage of one cell: the lab, its guest, the two QEMUs, and the handles by which they are stopped and killed."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field

from vmferry.core.capabilities import Transport
from vmferry.core.errors import Broken
from vmferry.core.handover.states import Side
from vmferry.lab.agents import AgentProcess
from vmferry.lab.api import Api
from vmferry.lab.chaos.beat_watch import BeatWatch
from vmferry.lab.chaos.history import History, journals
from vmferry.lab.chaos.holds import Holds
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.processes import Identity, command_line, kill_all, send
from vmferry.lab.scenarios import migrate

HOSTS = {Side.SOURCE: "host-a", Side.DESTINATION: "host-b"}
#: In the command line of what carries a stream between local sockets and the network.
CARRIER = "links/carry.py"
#: The hand-over must come to a hold within this; it takes well under a second unless it goes another way.
REACH_S = 60.0


@dataclass
class Scene:
    """Everything that a way, a fault and a judgement need."""

    lab: Lab
    guest: GuestRun
    watch: BeatWatch
    history: History
    holds: Holds
    link: Transport = Transport.TCP  #: how the stream travels
    handover: str = ""
    remarks: list[str] = field(default_factory=list)
    asking: list[asyncio.Task[None]] = field(default_factory=list)  #: requests whose answer may never come
    _stopped: list[Identity] = field(default_factory=list)

    @property
    def source_api(self) -> Api:
        """The API of the source's agent."""
        return self.lab.hosts[HOSTS[Side.SOURCE]].api

    def agent(self, side: Side) -> AgentProcess:
        """Return the agent of a side."""
        return self.lab.hosts[HOSTS[side]].agent

    def qemu(self, side: Side) -> Identity | None:
        """Return the guest's QEMU process on a side; None when there is none."""
        return next(iter(self.qemus(side)), None)

    def qemus(self, side: Side) -> list[Identity]:
        """Return every QEMU process of the guest on a side, found without agent or QMP."""
        sign = f"guest={self.guest.name},"
        return [found for found in self.lab.processes_of(HOSTS[side]) if sign in command_line(found.pid)]

    def carrier(self, side: Side) -> Identity | None:
        """Return the process of a side that has the stream's connections; None when there is none."""
        if self.link is not Transport.UNIX:
            return self.qemu(side)
        processes = self.lab.processes_of(HOSTS[side])
        return next((found for found in processes if CARRIER in command_line(found.pid)), None)

    def stop_qemu(self, side: Side) -> None:
        """Have a QEMU stand still (SIGSTOP) until `let_go`.

        Raises:
            Broken: there is none.
        """
        qemu = self.qemu(side)
        if qemu is None:
            raise Broken(f"No QEMU to stop at the {side}")
        self._stop(qemu, f"QEMU at the {side}")

    def freeze_agent(self, side: Side) -> None:
        """Have an agent stand still (SIGSTOP) until `let_go`.

        Raises:
            Broken: it does not run.
        """
        worker = self.agent(side).worker
        if worker is None:
            raise Broken(f"No agent to freeze at the {side}")
        self._stop(worker, f"agent of the {side}")

    def _stop(self, process: Identity, what: str) -> None:
        self.history.note(f"SIGSTOP {what}")
        send(process, signal.SIGSTOP)
        self._stopped.append(process)

    def wake_qemu(self, side: Side) -> None:
        """Let a QEMU that was stopped go on."""
        self.history.note(f"SIGCONT QEMU at the {side}")
        for qemu in self.qemus(side):
            send(qemu, signal.SIGCONT)

    def let_go(self) -> None:
        """Let everything go on: what was stopped, and every hold; the dead stay dead."""
        self.history.note("holds released, stopped processes go on")
        self.holds.release_all()
        for process in self._stopped:
            send(process, signal.SIGCONT)
        self._stopped.clear()

    def kill_qemu(self, side: Side) -> None:
        """Kill -9 a QEMU; what is not there yet cannot be killed, and is remarked on."""
        qemu = self.qemu(side)
        if qemu is None:
            self.remarks.append(f"no QEMU at the {side} to kill in this state")
            return
        self.history.note(f"kill -9 QEMU {qemu.pid} at the {side}")
        kill_all([qemu])

    async def begin(self, options: dict[str, object] | None = None) -> None:
        """Open the hand-over."""
        asked = {"link": str(self.link), **(options or {})}
        self.handover = await migrate(self.lab, self.guest, HOSTS[Side.DESTINATION], asked)
        self.history.note(f"hand-over {self.handover} opened")

    def journal_state(self, side: Side) -> tuple[str, bool]:
        """Return a side's journalled state and whether the hand-over is finished there, read beside its agent."""
        for file in journals(self.lab.hosts[HOSTS[side]].state_dir):
            with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as journal:
                query = "SELECT state, finished FROM handovers WHERE id = ? AND side = ?"
                row = journal.execute(query, (self.handover, str(side))).fetchone()
                if row is not None:
                    return str(row[0]), bool(row[1])
        return "", False

    def reached_text(self, place: object) -> str:
        """Return where both sides stand, for the history."""
        here, there = (self.journal_state(side)[0] or "nothing" for side in Side)
        return f"held in {place}; journals: source {here}, destination {there}"
