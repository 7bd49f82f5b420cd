"""Follows a hand-over's stream to its end and shows it: live, as plain lines, or as the JSON lines themselves."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from vmferry.cli.output import INTERRUPTED, print_json, say
from vmferry.core.errors import Broken, InDoubt, TimedOut, Unreachable, VmferryError
from vmferry.core.progress import Outcome

if TYPE_CHECKING:
    from vmferry.cli.fleet import Fleet
    from vmferry.core.progress import ProgressEvent

#: An agent that restarts is back within this; the hand-over goes on or is taken up again meanwhile.
RECONNECT_S = 30.0
RETRY_EVERY_S = 1.0

#: Exit codes as the errors of the same meaning have them.
EXIT_CODES = {
    Outcome.MOVED: 0,
    Outcome.CANCELLED: 1,
    Outcome.BLOCKED: 3,
    Outcome.ABORTED: Broken.exit_code,
    Outcome.RETURNED: Broken.exit_code,
    Outcome.LOST: Broken.exit_code,
    Outcome.HELD: InDoubt.exit_code,
}


def follow(fleet: Fleet, view: dict[str, Any], *, as_json: bool) -> int:
    """Show a hand-over until it ends; return the exit code of its outcome, 130 after Ctrl-C.

    Ctrl-C touches nothing but this command.

    Args:
        fleet: whom to ask.
        view: `handover`, `guest`, `source` (which streams it) and `destination`.
        as_json: print the agent's lines as they are.

    Raises:
        VmferryError: what the agent raised.
        Unreachable: the source's agent has not answered for half a minute, and the destination's knows of no end; the
            hand-over may go on.
    """
    show, screen = output_of(view, as_json=as_json)
    last: dict[str, Any] = {}
    lines = _Lines(fleet, view)
    try:
        with screen:
            for line in lines:
                last = line
                show(line)
    except KeyboardInterrupt:
        handover = view["handover"]
        say(
            f"\ndetached: the migration of {view['guest']} to {view['destination']} goes on;"
            f" `vmferry watch {handover}` shows it again, `vmferry cancel {handover}` ends it"
        )
        return INTERRUPTED
    if lines.arrived is not None:
        return _tell_arrived(lines.arrived, as_json=as_json)
    return EXIT_CODES[Outcome(last["outcome"])]


def _tell_arrived(view: dict[str, Any], *, as_json: bool) -> int:
    """Tell what the destination knows of a move whose source does not answer any more."""
    if as_json:
        print_json({"event": "arrived", **view})
    guest, source, destination = view["guest"], view["source"], view["destination"]
    say(f"guest {guest} runs on {destination}, which says so; {source}, which has the measures, does not answer")
    return EXIT_CODES[Outcome.MOVED]


class _Lines:
    """Yields each line of a hand-over's stream once, over as many connections as it takes.

    A stream begins anew on each connection, so lines up to the last one seen are left out. The source has it; when that
    stays away, the destination is asked whether the guest has arrived.
    """

    def __init__(self, fleet: Fleet, view: dict[str, Any]) -> None:
        self._fleet = fleet
        self._view = view
        self._seen_ms: float | None = None  #: of the newest line; None: no line yet
        self._finished = False
        self._told_lost = False  #: once per loss is enough
        self.arrived: dict[str, Any] | None = None  #: the destination's view, when only that tells the end

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield lines until the end of the hand-over; raises as `follow` says."""
        patience = time.monotonic() + RECONNECT_S
        while not self._finished:
            fault: VmferryError = Unreachable(f"agent of {self._view['source']} ended the stream early", retry=True)
            try:
                for line in self._one_connection():
                    patience, self._told_lost = time.monotonic() + RECONNECT_S, False
                    yield line
            except (Unreachable, TimedOut) as error:
                fault = error
            if not self._finished:
                self._wait_before_retry(fault, patience)

    def _one_connection(self) -> Iterator[dict[str, Any]]:
        known_ms = self._seen_ms
        for line in self._fleet.stream(self._view["source"], f"/v1/handovers/{self._view['handover']}/watch"):
            at_ms = float(line.get("at_ms", 0))
            self._finished = line.get("event") == "finished"
            if self._finished or known_ms is None or at_ms > known_ms:
                yield line
            self._seen_ms = at_ms if self._seen_ms is None else max(self._seen_ms, at_ms)
            if self._finished:
                return

    def _wait_before_retry(self, fault: VmferryError, patience: float) -> None:
        """Wait a moment; gives up when nothing ever came, or for too long."""
        if self._seen_ms is None or time.monotonic() > patience:
            self._ask_destination(fault)
            return
        if not self._told_lost:
            say(f"connection to the agent of {self._view['source']} lost, trying again; the migration does not need it")
            self._told_lost = True
        time.sleep(RETRY_EVERY_S)
        self._fleet.refresh()  # its agent may be back at another address

    def _ask_destination(self, fault: VmferryError) -> None:
        """End with what the destination knows of the guest's arrival, else with why the source cannot be asked."""
        fault.fix = f"the migration may go on; show it again with `vmferry watch {self._view['handover']}`"
        destination = self._view["destination"]
        try:
            found = self._fleet.ask(destination, "GET", f"/v1/handovers/{self._view['handover']}")
        except VmferryError:
            raise fault from None
        if not (found["finished"] and found["owner"] == destination and found["state"] == "running"):
            fault.what += f"; on {destination} the hand-over is in state {found['state']}, owner {found['owner']}"
            raise fault
        self.arrived, self._finished = found, True


def output_of(
    view: dict[str, Any], *, as_json: bool
) -> tuple[Callable[[dict[str, Any]], None], AbstractContextManager[object]]:
    """Return what shows a line of a watch, and the context in which it can.

    Args:
        view: `guest`, `source` and `destination`.
        as_json: print the lines as they are.
    """
    return (print_json, nullcontext()) if as_json else _text_output(view)


def _text_output(view: dict[str, Any]) -> tuple[Callable[[dict[str, Any]], None], AbstractContextManager[object]]:
    """Return what shows a line, and the context in which it can: a live view on a terminal, else plain lines."""
    from vmferry.cli.render.events import parse_event
    from vmferry.cli.render.scene import Scene, fold

    scene = Scene(view["guest"], view["source"], view["destination"])
    draw, screen = _live(scene) if sys.stdout.isatty() else (_print_plain, nullcontext())

    def show(line: dict[str, Any]) -> None:
        nonlocal scene
        event = parse_event(line)
        if event is not None:
            before, scene = scene, fold(scene, event)
            draw(before, scene, event)

    return show, screen


def _print_plain(before: Any, after: Any, event: ProgressEvent) -> None:
    from vmferry.cli.render.plain import plain_lines

    for text in plain_lines(before, after, event):
        print(text, flush=True)


def _live(scene: Any) -> tuple[Callable[[Any, Any, ProgressEvent], None], AbstractContextManager[object]]:
    from rich.console import Console
    from rich.live import Live

    from vmferry.cli.render.live import draw

    live = Live(draw(scene), console=Console(highlight=False), auto_refresh=False, vertical_overflow="visible")
    return lambda _before, after, _event: live.update(draw(after), refresh=True), live
