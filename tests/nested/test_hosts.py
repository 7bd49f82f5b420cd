"""Nested hosts as such: what is run in them, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vmferry.core.errors import Broken, TimedOut
from vmferry.lab.nested import NestedLab
from vmferry.lab.processes import find_lab_processes
from vmferry.lab.registry import all_labs, sweep
from vmferry.lab.scenarios import wait_until
from vmferry.lab.toolchain import find_qemus

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.nested,
    pytest.mark.xdist_group("nested"),
    pytest.mark.asyncio(loop_scope="session"),
]


async def test_a_command_tells_all_it_did(lab: NestedLab) -> None:
    """Exit code, standard output and standard error come back apart, and standard input goes there."""
    ran = await lab.hosts["host-a"].run("sh", "-c", "cat; echo err >&2; exit 3", text="in\n")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (3, "in\n", "err\n")


async def test_a_program_that_is_not_there(lab: NestedLab) -> None:
    """It is told as a shell tells it, and `must` raises."""
    assert (await lab.hosts["host-a"].run("no-such-program")).exit_code == 127
    with pytest.raises(Broken, match="`no-such-program` on nested host host-a ended with 127"):
        await lab.hosts["host-a"].must("no-such-program")


async def test_a_command_that_takes_too_long_is_killed(lab: NestedLab) -> None:
    """It and what it has started are gone when the caller is told."""
    with pytest.raises(TimedOut, match="took more than 1 s on nested host host-b"):
        await lab.hosts["host-b"].shell("sleep 4711; true", timeout_s=1)
    assert (await lab.hosts["host-b"].run("pgrep", "-f", "sleep 4711")).exit_code == 1


async def test_commands_do_not_wait_for_each_other(lab: NestedLab) -> None:
    """A short one is answered while a long one runs."""
    host = lab.hosts["host-a"]
    long = asyncio.create_task(host.shell("until [ -e /run/go-on ]; do sleep 0.05; done"))
    await host.must("true")
    assert not long.done()
    await host.must("touch", "/run/go-on")
    await long


async def test_each_has_a_kernel_and_a_root_of_its_own(lab: NestedLab, tmp_path: Path) -> None:
    """They see the machine's files; what they write reaches neither the machine nor each other."""
    (tmp_path / "seen").write_text("by all")
    boots = {await host.must("cat", "/proc/sys/kernel/random/boot_id") for host in lab.hosts.values()}
    boots.add(Path("/proc/sys/kernel/random/boot_id").read_text("ascii"))
    assert len(boots) == 3
    for host in lab.hosts.values():
        assert (await host.shell(f"cd {tmp_path}; cat seen; ls; echo {host.plan.name} > mine")) == "by allseen\n"
    assert [path.name for path in tmp_path.iterdir()] == ["seen"]


async def test_a_host_that_loses_its_power(lab: NestedLab) -> None:
    """Who waits for a command is told at once; it can be started again, and is a new one then."""
    host = lab.hosts["host-a"]
    await host.must("touch", "/etc/written-before")
    waiting = asyncio.create_task(host.must("sleep", "1000"))
    await host.must("true")
    await host.power_off()
    with pytest.raises(Broken, match="ended before its command did"):
        await waiting
    with pytest.raises(Broken, match="is not up"):
        await host.must("true")
    await host.start()
    assert (await host.run("ls", "/etc/written-before")).exit_code != 0


async def test_a_cable_that_is_unplugged(lab: NestedLab) -> None:
    """The host sees that its carrier is gone, and commands still reach it."""
    host = lab.hosts["host-b"]
    for up in (False, True):
        await host.set_link(up=up)
        await host.shell(f"until [ $(cat /sys/class/net/eth0/carrier) = {int(up)} ]; do sleep 0.05; done")


def own_labs() -> list[str]:
    """Return the ids of this process's labs; a claim goes when all else of a lab has gone."""
    return [claim.id for claim in all_labs() if claim.owner.pid == os.getpid()]


@pytest.mark.asyncio(loop_scope="function")
async def test_a_host_that_does_not_start_leaves_nothing() -> None:
    """The error has the emulator's own words; the lab with all it had is gone."""
    before = own_labs()
    newest = find_qemus()[0]
    with pytest.raises(Broken, match="(?s)ended before it was up.*no-such-option"):
        async with NestedLab(qemu=replace(newest, argv=(*newest.argv, "-no-such-option"))):
            pass
    assert own_labs() == before


@pytest.mark.asyncio(loop_scope="function")
async def test_an_owner_that_is_killed_leaves_nothing_behind_the_sweep() -> None:
    """Both emulators are found by the lab's mark and ended, and its files removed."""
    code = "import asyncio; from vmferry.lab.nested import NestedLab; asyncio.run(NestedLab().__aenter__())"
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", code, start_new_session=True)
    await wait_until(lambda: has_emulators(owner.pid), "both emulators run")
    owner.kill()
    await owner.wait()
    lab = next(claim for claim in all_labs() if claim.owner.pid == owner.pid)
    assert lab.id in sweep()
    assert not find_lab_processes(lab.id, directory=lab.directory)
    assert not lab.directory.exists()


async def has_emulators(owner: int) -> bool:
    """Tell whether the lab of a process has started both of its hosts."""
    labs = [claim for claim in all_labs() if claim.owner.pid == owner]
    return len([process for lab in labs for process in lab.processes() if process.pid != owner]) == 2
