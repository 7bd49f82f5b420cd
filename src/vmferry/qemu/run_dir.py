"""The files of one guest's process: where they are, and that they go away with it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmferry.core.errors import BadInput, Broken
from vmferry.qemu import dh_group, foreign, run_lock
from vmferry.qemu.process import Process

#: sun_path holds 108 bytes with its end mark. Source: unix(7)
SOCKET_PATH_MAX = 107

QMP_SOCKET = "qmp.sock"
CONSOLE_SOCKET = "console.sock"
CONSOLE_LOG = "console.log"
CONTROL_SOCKET = "control.sock"
THROTTLE_SOCKET = "throttle.sock"
QEMU_LOG = "qemu.log"
TPM_LOG = "swtpm.log"
STREAM_SOCKET = "stream.sock"
LOCAL_URI = f"unix:{STREAM_SOCKET}"  #: from the process's own directory, in which it is started
TLS_DIR = "tls"
#: What QEMU says of somebody without the stream's key or certificate. Seen with 7.2.22 and 10.0.2.
REFUSED = ("TLS handshake failed", "authz check for", "The certificate ", "No certificate was found")
#: The end of a log that messages are made from.
_TAIL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths below a guest's own directory."""

    path: Path

    @property
    def qmp(self) -> Path:
        """The QMP socket."""
        return self.path / QMP_SOCKET

    @property
    def console(self) -> Path:
        """The socket of the first serial port."""
        return self.path / CONSOLE_SOCKET

    @property
    def console_log(self) -> Path:
        """Everything that the guest wrote to its first serial port."""
        return self.path / CONSOLE_LOG

    @property
    def control(self) -> Path:
        """The socket of the virtio-serial port org.vmferry.control."""
        return self.path / CONTROL_SOCKET

    @property
    def stream(self) -> Path:
        """The socket of a stream over the agents' port; QEMU listens at the destination, the agent at the source."""
        return self.path / STREAM_SOCKET

    @property
    def throttle(self) -> Path:
        """The socket of the virtio-serial port of the write throttle."""
        return self.path / THROTTLE_SOCKET

    @property
    def sockets(self) -> tuple[Path, ...]:
        """Every socket that a process may have here."""
        return self.qmp, self.console, self.control, self.throttle, self.stream

    @property
    def log(self) -> Path:
        """What QEMU itself wrote."""
        return self.path / QEMU_LOG

    @property
    def tpm_log(self) -> Path:
        """What the emulator of the guest's TPM wrote."""
        return self.path / TPM_LOG

    @property
    def tls(self) -> Path:
        """The directory of a running migration's key."""
        return self.path / TLS_DIR

    def check_length(self) -> None:
        """Check that sockets fit below the directory.

        Raises:
            BadInput: the path is too long for a unix socket.
        """
        longest = max(len(os.fsencode(path)) for path in self.sockets)
        if longest > SOCKET_PATH_MAX:
            raise BadInput(
                f"sockets below run directory {self.path} need {longest} bytes, limit {SOCKET_PATH_MAX}",
                fix="configure a shorter run_dir",
            )

    def create(self, uid: int | None) -> None:
        """Make the directory, private to the process's user.

        Raises:
            Broken: the directory cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)
            if uid is not None:
                os.chown(self.path, uid, uid)
        except OSError as error:
            raise Broken(
                f"run directory {self.path} cannot be made: {error}", fix="make its parent writable"
            ) from error

    @contextlib.contextmanager
    def taken(self, uid: int | None) -> Iterator[int]:
        """Make the directory ready for a new process, without the sockets and keys of an earlier one.

        Yields a descriptor for the process to inherit: as long as it lives the directory is its own.

        Raises:
            Broken: the directory cannot be made, or a process has it.
        """
        self.create(uid)
        with run_lock.hold(self.path) as lock:
            self.remove_sockets()
            yield lock

    def find_holder(self) -> Process | None:
        """Return the process that was started in the directory and lives, recorded or not; None when there is none.

        Raises:
            Broken: there is one that cannot be seen.
        """
        return run_lock.find_holder(self.path)

    def write_key(self, hex_key: str, uid: int | None) -> None:
        """Write a migration's pre-shared key where QEMU reads it, readable by its user only, and the group beside it.

        Raises:
            Broken: it cannot be written.
        """
        self.write_secrets({"keys.psk": f"qemu:{hex_key}\n", dh_group.FILE_NAME: dh_group.FFDHE2048}, uid)

    def write_secrets(self, files: Mapping[str, str], uid: int | None) -> None:
        """Write what a migration is encrypted with where QEMU reads it, readable by its user only.

        Raises:
            Broken: it cannot be written.
        """
        try:
            foreign.make_directory(self.path, TLS_DIR, files, uid)
        except OSError as error:
            raise Broken(
                f"migration key below {self.path} cannot be written: {error}", fix="make room there"
            ) from error

    def remove_key(self) -> None:
        """Remove what a migration is encrypted with. Idempotent."""
        foreign.remove(self.tls)

    def is_served(self) -> bool:
        """Tell whether a process listens on the QMP socket: another one than was recorded may live here."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(0)
            try:
                probe.connect(str(self.qmp))
            except BlockingIOError:
                return True  # its backlog is full: somebody listens
            except OSError:
                return False
            return True

    def remove_sockets(self) -> None:
        """Remove sockets and keys; logs stay, they say how it ended."""
        for path in self.sockets:
            foreign.remove(path)
        self.remove_key()

    def log_tail(self, limit: int = 600) -> str:
        """Return the end of what QEMU wrote, on one line; empty when it wrote nothing."""
        return " | ".join(self._log_lines())[-limit:]

    def count_refused(self) -> int:
        """Return how many connections to its streams and images QEMU has refused, as far back as the log's end goes."""
        return sum(any(word in line for word in REFUSED) for line in self._log_lines())

    def _log_lines(self) -> list[str]:
        _, written = foreign.read(self.log, -_TAIL_BYTES, _TAIL_BYTES)
        return [line.strip() for line in written.decode("utf-8", "replace").splitlines() if line.strip()]
