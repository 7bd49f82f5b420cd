"""Measures network outages from the shell, also from inside a network namespace.

    python -m vmferry.measure.prober 10.0.0.7 --interval-ms 2 --json-lines

A line ``mark NAME`` on its input ends the running window and opens one of that name; ``window NAME START END`` asks
for one that lies in the past. Each window is reported when the answers to its last probes have had time to come; the
summary over all of them ends the output, after SIGINT or SIGTERM, or the end of an input that is a pipe. All stamps
are CLOCK_MONOTONIC, in ns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from vmferry.measure.echo import ECHO_PORT, EchoProber

if TYPE_CHECKING:
    from types import FrameType

_FIRST_WINDOW = "start"
_TICK_S = 0.05
_STDIN = 0
_PR_SET_PDEATHSIG = 1
_NS_PER_MS = 1_000_000


class Windows:
    """Turns marks into windows and windows into lines."""

    def __init__(self, prober: EchoProber, *, grace_ms: float, json_lines: bool) -> None:
        self._prober = prober
        self._grace_ns = int(grace_ms * _NS_PER_MS)
        self._json_lines = json_lines
        self._began_ns = self._start_ns = time.monotonic_ns()
        self._name = _FIRST_WINDOW
        self._waiting: list[tuple[str, int, int]] = []
        self._answered = False

    def mark(self, name: str) -> None:
        """End the running window and opens another."""
        now = time.monotonic_ns()
        self._waiting.append((self._name, self._start_ns, now))
        self._name, self._start_ns = name, now

    def ask(self, name: str, start_ns: int, end_ns: int) -> None:
        """Report a window that is over, beside the running one."""
        self._waiting.append((name, start_ns, end_ns))

    def tick(self) -> None:
        """Report the windows whose time for late answers is over, and the very first answer."""
        now = time.monotonic_ns()
        while self._waiting and now - self._waiting[0][2] >= self._grace_ns:
            self._report("window", *self._waiting.pop(0))
        if not self._answered and self._prober.answered:
            self._answered = True
            self._emit({"event": "answered", "at_ns": now})

    def finish(self) -> None:
        """Report the rest, then the summary."""
        self._prober.pause()
        ended = time.monotonic_ns()
        self.mark("")
        while self._waiting:
            time.sleep(_TICK_S)
            self.tick()
        self._report("summary", "all", self._began_ns, ended)

    def _report(self, event: str, name: str, start_ns: int, end_ns: int) -> None:
        stats = asdict(self._prober.window(start_ns, end_ns))
        self._emit({"event": event, "name": name, "start_ns": start_ns, "end_ns": end_ns, **stats})

    def _emit(self, fields: dict[str, object]) -> None:
        if self._json_lines:
            text = json.dumps(fields)
        else:
            text = " ".join(f"{key}={value}" for key, value in fields.items() if not key.endswith("_ns"))
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


class _Stopper:
    """Remembers that a signal asked for the end."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


def _follow_input(windows: Windows, stopper: _Stopper) -> None:
    """Obey marks until a signal or the end of the input: a prober does not outlive the one who asked for it."""
    rest = ""
    with selectors.DefaultSelector() as selector:
        with contextlib.suppress(PermissionError):  # /dev/null and files cannot be waited for and do not end it
            selector.register(_STDIN, selectors.EVENT_READ)
        while not stopper.asked:
            if not selector.get_map():
                time.sleep(_TICK_S)
            elif selector.select(_TICK_S):
                data = os.read(_STDIN, 4096)
                if not data:
                    return
                *lines, rest = (rest + data.decode(errors="replace")).split("\n")
                for line in lines:
                    _obey(line.strip(), windows)
            windows.tick()


def _obey(line: str, windows: Windows) -> None:
    match line.split():
        case ["mark", *words] if words:
            windows.mark(" ".join(words))
        case ["window", name, start, end] if start.isdecimal() and end.isdecimal():
            windows.ask(name, int(start), int(end))
        case []:
            pass
        case _:
            sys.stderr.write(f"unknown line {line!r}, expected: mark NAME, or: window NAME START_NS END_NS\n")


def _die_with(parent: int) -> None:
    """Have the kernel kill this process as soon as its parent ends, whatever ends it.

    Source: PR_SET_PDEATHSIG(2const); the parent may have ended before the call.
    """
    import ctypes

    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) or os.getppid() != parent:
        raise SystemExit(f"process {parent} is not the parent of this one, or has ended")


def main() -> int:
    """Probe until a signal comes; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vmferry.measure.prober")
    parser.add_argument("address", help="IPv4 address of the guest")
    parser.add_argument("--port", type=int, default=ECHO_PORT)
    parser.add_argument("--interval-ms", type=float, default=2.0)
    parser.add_argument(
        "--grace-ms", type=float, default=500.0, help="time for late answers before a window is reported"
    )
    parser.add_argument("--json-lines", action="store_true")
    parser.add_argument(
        "--parent", type=int, help="end, at the latest, when this process does: the one that started it"
    )
    asked = parser.parse_args()
    if asked.parent is not None:
        _die_with(asked.parent)
    stopper = _Stopper()
    try:
        with EchoProber(asked.address, asked.port, interval_ms=asked.interval_ms) as prober:
            windows = Windows(prober, grace_ms=asked.grace_ms, json_lines=asked.json_lines)
            _follow_input(windows, stopper)
            windows.finish()
    except OSError as error:
        sys.stderr.write(f"cannot probe {asked.address}:{asked.port}: {error}; check the address and the route to it\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
