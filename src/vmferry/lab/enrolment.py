"""Makes a lab's hosts and its operator members of one fleet, through the real commands."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vmferry.core.errors import TimedOut

if TYPE_CHECKING:
    from vmferry.lab.hosts import Lab, LabHost

#: What an agent that is not enrolled prints: base32 in groups of five (vmferry.pki.certificates.encode_code).
_CODE = re.compile(r"\b([A-Z2-7]{5}(?:-[A-Z2-7]{5}){4,}(?:-[A-Z2-7]{1,4})?)\b")
CODE_TIMEOUT_S = 20.0


def operator_environment(directory: Path) -> dict[str, str]:
    """Return what tells the command line whose identity to use."""
    return {"VMFERRY_CONFIG": str(directory)}


async def enrol(lab: Lab) -> None:
    """Make the CA on the first host, then add every host by the code that its agent prints.

    Raises:
        Broken: a command refused.
        TimedOut: an agent printed no code.
    """
    first = next(iter(lab.hosts.values()))
    ca = str(first.state_dir / "ca")
    await lab.must(first.name, "ca", "init", "--ca-dir", ca)
    for host in lab.hosts.values():
        host.agent.start()
    for host in lab.hosts.values():
        await lab.must(first.name, "host", "add", host.name, host.address, await wait_code(host), "--ca-dir", ca)


async def wait_code(host: LabHost) -> str:
    """Wait until an agent has printed its enrolment code, and return it.

    Raises:
        TimedOut: it did not; the error has the end of its log.
    """
    deadline = time.monotonic() + CODE_TIMEOUT_S
    while not (found := _CODE.search(host.agent.tail(200))):
        if time.monotonic() > deadline:
            raise TimedOut(f"Agent of {host.name} printed no enrolment code; its log ends with:\n{host.agent.tail()}")
        await asyncio.sleep(0.02)
    return found[1]
