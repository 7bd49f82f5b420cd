from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vmferry.lab.network import Network
from vmferry.lab.processes import MARK, Identity, identify, is_alive, kill_all, send, wait_gone
from vmferry.lab.registry import Claim, all_labs, claim, destroy, sweep

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
FORKER = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True).pid, flush=True)
time.sleep(600)
"""


def disown(lab: Claim) -> Claim:
    """Rewrite the claim as if its owner had been another process with the same pid, now dead."""
    dead = replace(lab.owner, start_ticks=lab.owner.start_ticks - 1)
    lab.file.write_text(json.dumps(asdict(dead)))
    return replace(lab, owner=dead)


def identity_of(pid: int) -> Identity:
    """Return the identity of a process that runs."""
    found = identify(pid)
    assert found is not None
    return found


def test_two_labs_have_different_ids(claimed: Claim) -> None:
    """Labs that live at the same time never share an id."""
    other = claim(claimed.base)
    assert other.id != claimed.id
    assert {lab.id for lab in all_labs(claimed.base)} == {other.id, claimed.id}


def test_sweep_leaves_living_owners_alone(claimed: Claim) -> None:
    """A lab whose owner lives is not swept."""
    assert sweep(claimed.base) == []
    assert claimed.directory.is_dir()


def test_sweep_removes_a_dead_owners_lab_with_its_processes(claimed: Claim) -> None:
    """Sweeping ends a dead owner's processes and removes its files, also when its pid was reused."""
    with subprocess.Popen(SLEEPER, env={**os.environ, MARK: claimed.id}) as marked:
        process = identity_of(marked.pid)
        disown(claimed)
        assert sweep(claimed.base) == [claimed.id]
        assert not is_alive(process)
    assert not claimed.base.exists()


def test_sweep_passes_over_files_that_are_no_claim(claimed: Claim) -> None:
    """A damaged or foreign file beside the claims neither stops a sweep nor is removed."""
    strange = claimed.base / "zzzz.json"
    strange.write_text('{"pid": "x"')
    assert sweep(claimed.base) == []
    assert strange.exists()
    strange.unlink()


def test_destroy_finds_processes_of_a_clean_environment(claimed: Claim) -> None:
    """A process that carries no mark is found by a path of the lab in its command line."""
    argv = [*SLEEPER, str(claimed.directory / "host-a/run/qmp.sock")]
    with subprocess.Popen(argv, env={}) as unmarked:
        process = identity_of(unmarked.pid)
        destroy(claimed)
        assert not is_alive(process)


def test_destroy_finds_detached_grandchildren(claimed: Claim) -> None:
    """A grandchild in a session of its own, as a QEMU is, ends with its lab."""
    argv = [sys.executable, "-c", FORKER]
    with subprocess.Popen(argv, env={**os.environ, MARK: claimed.id}, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        grandchild = identity_of(int(parent.stdout.readline()))
        destroy(claimed)
        assert not is_alive(grandchild)


def test_destroy_leaves_strangers_alone(claimed: Claim) -> None:
    """Processes of another lab survive."""
    with subprocess.Popen(SLEEPER, env={**os.environ, MARK: "another"}) as stranger:
        destroy(claimed)
        assert identify(stranger.pid) is not None
        stranger.kill()


def test_destroy_is_idempotent(claimed: Claim) -> None:
    """Destroying twice is the same as once."""
    destroy(claimed)
    destroy(claimed)
    assert not claimed.base.exists()


def test_a_signal_never_hits_a_reused_pid() -> None:
    """A signal for a process that is gone does not reach whoever has its pid now."""
    with subprocess.Popen(SLEEPER) as innocent:
        now = identity_of(innocent.pid)
        before = replace(now, start_ticks=now.start_ticks - 1)
        assert kill_all([before]) == []
        assert is_alive(now)
        innocent.kill()


def test_a_zombie_counts_as_gone() -> None:
    """A process that ended but was not reaped is not alive, and waiting for it ends."""
    with subprocess.Popen(SLEEPER) as child:
        process = identity_of(child.pid)
        assert send(process, signal.SIGKILL)
        assert wait_gone(process, 10)
        assert not is_alive(process)


@pytest.mark.root
def test_sweep_removes_a_dead_owners_namespaces(claimed: Claim) -> None:
    """Namespaces of a dead owner, and whatever runs in them, are removed."""
    made = Network(claimed)
    made.create()
    with subprocess.Popen([*made.inside("host-a"), *SLEEPER], env={"PATH": os.environ["PATH"]}) as inside:
        process = identity_of(inside.pid)
        disown(claimed)
        wait_until_inside(claimed, process)
        assert sweep(claimed.base) == [claimed.id]
        assert not is_alive(process)
    assert not claimed.namespaces()


def wait_until_inside(lab: Claim, process: Identity) -> None:
    """Wait until `ip netns exec` has entered the namespace."""
    while process not in lab.processes():
        assert is_alive(process)


def test_the_base_directory_is_short_enough_for_sockets() -> None:
    """A QMP socket in the deepest directory of a lab fits into a UNIX socket's path."""
    deepest = Path("/run/vmferry-lab/abcd/host-a/run/guests") / ("x" * 32) / "console.sock"
    assert len(str(deepest)) < 108
