"""Daemons of sanlock for tests: one per host, all on one machine, with Debian's program, which is not installed.

Each has a run directory of its own and no watchdog: a host of the lab cannot be reset. Time-outs are a tenth of what
sanlock takes by default, but for the 60 s in which a watchdog would fire.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from vmferry.core.errors import Broken
from vmferry.disks.sanlock.wire import LEASE_BYTES
from vmferry.lab.nested.packages import packages_layer
from vmferry.lab.processes import MARK
from vmferry.lab.registry import claim, destroy
from vmferry.lab.toolchain import cache_dir

LOCKSPACE = "vmferry"
#: Of each read and write, in seconds; a host is silent after 8 of these.
IO_TIMEOUT_S = 1
_STARTS_S = 60.0
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


class SanlockDaemons:
    """Some hosts' daemons and what they share; claimed like a lab, so that all goes away whatever kills the test."""

    def __init__(self) -> None:
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._program, self._environment = _program()
        self._claim = claim()
        self._environment[MARK] = self._claim.id
        self.directory = self._claim.directory
        #: not with the sockets, in memory: sanlock reads and writes past the page cache, which not every tmpfs can
        self.leases = cache_dir() / "sanlock" / self._claim.id

    def __enter__(self) -> Self:
        """Make the lockspace."""
        for left in self.leases.parent.glob("*"):
            if not (self._claim.base / f"{left.name}.json").exists():
                shutil.rmtree(left)
        self.make_lockspace(LOCKSPACE, self.leases)
        return self

    def __exit__(self, *_: object) -> None:
        """End every daemon, and leave nothing."""
        for host in list(self._daemons):
            self.kill(host)
        shutil.rmtree(self.leases)
        destroy(self._claim)

    def socket(self, host: str) -> Path:
        """Return where a host's daemon listens."""
        return self.directory / host / "sanlock.sock"

    def settings(self, host: str, host_id: int, image_dirs: Sequence[str]) -> dict[str, object]:
        """Return a host's `[sanlock]` for its agent's file."""
        return {
            "lockspace": LOCKSPACE,
            "host_id": host_id,
            "dir": str(self.leases),
            "image_dirs": list(image_dirs),
            "socket": str(self.socket(host)),
        }

    def make_lockspace(self, name: str, directory: Path) -> Path:
        """Make a lockspace in a new directory and return its file."""
        directory.mkdir(mode=0o755, parents=True)
        file = directory / "lockspace"
        with file.open("xb") as opened:
            os.posix_fallocate(opened.fileno(), 0, LEASE_BYTES)
        self._run({}, "direct", "init", "-s", f"{name}:0:{file}:0", "-o", str(IO_TIMEOUT_S))
        return file

    def start(self, host: str, host_id: int) -> None:
        """Start a host's daemon and have it join the lockspace, which takes three seconds.

        Raises:
            Broken: it does not start, or join.
        """
        self.listen(host)
        self.join(host, host_id, LOCKSPACE, self.leases / "lockspace")

    def join(self, host: str, host_id: int, lockspace: str, file: Path) -> None:
        """Have a host's daemon join a lockspace."""
        lease = f"{lockspace}:{host_id}:{file}:0"
        self._run(self._of(host), "client", "add_lockspace", "-s", lease, "-o", str(IO_TIMEOUT_S))

    def listen(self, host: str) -> None:
        """Start a host's daemon, which joins nothing.

        Raises:
            Broken: it does not start.
        """
        where = self.directory / host
        where.mkdir(exist_ok=True)
        options = ("-D", "-w", "0", "-h", "0", "-l", "0", "-e", host)
        with (self.directory / f"{host}.log").open("ab") as log:
            self._daemons[host] = subprocess.Popen(
                [self._program, "daemon", *options],
                env={**self._environment, **self._of(host)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_listens(host)

    def kill(self, host: str) -> None:
        """Kill -9 a daemon with its helper, and wait; the processes that it watched live on."""
        daemon = self._daemons.pop(host)
        os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait()

    def freeze(self, host: str) -> None:
        """Stop (SIGSTOP) a daemon: it answers nothing, and its host falls silent in the lockspace."""
        os.killpg(self._daemons[host].pid, signal.SIGSTOP)

    def runs(self, host: str) -> bool:
        """Tell whether a host's daemon was started and not killed."""
        return host in self._daemons

    @contextmanager
    def process_with(self, host: str, lease: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a process of nobody's on a host that has a lease, by its name, until it is killed."""
        resource = f"{LOCKSPACE}:{lease}:{self.leases / lease}.lease:0"
        command = [self._program, "client", "command", "-r", resource, "-c", "/bin/sleep", "1000"]
        process = subprocess.Popen(command, env={**self._environment, **self._of(host)}, stdout=subprocess.DEVNULL)
        try:
            until = time.monotonic() + _STARTS_S
            while f":{lease}:" not in self.status(host):
                if process.poll() is not None or time.monotonic() > until:
                    raise Broken(f"No process of {host} gets lease {lease}")
                time.sleep(0.05)
            yield process
        finally:
            process.kill()
            process.wait()

    def status(self, host: str) -> str:
        """Return what a daemon says of its processes and leases."""
        return self._run(self._of(host), "client", "status")

    def _wait_listens(self, host: str) -> None:
        until = time.monotonic() + _STARTS_S
        while time.monotonic() < until:
            if self._daemons[host].poll() is None and "daemon" in self._try(self._of(host), "client", "status").stdout:
                return
            time.sleep(0.05)
        log = (self.directory / f"{host}.log").read_text("utf-8", "replace")
        raise Broken(f"sanlock's daemon of {host} does not start: {log[-400:]}")

    def _of(self, host: str) -> Mapping[str, str]:
        return {"SANLOCK_RUN_DIR": str(self.directory / host), "SANLOCK_PRIVILEGED": "0"}

    def _run(self, environment: Mapping[str, str], *arguments: str) -> str:
        done = self._try(environment, *arguments)
        if done.returncode:
            raise Broken(f"`sanlock {' '.join(arguments)}` failed: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def _try(self, environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._program, *arguments],
            env={**self._environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=_STARTS_S,
        )


def _program() -> tuple[str, dict[str, str]]:
    """Return the program and the variables that it needs; fetches Debian's where none is installed."""
    installed = shutil.which("sanlock")
    if installed is not None:
        return installed, dict(os.environ)
    layer = packages_layer(("sanlock",), cache_dir())
    return str(layer / "usr/sbin/sanlock"), {**os.environ, "LD_LIBRARY_PATH": str(layer / _LIBRARIES)}
