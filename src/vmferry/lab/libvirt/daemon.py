"""A libvirt daemon as a lab host has it: its own network, name, state and host UUID, on one machine with another.

The daemon runs in the host's network namespace with private /run/libvirt, /var/lib/libvirt, /var/log/libvirt,
/var/cache/libvirt and /etc/libvirt, so that two of them never meet. It listens on TCP without any password:
only who is in the namespace reaches it, and the namespace reaches nobody but the other host.

Its processes are the lab's: leaving the lab ends them, and with them their mounts. Each daemon runs under a reaper, so
that it sees the end of a QEMU at once (vmferry.lab.reaper).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from vmferry.core.errors import Broken, TimedOut
from vmferry.lab.commands import Ran
from vmferry.lab.libvirt.domain import CONSOLE_SOCKET, CONTROL_SOCKET
from vmferry.lab.libvirt.emulator import write_emulator
from vmferry.lab.libvirt.settings import ACCOUNT, ACCOUNTS, LIBVIRTD_CONF, NETWORK_CONF, QEMU_CONF
from vmferry.lab.processes import Identity, identify, is_alive, kill_all, send, wait_gone
from vmferry.lab.toolchain import LibvirtBuild, QemuBinary
from vmferry.lab.toolchain.qemu import INSTALLED
from vmferry.lab.toolchain.unpack import module_dir

if TYPE_CHECKING:
    from vmferry.lab.hosts import Lab

#: What Debian 12 and 13 call it; without the "system" packages no service is set up on the machine.
PACKAGES = ("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients")
ANSWER_TIMEOUT_S = 120.0
ENDS_WITHIN_S = 30.0
_PID_FILE = "daemon.pid"
#: Other programs of the same build, which libvirt would ask too.
_OTHERS = (INSTALLED.with_name("qemu-system-i386"),)
#: Directories of the machine that each daemon has for itself, and the folder of the lab that lies there.
_PRIVATE = {
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
    "etc": "/etc/libvirt",
}


def libvirt_missing() -> str | None:
    """Return why no libvirt daemon can run here, with what to do; None when it can."""
    for program in ("libvirtd", "virsh"):
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            return f"{program} is not installed: apt-get install {' '.join(PACKAGES)}"
    return None


class LibvirtDaemon:
    """The daemon of one lab host.

    Args:
        lab: a lab with namespaces.
        host: one of its hosts.
        build: which libvirt; None: the one that is installed.
        settings: lines of its libvirtd.conf that come before the lab's: the first one of a key counts.
        keepalive_s: how often it asks whether the other daemon lives; None: libvirt's own 5 s. The sixth silence is
            one too many.
    """

    def __init__(
        self,
        lab: Lab,
        host: str,
        build: LibvirtBuild | None = None,
        settings: str = "",
        *,
        keepalive_s: int | None = None,
    ) -> None:
        self._lab = lab
        self._build = build
        self._settings = settings
        self._keepalive = "" if keepalive_s is None else f"keepalive_interval = {keepalive_s}\n"
        self.host = host
        version = "" if build is None or build.root is None else "-{}.{}".format(*build.version)
        self.directory = lab.directory / host / f"libvirt{version}"
        self.log = self.directory / "daemon.log"
        self._daemon: Identity | None = None
        self._reapers: list[subprocess.Popen[bytes]] = []  #: of each daemon, and of what it has started

    @property
    def lab(self) -> Lab:
        """The lab of which its host is one."""
        return self._lab

    @property
    def uri(self) -> str:
        """The daemon's address for the other host's daemon."""
        return f"qemu+tcp://{self._lab.hosts[self.host].address}/system"

    def socket_uri(self, *, read_only: bool = False) -> str:
        """Return the daemon's address from outside its host: one of its sockets."""
        return f"qemu+unix:///system?socket={self.directory}/run/libvirt-sock{'-ro' * read_only}"

    @property
    def control(self) -> Path:
        """The control socket of the guest on this host, as the lab sees it."""
        return self.directory / "run" / Path(CONTROL_SOCKET).name

    @property
    def console(self) -> Path:
        """The console's socket of the guest on this host, as the lab sees it."""
        return self.directory / "run" / Path(CONSOLE_SOCKET).name

    @property
    def pid(self) -> int:
        """The running daemon's process id.

        Raises:
            Broken: it does not run.
        """
        if self._daemon is None or not is_alive(self._daemon):
            raise Broken(f"libvirtd on {self.host} does not run; its log ends with:\n{self.tail()}")
        return self._daemon.pid

    async def start(self) -> None:
        """Start the daemon, again after `kill` or `terminate`, and wait until it answers.

        Raises:
            Broken: libvirt is not installed, or the daemon ended.
            TimedOut: it does not answer, or the one before does not end.
        """
        if missing := libvirt_missing():
            raise Broken(f"No libvirt daemon on {self.host}: {missing}")
        if self._daemon is not None and not await asyncio.to_thread(wait_gone, self._daemon, ENDS_WITHIN_S):
            raise TimedOut(f"libvirtd on {self.host} does not end within {ENDS_WITHIN_S:.0f} s")
        self._write_files()
        (self.directory / _PID_FILE).unlink(missing_ok=True)
        self._spawn()
        await self._wait_answer()

    def kill(self) -> None:
        """Kill it with SIGKILL, and do not wait: who traces it sees its end first. Its guests' QEMUs live on."""
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        """Have it end by itself, and do not wait. Its guests' QEMUs live on."""
        self._send(signal.SIGTERM)

    async def virsh(self, *arguments: str, timeout_s: float = 120.0) -> Ran:
        """Run virsh on this host, with this daemon.

        Raises:
            TimeoutError: it did not end in time.
        """
        return await self._lab.run(self.virsh_argv(*arguments), timeout_s)

    def virsh_argv(self, *arguments: str) -> list[str]:
        """Return the command line of `virsh` on this host."""
        return [*self._lab.inside(self.host), "virsh", "-q", "-c", self.socket_uri(), *arguments]

    async def must(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """Run virsh and return its output.

        Raises:
            Broken: it failed.
        """
        ran = await self.virsh(*arguments, timeout_s=timeout_s)
        if ran.exit_code:
            said = ran.stderr.strip() or ran.stdout.strip()
            if self._daemon is not None and not is_alive(self._daemon):
                said += f"\nlibvirtd does not run; its log ends with:\n{self.tail()}"
            raise Broken(f"`virsh {' '.join(arguments)}` on {self.host} failed: {said}", fix=f"look at {self.log}")
        return ran.stdout.strip()

    def tail(self, lines: int = 10) -> str:
        """Return the end of the daemon's log."""
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def stop(self) -> None:
        """End the daemon and the guests that it has, at once, so that another one can take its place."""
        own = None if self._daemon is None else _mounts_of(self._daemon.pid)
        if own is not None:
            kill_all(each for each in self._lab.processes_of(self.host) if _mounts_of(each.pid) == own)
        for reaper in self._reapers:  # one whose daemon never answered has it in its group
            with contextlib.suppress(ProcessLookupError):
                os.killpg(reaper.pid, signal.SIGKILL)
        self.reap()

    def reap(self) -> None:
        """Take note of daemons that the lab has ended, so that nothing of them is a zombie of this process."""
        while self._reapers:
            self._reapers.pop().wait()

    def _send(self, number: signal.Signals) -> None:
        if self._daemon is not None:
            send(self._daemon, number)

    def _spawn(self) -> None:
        script = _script(self.directory, self.host, self._lab.hosts[self.host].qemu, self._build)
        enter = [*self._lab.inside(self.host), "unshare", "--mount", "--uts", "--propagation", "private"]
        with self.log.open("ab") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", "vmferry.lab.reaper", *enter, "sh", "-euc", script],
                env=self._lab.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._reapers.append(started)

    def _write_files(self) -> None:
        for name, place in _PRIVATE.items():
            (self.directory / name).mkdir(parents=True, exist_ok=True)
            Path(place).mkdir(parents=True, exist_ok=True)  # where to mount it
        etc = self.directory / "etc"
        for folder in ("qemu/networks", "nwfilter", "secrets", "storage"):
            (etc / folder).mkdir(parents=True, exist_ok=True)
        host_uuid = uuid.uuid5(uuid.NAMESPACE_DNS, self.host)
        libvirtd = self._settings + LIBVIRTD_CONF.format(host_uuid=host_uuid) + self._keepalive
        (etc / "libvirtd.conf").write_text(libvirtd, "utf-8")
        (etc / "qemu.conf").write_text(QEMU_CONF + self._keepalive, "utf-8")
        (etc / "network.conf").write_text(NETWORK_CONF, "utf-8")
        for name, line in ACCOUNTS.items():
            known = Path("/etc", name).read_text("utf-8")
            (self.directory / name).write_text(known if f"{ACCOUNT}:" in known else known + line, "utf-8")

    async def _wait_answer(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                while (await self.virsh("version", timeout_s=ANSWER_TIMEOUT_S)).exit_code:
                    self._check_runs()
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            raise TimedOut(f"libvirtd on {self.host} does not answer; its log ends with:\n{self.tail()}") from error
        self._daemon = identify(int((self.directory / _PID_FILE).read_text("ascii")))

    def _check_runs(self) -> None:
        if (code := self._reapers[-1].poll()) is not None:
            raise Broken(f"libvirtd on {self.host} ended with exit code {code}; its log ends with:\n{self.tail()}")


def _mounts_of(pid: int) -> str | None:
    """Return a process's mount namespace; None when it is gone."""
    try:
        return str(Path(f"/proc/{pid}/ns/mnt").readlink())
    except OSError:
        return None


def _script(directory: Path, host: str, qemu: QemuBinary, build: LibvirtBuild | None) -> str:
    """Return what enters the private directories and becomes the daemon; paths of a lab hold no special characters."""
    private = {**_PRIVATE, **{name: f"/etc/{name}" for name in ACCOUNTS}}
    mounts = [f"mount --bind {directory / name} {place}" for name, place in private.items()]
    mounts += [f"mount --bind {what} {where}" for what, where in (build.mounts() if build else ())]
    if qemu.unpacked and INSTALLED.exists():
        # A QEMU looks among its own build's modules and then among the installed one's, and of those of another build
        # it dies when libvirt asks what it can: so there is no other build here.
        mounts += [
            f"mount --bind {qemu.env['QEMU_MODULE_DIR']} {module_dir(Path('/'))}",
            f"mount --bind {write_emulator(qemu, directory / 'emulator')} {INSTALLED}",
            *(f"mount --bind /dev/null {other}" for other in _OTHERS if other.exists()),
        ]
    start = f"exec libvirtd --listen --config /etc/libvirt/libvirtd.conf --pid-file {directory}/{_PID_FILE}"
    return "\n".join(["PATH=$PATH:/usr/sbin:/sbin", f"hostname {host}", *mounts, start])
