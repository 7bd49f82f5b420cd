"""Commands between QEMU and the agents' connection: a compressor, ssh, age, whatever both hosts are configured with.

    source's QEMU -> pipe -> command -> connection -> command -> pipe -> destination's QEMU

No shell, no word of a user: the words stand in the configuration, a user names a pipeline. Commands run as the guest's
own user, in a session of their own, with descriptors 0, 1 and 2 and nothing else. They outlive an agent that is
restarted, and end by themselves when both their neighbours have closed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import structlog

from vmferry.core.errors import BadInput, Broken
from vmferry.core.ids import HandoverId
from vmferry.links.children import Children
from vmferry.links.threads import finish
from vmferry.ports.stream import StreamConnection

#: As much of what a command said last as goes into the log.
_TAIL_BYTES = 600
#: Of a file that a command writes: it must not fill the disk with what it says.
_MOST_FILE_BYTES = 16 << 20
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
#: A command reads a connection for ever whose other end is gone without a word: the kernel asks, and ends it then.
_KEEPALIVE = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 30,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 10,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 6,
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 90_000,
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The two halves, each as the words of a command."""

    send: Sequence[str]
    receive: Sequence[str]


class PipeEnd:
    """Our end of a pipe, for QEMU."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Return its descriptor here."""
        return self._descriptor

    def getsockname(self) -> None:
        """Return nothing: it is no socket."""

    def getpeername(self) -> None:
        """Return nothing: at its other end is a command of ours."""

    def close(self) -> None:
        """Close it here. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Half:
    """One command with what it reads from and writes to."""

    name: str
    words: Sequence[str]
    reads: PipeEnd | StreamConnection
    writes: PipeEnd | StreamConnection
    uid: int | None
    handover: HandoverId

    def start(self) -> tuple[int, IO[bytes]]:
        """Return the pid, and the file with what it says: a pipe would need somebody who reads it.

        Raises:
            Broken: it cannot be started.
        """
        if shutil.which(self.words[0], path=_ENVIRONMENT["PATH"]) is None:
            raise Broken(
                f"Command {self.words[0]} of pipeline {self.name} cannot be started: there is none on this host",
                fix="install it, or correct agent.toml",
            )
        for end in (self.reads, self.writes):
            os.set_blocking(end.fileno(), True)  # commands do not expect anything else
        with contextlib.ExitStack() as failed:
            said = failed.enter_context(tempfile.TemporaryFile())
            try:
                process = subprocess.Popen(
                    ["prlimit", f"--fsize={_MOST_FILE_BYTES}", "--", *self.words],
                    stdin=self.reads.fileno(),
                    stdout=self.writes.fileno(),
                    stderr=said,
                    cwd="/",
                    env=_ENVIRONMENT,
                    start_new_session=True,
                    user=self.uid,
                    group=self.uid,
                    extra_groups=None if self.uid is None else [],
                )
            except OSError as error:
                raise Broken(
                    f"Command {self.words[0]} of pipeline {self.name} cannot be started: {error.strerror}",
                    fix="look at what that is on this host",
                ) from error
            process.returncode = 0  # it is waited for by its pid, or outlives us: Popen has nothing to complain of
            failed.pop_all()
            return process.pid, said


class CommandPipelines:
    """Runs the commands of a host's configuration.

    Args:
        pipelines: by name.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self._pipelines = dict(pipelines)
        self._children = Children()

    async def send(self, name: str, connection: StreamConnection, uid: int | None, handover: HandoverId) -> PipeEnd:
        """Start a pipeline in front of a connection, and return the end that takes the stream."""
        words = self._named(name).send
        theirs, ours = (PipeEnd(end) for end in os.pipe2(os.O_CLOEXEC))
        return await self._begin(_Half(name, words, theirs, connection, uid, handover), connection, theirs, ours)

    async def receive(self, name: str, connection: StreamConnection, uid: int | None, handover: HandoverId) -> PipeEnd:
        """Start the other half behind a connection, and return the end out of which the stream comes."""
        words = self._named(name).receive
        ours, theirs = (PipeEnd(end) for end in os.pipe2(os.O_CLOEXEC))
        return await self._begin(_Half(name, words, connection, theirs, uid, handover), connection, theirs, ours)

    def _named(self, name: str) -> Pipeline:
        known = self._pipelines.get(name)
        if known is None:
            raise BadInput(
                f"There is no pipeline {name} on this host; it has {', '.join(sorted(self._pipelines)) or 'none'}",
                fix=f"write [migration.pipelines.{name}] into agent.toml",
            )
        return known

    async def _begin(self, half: _Half, connection: StreamConnection, theirs: PipeEnd, ours: PipeEnd) -> PipeEnd:
        """Start a command; its end of the pipe is its alone then, ours stays open unless it failed."""
        with contextlib.ExitStack() as failed:
            failed.callback(ours.close)
            with contextlib.closing(theirs):
                keep_alive(connection)
                pid, said = await finish(half.start, _end)
            failed.pop_all()
        self._children.add(half.handover, pid, lambda code: _tell(half, said, code), said.close)
        return ours

    def end(self, handover: HandoverId) -> None:
        """End a hand-over's commands that have not ended by themselves."""
        self._children.end(handover)

    async def close(self) -> None:
        """Let go of the commands: they go on with their streams. Idempotent."""
        await self._children.close()


def _tell(half: _Half, said: IO[bytes], code: int) -> None:
    """Tell how a command ended, with its last words."""
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - _TAIL_BYTES))
    last = said.read().decode("utf-8", "replace").strip()
    tell = _log.warning if code else _log.info
    tell("pipeline's command ended", pipeline=half.name, command=half.words[0], code=code, said=last or None)


def keep_alive(connection: StreamConnection) -> None:
    """Have the kernel end a connection between hosts whose other end is silent or gone for 90 s."""
    with socket.socket(fileno=os.dup(connection.fileno())) as known:
        for (level, option), value in _KEEPALIVE.items():
            known.setsockopt(level, option, value)


def _end(started: tuple[int, IO[bytes]]) -> None:
    """End a command that nobody waits for any more."""
    pid, said = started
    said.close()
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
