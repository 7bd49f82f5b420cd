"""Runs ip(8) and tc(8): argument lists, never a shell; a failure says what was asked and what was answered."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from vmferry.core.errors import Broken


def run(*argv: str, text: str | None = None) -> str:
    """Run one command and return what it printed; the terminal's Ctrl-C does not reach it.

    Raises:
        Broken: the command is missing or failed.
    """
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False, process_group=0)
    except FileNotFoundError as error:
        raise Broken(f"Command {argv[0]} is not installed", fix="apt-get install iproute2") from error
    if done.returncode:
        raise Broken(f"`{' '.join(argv)}` failed with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def batch(namespace: str, lines: Sequence[str]) -> None:
    """Run several ip(8) commands inside one namespace, in order; ends at the first that fails."""
    run("ip", "-n", namespace, "-batch", "-", text="\n".join(lines) + "\n")
