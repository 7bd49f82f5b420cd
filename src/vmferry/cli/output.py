"""What a command prints: data on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vmferry.core.errors import VmferryError

#: Ctrl-C, as shells report it (128 + SIGINT).
INTERRUPTED = 130
#: Silence that nobody takes for a command that hangs.
PATIENCE_S = 1.0


def print_json(value: Any) -> None:
    """Print one JSON value on a line of its own, at once."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def say(text: str) -> None:
    """Tell the person something that is not data."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def waiting_for(text: str) -> Iterator[None]:
    """Tell the person at a terminal what is waited for, when it takes longer than a moment."""
    if not sys.stderr.isatty():
        yield
        return
    timer = threading.Timer(PATIENCE_S, say, [f"waiting for {text} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def print_table(headings: list[str], rows: list[list[str]]) -> None:
    """Print a table whose columns are as wide as they must be; it can be cut with awk."""
    widths = [max(len(row[index]) for row in [headings, *rows]) for index in range(len(headings))]
    for row in [headings, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def report_error(error: VmferryError, *, as_json: bool) -> int:
    """Tell about an error and return the exit code.

    Args:
        error: what happened.
        as_json: put the problem body on standard output as well, for the program that asked for JSON.
    """
    if as_json:
        from vmferry.api.problems import to_problem

        print_json({"event": "problem", **to_problem(error)})
    say(f"error: {error}")
    blockers = getattr(error, "blockers", ())
    for blocker in blockers:
        say(f"  {blocker.code}: {blocker.what}; {blocker.fix}")
    return error.exit_code
