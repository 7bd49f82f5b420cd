"""A very small process that starts the agent again when it dies; guests live on meanwhile.

Under systemd it is not needed (`--no-supervisor`, `Restart=always`). A worker that never came up is not started again:
its error is the answer. One that was up once is, after a pause that grows while it keeps dying.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from vmferry.agent.readiness import READY_FD

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
#: A worker that lived this long is taken for healthy: the pause starts anew.
HEALTHY_S = 30.0


class Supervisor:
    """Keeps one worker running.

    Args:
        argv: the worker's command line.
        env: its environment.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self._argv = list(argv)
        self._env = dict(env)
        self._worker: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._was_ready = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Run until told to end (SIGTERM, SIGINT), or until the worker ends well or never came up.

        Returns:
            The exit code: the worker's, 128 + signal for one that a signal ended.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        pause_s = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            code = self._run_once()
            if self._stopping or code == 0 or not self._was_ready:
                return code
            pause_s = next_pause(pause_s, time.monotonic() - began)
            sys.stderr.write(f"vmferry: agent ended with {code}; starting it again in {pause_s:.1f} s\n")
            sys.stderr.flush()
            self._sleep(pause_s)
            if self._stopping:
                return 0

    def _run_once(self) -> int:
        """Run one worker to its end; return its exit code."""
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        try:
            self._worker = subprocess.Popen(
                self._argv, env={**self._env, READY_FD: str(ready_write)}, pass_fds=(ready_write,)
            )
            os.close(ready_write)
            ready_write = -1
            if self._stopping:  # the signal came while the worker was being made
                self._worker.terminate()
            # One byte when it is up; the end when it dies before that.
            self._was_ready |= os.read(ready_read, 1) == b"1"
            code = self._worker.wait()
        finally:
            os.close(ready_read)
            if ready_write >= 0:
                os.close(ready_write)
        return 128 - code if code < 0 else code

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        """End the worker politely, and do not start it again."""
        self._stopping = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"1")
        if self._worker is not None and self._worker.poll() is None:
            self._worker.terminate()

    def _sleep(self, seconds: float) -> None:
        """Wait, but no longer than until told to end."""
        select.select([self._wake_read], [], [], seconds)


def next_pause(pause_s: float, lived_s: float) -> float:
    """Return how long to wait before the next start: twice as long each time, from the start again after a good run."""
    return FIRST_PAUSE_S if lived_s >= HEALTHY_S else min(pause_s * 2, LONGEST_PAUSE_S)
