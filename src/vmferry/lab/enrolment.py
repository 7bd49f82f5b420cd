"""Makes a lab's hosts and its operator members of one fleet, through the real commands."""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vmferry.core.errors import TimedOut

if TYPE_CHECKING:
    from vmferry.lab.hosts import Lab, LabHost

#: What an agent that is not enrolled prints, on a line of its own.
_COMMAND = re.compile(r"^\s+vmferry (host add .*)$", re.MULTILINE)
CODE_TIMEOUT_S = 60.0


def operator_environment(directory: Path) -> dict[str, str]:
    """Return what tells the command line whose identity to use."""
    return {"VMFERRY_CONFIG": str(directory)}


async def enrol(lab: Lab) -> None:
    """Make the CA on the first host, start every agent, and run the command that each prints.

    Raises:
        Broken: a command refused.
        TimedOut: an agent printed no command.
    """
    first = next(iter(lab.hosts.values()))
    ca = ["--ca-dir", str(first.state_dir / "ca")]
    await lab.must(first.name, "ca", "init", *ca)
    for host in lab.hosts.values():
        host.agent.start()
    for host in lab.hosts.values():
        await lab.must(first.name, *await wait_command(host), *ca)


async def wait_command(host: LabHost) -> list[str]:
    """Wait until an agent has printed the command that enrols it; returns its arguments.

    Raises:
        TimedOut: it did not; the error has the end of its log.
    """
    deadline = time.monotonic() + CODE_TIMEOUT_S
    while not (found := find_command(host.agent.tail(200))):
        if time.monotonic() > deadline:
            raise TimedOut(f"Agent of {host.name} printed no enrolment code; its log ends with:\n{host.agent.tail()}")
        await asyncio.sleep(0.02)
    return found


def find_command(log: str) -> list[str]:
    """Return the arguments of the command that an agent's log names; empty when there is none yet."""
    found = _COMMAND.search(log)
    return shlex.split(found[1]) if found else []
