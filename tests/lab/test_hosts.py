from __future__ import annotations

import asyncio
import os
import sys
import tomllib

import pytest

from vmferry.core.errors import Broken
from vmferry.lab import enrolment
from vmferry.lab.commands import run_command
from vmferry.lab.hosts import AGENT_PORT, Lab
from vmferry.lab.processes import MARK
from vmferry.lab.registry import Claim, all_labs

pytestmark = [pytest.mark.real, pytest.mark.root]


def ours() -> list[Claim]:
    """Return the labs of this process."""
    return [lab for lab in all_labs() if lab.owner.pid == os.getpid()]


async def test_a_lab_that_cannot_be_built_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a step of building fails, what was built before it is removed and the error comes through."""
    seen: list[Claim] = []

    async def refuse(lab: Lab) -> None:
        seen.extend(ours())
        assert seen[0].namespaces()
        raise Broken("no enrolment today")

    monkeypatch.setattr(enrolment, "enrol", refuse)
    with pytest.raises(Broken, match="no enrolment today"):
        async with Lab(namespaces=True):
            pytest.fail("the lab was built")
    assert ours() == []
    assert seen[0].namespaces() == []
    assert not seen[0].directory.exists()


async def test_a_lab_that_is_cancelled_while_it_is_built_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelling in the middle of building removes everything, the commands that run included."""
    reached = asyncio.Event()

    async def hang(lab: Lab) -> None:
        reached.set()
        await lab.run([*lab.inside("host-a"), "sleep", "600"])

    monkeypatch.setattr(enrolment, "enrol", hang)
    task = asyncio.create_task(Lab(namespaces=True).__aenter__())
    await reached.wait()
    (lab,) = ours()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lab.processes() == []
    assert ours() == []


async def test_each_host_has_its_own_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, addresses and directories differ; QEMU and the test's own settings are in both."""

    async def read(lab: Lab) -> None:
        files = [host.directory / "agent.toml" for host in lab.hosts.values()]
        first, second = (tomllib.loads(file.read_text()) for file in files)
        assert (first["listen"], second["listen"]) == ("10.77.0.1", "10.77.0.2")
        assert first["port"] == second["port"] == AGENT_PORT
        assert first["state_dir"] != second["state_dir"]
        assert first["run_dir"] != second["run_dir"]
        assert first["qemu"]["uids"] != second["qemu"]["uids"]
        assert ("memory_reserve" in first, second["memory_reserve"]) == (False, "1GiB")
        raise Broken("seen")

    monkeypatch.setattr(enrolment, "enrol", read)
    with pytest.raises(Broken, match="seen"):
        async with Lab(namespaces=True, settings={"host-b": {"memory_reserve": "1GiB"}}):
            pytest.fail("the lab was built")


async def test_every_command_of_a_lab_carries_its_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a lab starts can be found by its mark."""

    async def look(lab: Lab) -> None:
        script = f"import os; print(os.environ[{MARK!r}])"
        ran = await lab.run([sys.executable, "-c", script])
        assert ran.stdout.strip() == lab.directory.name
        raise Broken("seen")

    monkeypatch.setattr(enrolment, "enrol", look)
    with pytest.raises(Broken, match="seen"):
        async with Lab(namespaces=True):
            pytest.fail("the lab was built")


async def test_a_late_command_is_ended() -> None:
    """A command that takes too long is ended, and the caller is told."""
    with pytest.raises(TimeoutError):
        await run_command(["sleep", "600"], dict(os.environ), timeout_s=0.05)


async def test_a_command_tells_what_it_did() -> None:
    """Exit code and both outputs come back."""
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    ran = await run_command([sys.executable, "-c", script], dict(os.environ), timeout_s=30)
    assert (ran.exit_code, ran.stdout, ran.stderr) == (3, "out\n", "err\n")
