"""One host's agent as a real process, with the handles by which a test breaks it.

The agent is a supervisor that starts a worker; QEMUs are the worker's, in sessions of their own. Killing goes by
pidfd to exactly the process that was found; nothing here waits for an agent to do anything (the lab does).
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from vmferry.core.errors import Broken
from vmferry.lab.processes import Identity, children, command_line, identify, is_alive, kill_all, send, wait_gone


class AgentProcess:
    """The supervisor and the worker of one host.

    Args:
        argv: the supervisor's command line, with the prefix that enters the host.
        env: its whole environment.
        log: file to which both write.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._argv = list(argv)
        self._env = dict(env)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the supervisor, away from the terminal's Ctrl-C; it starts the worker."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def supervisor(self) -> Identity | None:
        """The supervisor; None when it does not run."""
        if self._process is None or self._process.poll() is not None:
            return None
        return identify(self._process.pid)

    @property
    def worker(self) -> Identity | None:
        """The worker that the supervisor runs now; None between a death and the restart."""
        supervisor = self.supervisor
        found = children(supervisor.pid) if supervisor else []
        return next((child for child in found if not _is_a_guests(command_line(child.pid))), None)

    def kill_worker(self) -> Identity:
        """Kill -9 the worker and wait until it is gone; the supervisor will start another.

        Raises:
            Broken: no worker runs.
        """
        worker = self._running(self.worker, "worker")
        kill_all([worker])
        return worker

    def kill_supervisor(self) -> None:
        """Kill -9 the supervisor and wait; the worker stays, with nobody to restart it."""
        kill_all([self._running(self.supervisor, "supervisor")])

    def kill(self) -> None:
        """Kill -9 supervisor and worker; the QEMUs live on. Idempotent."""
        supervisor = self.supervisor
        self.hold_restarts()  # so that no new worker appears between the two
        worker = self.worker
        kill_all([process for process in (supervisor, worker) if process])

    def hold_restarts(self) -> None:
        """Stop (SIGSTOP) the supervisor: a dead worker stays dead until `allow_restarts`."""
        self._signal(self.supervisor, signal.SIGSTOP)

    def allow_restarts(self) -> None:
        """Let the supervisor go on."""
        self._signal(self.supervisor, signal.SIGCONT)

    def freeze(self) -> None:
        """Stop (SIGSTOP) the worker: it neither answers nor dies, as on an overloaded host."""
        self._signal(self.worker, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen worker go on."""
        self._signal(self.worker, signal.SIGCONT)

    def stop(self, timeout_s: float = 60.0) -> None:
        """Ask the agent to end (SIGTERM) and wait; the QEMUs live on.

        Raises:
            Broken: it did not end in time.
        """
        supervisor = self.supervisor
        worker = self.worker
        self._signal(supervisor, signal.SIGTERM)
        for process in (supervisor, worker):
            if process and not wait_gone(process, timeout_s):
                raise Broken(
                    f"Agent (pid {process.pid}) did not end within {timeout_s:.0f} s of SIGTERM: {self.tail()}"
                )

    def reap(self) -> None:
        """Take note of a supervisor that ended, so that it is no zombie of this process."""
        if self._process is not None:
            self._process.wait()

    def is_running(self) -> bool:
        """Tell whether the supervisor runs."""
        return self.supervisor is not None

    def has_replaced(self, old: Identity) -> bool:
        """Tell whether a new worker runs in the place of the old one."""
        worker = self.worker
        return worker is not None and worker != old and not is_alive(old)

    def tail(self, lines: int = 15) -> str:
        """Return the end of the log."""
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _running(self, process: Identity | None, what: str) -> Identity:
        if process is None:
            raise Broken(f"No {what} runs for {self.log.stem}: {self.tail()}")
        return process

    def _signal(self, process: Identity | None, number: signal.Signals) -> None:
        if process is not None:
            send(process, number)


def _is_a_guests(command: str) -> bool:
    """Tell whether a process serves a guest: those whose agent has died become the supervisor's."""
    return "qemu-system" in command or Path(command.partition(" ")[0]).name == "swtpm"
