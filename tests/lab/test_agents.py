from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.core.errors import Broken
from vmferry.lab.agents import AgentProcess
from vmferry.lab.processes import Identity, children, is_alive, kill_all, wait_gone

#: A supervisor that restarts its worker at once; the worker writes its pid into a FIFO when it is ready.
SUPERVISOR = """
import os, signal, subprocess, sys
worker = None
def end(*_):
    os.kill(worker.pid, signal.SIGTERM); os._exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    worker = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
    worker.wait()
"""
WORKER = """
import os, sys, time
with open(sys.argv[1], "w") as fifo:
    fifo.write(str(os.getpid()))
time.sleep(600)
"""


class StandIn:
    """A supervised process, as the agent is, and the way to wait for its next worker."""

    def __init__(self, directory: Path) -> None:
        self._fifo = directory / "ready"
        os.mkfifo(self._fifo)
        argv = [sys.executable, "-c", SUPERVISOR, WORKER, str(self._fifo)]
        self.agent = AgentProcess(argv, {}, directory / "agent.log")

    def wait_worker(self) -> int:
        """Wait until a worker says that it runs; returns its pid."""
        return int(self._fifo.read_text())


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    """A started stand-in, removed whatever the test did to it."""
    made = StandIn(tmp_path)
    made.agent.start()
    workers = [made.wait_worker()]
    worker = made.agent.worker
    assert worker is not None
    assert worker.pid == workers[0]
    yield made
    made.agent.kill()
    kill_all([worker])
    if made.agent._process:
        made.agent._process.wait()


def worker_of(stand_in: StandIn) -> Identity:
    """Return the worker that runs now."""
    worker = stand_in.agent.worker
    assert worker is not None
    return worker


def test_a_killed_worker_is_replaced(stand_in: StandIn) -> None:
    """Kill -9 of the worker alone lets the supervisor start another."""
    old = stand_in.agent.kill_worker()
    assert stand_in.wait_worker() != old.pid
    assert stand_in.agent.has_replaced(old)


def test_killing_both_leaves_neither(stand_in: StandIn) -> None:
    """Kill -9 of supervisor and worker leaves no process behind, and none comes back."""
    worker = worker_of(stand_in)
    stand_in.agent.kill()
    assert not is_alive(worker)
    assert not stand_in.agent.is_running()


def test_killing_the_supervisor_leaves_the_worker(stand_in: StandIn) -> None:
    """Kill -9 of the supervisor alone leaves the worker running."""
    worker = worker_of(stand_in)
    stand_in.agent.kill_supervisor()
    assert is_alive(worker)
    assert not stand_in.agent.is_running()


def test_restarts_can_be_held_back(stand_in: StandIn) -> None:
    """While restarts are held a dead worker stays dead; afterwards it is replaced."""
    stand_in.agent.hold_restarts()
    old = stand_in.agent.kill_worker()
    assert stand_in.agent.worker is None
    stand_in.agent.allow_restarts()
    assert stand_in.wait_worker() != old.pid


def test_a_frozen_worker_lives_and_does_nothing(stand_in: StandIn) -> None:
    """SIGSTOP leaves the worker alive and stopped; thawing it lets it go on."""
    worker = worker_of(stand_in)
    stat = Path(f"/proc/{worker.pid}/stat")
    stand_in.agent.freeze()
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        assert is_alive(worker)
    stand_in.agent.thaw()
    while stat.read_text().rpartition(")")[2].split()[0] == "T":
        assert is_alive(worker)


def test_stopping_waits_for_supervisor_and_worker(stand_in: StandIn) -> None:
    """SIGTERM ends both, and `stop` returns when they are gone."""
    worker = worker_of(stand_in)
    stand_in.agent.stop()
    assert not is_alive(worker)
    assert not stand_in.agent.is_running()


def test_killing_a_worker_that_does_not_run_says_so(stand_in: StandIn) -> None:
    """Without a worker there is nothing to kill: Broken, with the log's end."""
    stand_in.agent.kill()
    with pytest.raises(Broken, match="No worker runs"):
        stand_in.agent.kill_worker()


def test_children_are_found_by_their_parent(stand_in: StandIn) -> None:
    """The supervisor's only child is the worker."""
    supervisor = stand_in.agent.supervisor
    assert supervisor is not None
    assert children(supervisor.pid) == [worker_of(stand_in)]
    assert not wait_gone(supervisor, 0)
