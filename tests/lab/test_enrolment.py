from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from vmferry.core.errors import TimedOut
from vmferry.lab import enrolment
from vmferry.lab.agents import AgentProcess
from vmferry.lab.hosts import LabHost
from vmferry.pki.certificates import encode_code


def host_that_printed(directory: Path, text: str) -> LabHost:
    """Return as much of a host as waiting for its code needs."""
    log = directory / "agent.log"
    log.write_text(text)
    return cast("LabHost", SimpleNamespace(name="host-a", agent=AgentProcess([], {}, log)))


async def test_the_command_is_found_whole_in_the_agents_log(tmp_path: Path) -> None:
    """Whatever else is in the log, the command is read to its last character."""
    code = encode_code(os.urandom(32), os.urandom(10))
    text = f"[info] not enrolled do='vmferry host add'\nrun:\n\n    vmferry host add host-a 10.77.0.1 {code}\n\nnext\n"
    found = await enrolment.wait_command(host_that_printed(tmp_path, text))
    assert found == ["host", "add", "host-a", "10.77.0.1", code]


async def test_an_agent_without_a_code_times_out_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that could not start says why in the error."""
    monkeypatch.setattr(enrolment, "CODE_TIMEOUT_S", 0.05)
    with pytest.raises(TimedOut, match="QEMU is missing"):
        await enrolment.wait_command(host_that_printed(tmp_path, "error: QEMU is missing\n"))
