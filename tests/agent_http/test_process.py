"""The agent as a process: supervisor, state lock, port, signals, readiness."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.agent.listener import Listener
from vmferry.agent.readiness import tell_ready
from vmferry.agent.state_lock import hold_state
from vmferry.agent.supervisor import FIRST_PAUSE_S, HEALTHY_S, LONGEST_PAUSE_S, next_pause
from vmferry.core.errors import Broken

SUPERVISE = """
import os, sys
from vmferry.agent.supervisor import Supervisor
sys.exit(Supervisor(sys.argv[1:], os.environ).run())
"""
READY = "import os; os.write(int(os.environ['VMFERRY_READY_FD']), b'1')"


def worker(body: str) -> list[str]:
    """Return the command line of a supervisor with a worker of this code."""
    return [sys.executable, "-c", SUPERVISE, sys.executable, "-u", "-c", textwrap.dedent(body)]


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ended at the end."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start(started: list[subprocess.Popen[str]], argv: list[str]) -> subprocess.Popen[str]:
    """Start a process whose output can be read."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.append(process)
    return process


def read_pid(process: subprocess.Popen[str]) -> int:
    """Return the next line of its output as a number."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_killed_worker_is_started_again(started: list[subprocess.Popen[str]]) -> None:
    """A worker that was up and is killed is replaced, again and again; SIGTERM ends both."""
    process = start(started, worker(f"{READY}\nimport time; print(os.getpid())\nwhile True: time.sleep(60)"))
    first = read_pid(process)
    os.kill(first, signal.SIGKILL)
    second = read_pid(process)
    os.kill(second, signal.SIGKILL)
    third = read_pid(process)
    assert len({first, second, third}) == 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(third, 0)


def test_worker_that_never_comes_up(started: list[subprocess.Popen[str]]) -> None:
    """A worker that fails before it is up is not started again; its exit code is the answer."""
    process = start(started, worker("import sys; print(1); sys.exit(7)"))
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (7, "1\n")


def test_worker_that_ends_well(started: list[subprocess.Popen[str]]) -> None:
    """A worker that ends well is not started again."""
    process = start(started, worker(f"{READY}\nprint(1)"))
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "1\n")


def test_worker_outlives_its_supervisor(started: list[subprocess.Popen[str]]) -> None:
    """When the supervisor is killed the worker goes on: guests and hand-overs do not notice."""
    process = start(started, worker(f"{READY}\nimport signal; print(os.getpid(), flush=True); signal.pause()"))
    pid = read_pid(process)
    process.kill()
    process.wait()
    os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)


def test_pauses_grow_and_start_anew() -> None:
    """The pause doubles up to a limit while the worker keeps dying, and starts anew after a good run."""
    pauses = [FIRST_PAUSE_S]
    for _ in range(12):
        pauses.append(next_pause(pauses[-1], 0.0))
    assert pauses[1] == 2 * FIRST_PAUSE_S
    assert pauses[-1] == LONGEST_PAUSE_S
    assert next_pause(LONGEST_PAUSE_S, HEALTHY_S) == FIRST_PAUSE_S


def test_state_directory_is_held(tmp_path: Path) -> None:
    """A second agent on the same state directory is refused with the first one's pid; afterwards it is free."""
    with hold_state(tmp_path), pytest.raises(Broken, match=f"another agent .pid {os.getpid()}"), hold_state(tmp_path):
        pass
    with hold_state(tmp_path):
        pass


async def test_taken_port(tmp_path: Path) -> None:
    """A port that is taken is an error with address, port and what to do, and no descriptor is left."""
    listener = Listener("127.0.0.1", 0)
    with pytest.raises(Broken, match=f"127.0.0.1 port {listener.port}") as caught:
        Listener("127.0.0.1", listener.port)
    assert caught.value.fix is not None
    await listener.close()


async def test_foreign_address() -> None:
    """An address that is not this host's is an error."""
    with pytest.raises(Broken, match=r"192\.0\.2\.1"):
        Listener("192.0.2.1", 0)


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd waits for is sent: it learns that the agent is up; without systemd or supervisor nothing happens."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("VMFERRY_READY_FD", raising=False)
    tell_ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        tell_ready()
        assert systemd.recv(100) == b"READY=1"


AGENT = """
import sys
from pathlib import Path
from vmferry.agent.config import AgentConfig
from vmferry.agent.main import run_agent
from vmferry.core.errors import VmferryError
state = Path(sys.argv[1])
config = AgentConfig(name="host-a", listen="127.0.0.1", port=0, state_dir=state, run_dir=state / "run")
try:
    sys.exit(run_agent(config))
except VmferryError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_agent_process(started: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    """An agent that is not enrolled prints the command that enrols it, keeps others off, and ends on SIGTERM."""
    first = start(started, [sys.executable, "-c", AGENT, str(tmp_path / "state")])
    assert first.stderr is not None
    lines = iter(first.stderr.readline, "")
    command = next(line for line in lines if line.strip().startswith("vmferry host add"))
    code = (tmp_path / "state" / "enrolment" / "code").read_text().strip()
    assert "vmferry host add host-a 127.0.0.1" in command
    assert f"--code {code}" in command
    second = start(started, [sys.executable, "-c", AGENT, str(tmp_path / "state")])
    output, _ = second.communicate(timeout=60)
    assert (second.returncode, f"pid {first.pid}" in output) == (Broken.exit_code, True)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=60) == 0
