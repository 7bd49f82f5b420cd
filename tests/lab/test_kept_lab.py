"""The lab that a person keeps: it comes up, its hosts are asked from this machine, and nothing of it is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from vmferry.lab import kept
from vmferry.lab.registry import all_labs

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.nested,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("nested"),
]


def vmferry(*words: str, config: str = "/nonexistent") -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run(
        [sys.executable, "-m", "vmferry", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        env={**os.environ, "VMFERRY_CONFIG": config},
    )


def test_up_and_down() -> None:
    """Once: a second one is refused; commands run in its hosts, which share a folder, and their agents answer here."""
    before = {lab.id for lab in all_labs()}
    assert "There is no lab" in vmferry("lab", "shell", "host-a", "true").stderr
    try:
        began = vmferry("lab", "up", "--hosts", "3", "--sriov")
        assert began.returncode == 0, began.stderr
        config = next(line.split("=")[1] for line in began.stdout.splitlines() if "VMFERRY_CONFIG=" in line)
        assert "There is a lab already" in vmferry("lab", "up").stderr
        ran = vmferry("lab", "shell", "host-b", "sh", "-c", "uname -n; echo no >&2; exit 7")
        assert (ran.stdout, ran.stderr, ran.returncode) == ("host-b\n", "no\n", 7)
        assert "has no host host-d" in vmferry("lab", "shell", "host-d", "true").stderr
        hosts = json.loads(vmferry("host", "list", "--json", config=config).stdout)["hosts"]
        assert sorted(host["name"] for host in hosts) == ["host-a", "host-b", "host-c"]
        vmferry("lab", "shell", "host-b", "sh", "-c", "echo seen >/srv/shared/by-all")
        assert vmferry("lab", "shell", "host-c", "cat", "/srv/shared/by-all").stdout == "seen\n"
        for bridge in ("10.79.0", "10.78.0"):  # the agents' wire, and the cards'
            ran = vmferry("lab", "shell", "host-c", "busybox", "ping", "-c", "2", "-W", "5", f"{bridge}.2")
            assert ran.returncode == 0, ran.stdout
        made = vmferry("vf", "create", "host-a", "0000:01:00.0", "2", config=config)
        assert made.returncode == 0, made.stderr
        joined = subprocess.run(
            [sys.executable, "-m", "vmferry", "lab", "shell", "host-a"],
            input="echo shell of $(uname -n)\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert joined.returncode == 0
    finally:
        assert vmferry("lab", "down").returncode == 0
    assert {lab.id for lab in all_labs()} == before
    assert not kept.directory().exists()
    assert vmferry("lab", "down").returncode == 0
