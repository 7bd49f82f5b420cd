"""The demonstration as a person runs it: to its end, and interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vmferry.lab.demo import INTERRUPTED
from vmferry.lab.registry import Claim, all_labs

pytestmark = [pytest.mark.real, pytest.mark.slow]

MEASURES = ("total time", "rounds", "bytes sent", "bandwidth", "downtime", "guest_gap", "network_outage", "commit")


@contextmanager
def demo(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start the demonstration in a session of its own, its output in a pipe."""
    env = {**os.environ, "COLUMNS": "160", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "vmferry.lab.demo", *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        process.kill()


def labs_of(process: subprocess.Popen[str]) -> list[Claim]:
    """Return the labs that a process owns."""
    return [lab for lab in all_labs() if lab.owner.pid == process.pid]


def assert_nothing_left(labs: list[Claim], process: subprocess.Popen[str]) -> None:
    """No claim, process, namespace or file of these labs exists."""
    assert labs_of(process) == []
    for lab in labs:
        assert lab.processes() == []
        assert lab.namespaces() == []
        assert not lab.directory.exists()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read the output until a line has a text; returns everything read."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    pytest.fail(f"the demonstration ended without saying {text!r}:\n{seen}")


@pytest.mark.root
def test_the_demonstration_moves_a_guest_there_and_back() -> None:
    """It ends with code 0, whole memory and every measure of both moves, and leaves nothing."""
    with demo() as process:
        seen = read_until(process, "Guests run under")
        labs = labs_of(process)
        assert process.stdout is not None
        seen += process.stdout.read()
        assert process.wait() == 0, seen
        assert len(labs) == 1
        assert_nothing_left(labs, process)
    table = seen[seen.index("Measured") :]
    for name in (
        "total time",
        "rounds",
        "bytes sent",
        "bandwidth",
        "downtime",
        "guest_gap",
        "network_outage",
        "commit",
    ):
        assert name in table
    assert "not measured" not in table
    assert "no page was lost or stale" in table


@pytest.mark.root
@pytest.mark.parametrize("moment", ["Two hosts", "Guests run under", "A guest that writes", "$ vmferry migrate"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demonstration_leaves_nothing(moment: str, number: signal.Signals) -> None:
    """Ctrl-C or a polite end at any moment: the exit code says so, and nothing of the lab is left."""
    with demo() as process:
        read_until(process, moment)
        labs = labs_of(process)
        process.send_signal(number)
        assert process.stdout is not None
        rest = process.stdout.read()
        assert process.wait() == INTERRUPTED, rest
        assert_nothing_left(labs, process)


@pytest.mark.root
def test_a_killed_demonstration_is_swept_away_by_the_next_lab() -> None:
    """What kill -9 of the demonstration leaves behind goes with the next sweep."""
    from vmferry.lab.registry import sweep

    with demo() as process:
        read_until(process, "A guest that writes")
        labs = labs_of(process)
        process.kill()
        process.wait()
        assert len(labs) == 1
        assert labs[0].processes()
        assert labs[0].id in sweep()
        assert_nothing_left(labs, process)
