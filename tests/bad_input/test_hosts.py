"""Hosts in a bad way: silent, without QEMU, with a taken port, with a full disk; and what a guest's process may do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
import tomli_w
from tests.bad_input.conftest import Vmferry, journal_rows

from vmferry.lab.agents import AgentProcess
from vmferry.lab.commands import Ran
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab, LabHost
from vmferry.lab.processes import command_line
from vmferry.lab.scenarios import remove, started, wait_until
from vmferry.ports.hypervisor import RunState

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


async def test_a_host_whose_agent_is_gone_is_named(lab: Lab, vmferry: Vmferry, web7: GuestRun) -> None:
    """The others are shown; what needs that host fails with its name and what to do, and the guest runs on."""
    host = lab.hosts["host-b"]
    host.agent.kill()
    try:
        listed = await vmferry("guest", "list", "--json")
        assert (listed.exit_code, list(json.loads(listed.stdout)["silent"])) == (0, ["host-b"])
        for order in (["check", "web-7", "host-b"], ["migrate", "web-7", "host-b"], ["guest", "show", "web-8"]):
            ran = await vmferry(*order)
            assert ran.exit_code == 7, ran
            assert "Agent of host-b at 10.77.0.2 port 7716 does not answer" in ran.stderr + ran.stdout
        assert (await web7.view()).run_state is RunState.RUNNING
    finally:
        host.agent.reap()
        await lab.restart("host-b")


async def test_a_frozen_host_delays_nobody_for_long(lab: Lab, vmferry: Vmferry, web7: GuestRun) -> None:
    """A host that is connected to but silent is named; guests of others are found without waiting for it."""
    lab.hosts["host-b"].agent.freeze()
    try:
        shown = await vmferry("guest", "show", "web-7", "--json")
        assert (shown.exit_code, json.loads(shown.stdout)["host"]) == (0, "host-a")
        listed = await vmferry("host", "list")
        assert (listed.exit_code, "host-b did not answer" in listed.stderr) == (0, True)
    finally:
        lab.hosts["host-b"].agent.thaw()


def write_config(lab: Lab, settings: Mapping[str, object]) -> Path:
    """Write host-b's configuration with some keys changed."""
    config = tomllib.loads((lab.hosts["host-b"].directory / "agent.toml").read_text())
    path = lab.directory / "bad.toml"
    path.write_text(tomli_w.dumps({**config, **settings}))
    return path


async def start_badly(lab: Lab, settings: Mapping[str, object]) -> Ran:
    """Start an agent of host-b with other settings, which must end by itself."""
    config = write_config(lab, settings)
    return await lab.cli("host-b", "agent", "--no-supervisor", "--config", str(config), timeout_s=60)


async def test_an_agent_that_cannot_work_says_why_and_ends(lab: Lab, web7: GuestRun, untouched: None) -> None:
    """A state directory in use, a taken port, a key that is not known: one line each, and the other agent goes on."""
    other = str(lab.directory / "other-state")
    cases: list[tuple[dict[str, object], int, list[str]]] = [
        ({}, 7, ["another agent"]),
        ({"state_dir": other}, 7, ["cannot listen on 10.77.0.2 port 7716", "Address already in use"]),
        ({"state_dir": other, "listen": "10.9.9.9"}, 7, ["cannot listen on 10.9.9.9"]),
        ({"prot": 1}, 2, ["unknown key prot", "known: name, listen, port"]),
    ]
    for settings, exit_code, words in cases:
        ran = await start_badly(lab, settings)
        assert (settings, ran.exit_code) == (settings, exit_code), ran
        assert not [word for word in words if word not in ran.stderr], ran.stderr
        assert "Traceback" not in ran.stderr


@contextlib.asynccontextmanager
async def other_agent(lab: Lab, config: Path, before: Sequence[str] = ()) -> AsyncIterator[AgentProcess]:
    """Run host-b's agent in another way while the block runs, then as always."""
    host = lab.hosts["host-b"]
    await asyncio.to_thread(host.agent.stop)
    inner, prefix = lab.command("host-b", "agent", "--config", str(config)), len(lab.inside("host-b"))
    argv = [*inner[:prefix], *before, *inner[prefix:]]
    agent = AgentProcess(argv, lab.environment(), host.directory / "other.log")
    agent.start()
    try:
        yield agent
    finally:
        await asyncio.to_thread(agent.stop)
        agent.reap()
        host.agent.reap()
        await lab.restart("host-b")


async def test_an_agent_without_qemu_ends(lab: Lab, web7: GuestRun) -> None:
    """A program that is missing is named; exit code 2."""
    await asyncio.to_thread(lab.hosts["host-b"].agent.stop)
    lab.hosts["host-b"].agent.reap()
    try:
        ran = await start_badly(lab, {"qemu": {"argv": ["/none/qemu"]}})
    finally:
        await lab.restart("host-b")
    assert (ran.exit_code, "/none/qemu does not exist" in ran.stderr) == (2, True), ran


async def test_an_agent_with_a_broken_qemu_runs_on_and_says_so(lab: Lab, vmferry: Vmferry, web7: GuestRun) -> None:
    """Running guests need their agent: it stays, names the program and what to do, and takes no guest."""
    config = write_config(lab, {"qemu": {"argv": ["/bin/true"]}})
    async with other_agent(lab, config):

        async def answers() -> bool:
            return bool(json.loads((await vmferry("guest", "list", "--json")).stdout)["silent"] == {})

        await wait_until(answers, "the agent's start")
        for order in (["host", "show", "host-b"], ["check", "web-7", "host-b"], ["migrate", "web-7", "host-b"]):
            ran = await vmferry(*order)
            assert ran.exit_code == 7, ran
            assert "QEMU /bin/true does not start" in ran.stderr + ran.stdout
    assert (await web7.view()).run_state is RunState.RUNNING


@pytest_asyncio.fixture(loop_scope="module")
async def full_host(lab: Lab, web7: GuestRun) -> AsyncIterator[Path]:
    """Run host-b's agent with its state on a small file system that is filled then; yields the file that fills it."""
    host = lab.hosts["host-b"]
    saved = lab.directory / "saved"
    mount = (
        'cp -a "$0" "$1" && mount -t tmpfs -o size=2m,mode=0700 tmpfs "$0" && cp -a "$1"/. "$0" && shift && exec "$@"'
    )
    before = ["unshare", "-m", "sh", "-c", mount, str(host.state_dir), str(saved)]
    async with other_agent(lab, host.directory / "agent.toml", before) as agent:
        await host.api.wait_answer()
        worker = agent.worker
        assert worker is not None
        yield await asyncio.to_thread(_fill, Path(f"/proc/{worker.pid}/root{host.state_dir}/filler"))


def _fill(path: Path) -> Path:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


async def test_a_full_disk_refuses_and_recovers(lab: Lab, vmferry: Vmferry, web7: GuestRun, full_host: Path) -> None:
    """With no room for the journal nothing is begun, here or towards here; with room again everything works."""
    text = (lab.directory / "web-7.toml").read_text().replace('"web-7"', '"new-1"')
    (lab.directory / "new-1.toml").write_text(text)
    order = ["guest", "run", str(lab.directory / "new-1.toml"), "--on", "host-b"]
    ran = await vmferry(*order)
    assert ran.exit_code == 7, ran
    assert "Journal" in ran.stderr
    assert "full" in ran.stderr
    ran = await vmferry("migrate", "web-7", "host-b")
    assert ran.exit_code in {6, 7}, ran
    assert "guest runs on host-a" in ran.stdout
    assert (await web7.view()).run_state is RunState.RUNNING
    assert (await web7.oracle()).startswith("oracle clean")

    async def no_qemu() -> bool:
        return not [each for each in lab.processes_of("host-b") if "qemu-system" in command_line(each.pid)]

    await wait_until(no_qemu, "no QEMU is left on host-b")
    await asyncio.to_thread(full_host.unlink)
    assert (await vmferry(*order)).exit_code == 0
    assert (await vmferry("guest", "stop", "new-1", "--force")).exit_code == 0
    assert (await vmferry("guest", "remove", "new-1")).exit_code == 0


def status(pid: int) -> dict[str, str]:
    """Return /proc/PID/status."""
    rows = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {key: value.strip() for key, _, value in rows}


async def test_a_guests_process_is_nobody_and_sees_nothing(lab: Lab, web7: GuestRun) -> None:
    """QEMU has a user of its own, no capability, a seccomp filter; it reads neither state nor another guest's files."""
    other = await started(lab, GuestPlan("micro", "other", memory_mib=64, working_set_mib=16, rate=8), "host-a")
    pid = (await web7.view()).pid
    assert pid is not None
    seen = status(pid)
    uid = int(seen["Uid"].split()[0])
    assert (len(set(seen["Uid"].split() + seen["Gid"].split())), seen["Groups"]) == (1, "")
    assert [int(seen[key], 16) for key in ("CapEff", "CapPrm", "CapInh", "CapAmb")] == [0, 0, 0, 0]
    assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
    assert uid != int(status((await other.view()).pid or 0)["Uid"].split()[0])
    host = lab.hosts["host-a"]
    guests = host.run_dir / "guests"
    secret = [path for path in host.state_dir.rglob("*") if path.is_file()]
    for path in [*secret, guests / "other" / "console.log", guests / "other" / "qmp.sock", lab.operator]:
        for access in ("-r", "-w"):
            argv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "/usr/bin/test", access, str(path)]
            assert (path, (await lab.run(argv)).exit_code) == (path, 1)
    await remove(lab, other)


async def test_files_of_the_agent_are_private(lab: Lab, web7: GuestRun) -> None:
    """Below the state and run directories nobody but the owner may do anything."""
    for host in lab.hosts.values():
        for path in [*host.state_dir.rglob("*"), *host.run_dir.rglob("*")]:
            assert (path, path.lstat().st_mode & 0o077) == (path, 0)


async def test_a_streams_key_is_nowhere_but_in_its_files(lab: Lab, vmferry: Vmferry, web7: GuestRun) -> None:
    """While a migration is encrypted its key is in no journal, log, command line or environment; later it is gone."""
    order = ["migrate", "web-7", "host-b", "--bandwidth", "1MiB/s", "--detach"]
    assert (await vmferry(*order)).exit_code == 0
    again = await vmferry(*order)
    assert (again.exit_code, "cancel it: `vmferry cancel web-7`" in again.stderr) == (5, True), again
    keys = [host.run_dir / "guests" / "web-7" / "tls" / "keys.psk" for host in lab.hosts.values()]

    async def both_written() -> bool:
        return all(len(_key_in(path)) == 64 for path in keys)

    await wait_until(both_written, "the keys")
    key = _key_in(keys[0])
    for host in lab.hosts.values():
        assert key not in str(journal_rows(host.state_dir / "journal.sqlite"))
        assert not [path for path in _files(host) if path not in keys and key.encode() in _read(path)]
        for process in lab.processes_of(host.name):
            for file in ("cmdline", "environ"):
                assert key.encode() not in _read(Path(f"/proc/{process.pid}/{file}"))
    assert (await vmferry("cancel", "web-7")).exit_code == 0

    async def both_gone() -> bool:
        return not [path for path in keys if path.exists()]

    await wait_until(both_gone, "the keys are gone")
    assert (await web7.oracle()).startswith("oracle clean")


def _key_in(path: Path) -> str:
    """Return the key in a file; empty while there is none."""
    return _read(path).decode().strip().partition(":")[2]


def _read(path: Path) -> bytes:
    """Return what is in a file; nothing when it, or the process that it tells of, has just gone."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _files(host: LabHost) -> list[Path]:
    return [path for path in host.directory.rglob("*") if path.is_file()]
