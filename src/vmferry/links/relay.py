"""Several connections of one stream over the agents' one port: each is joined with a local one of QEMU's.

    source's QEMU -> local socket -> program -> connection -> program -> local socket -> destination's QEMU

QEMU makes as many local connections as it has channels, and each becomes one on the agents' port, proven with the
ticket. The program (`carry.py`) is one per hand-over and host; it moves bytes within the kernel, and outlives an agent
that is restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from vmferry.core.errors import Broken, VmferryError
from vmferry.core.ids import HandoverId
from vmferry.links import carry
from vmferry.links.children import Children
from vmferry.links.pipeline import keep_alive
from vmferry.links.threads import finish
from vmferry.ports.stream import StreamConnection

#: For QEMU to take a connection, and the program a pair; both do it in a ms.
_TAKES_S = 10.0
_BACKLOG = 16
_JOIN = b"j"

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Program:
    """What carries for one hand-over."""

    pid: int
    control: socket.socket
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_closed: bool = False

    def close(self) -> None:
        """Give it nothing more; it ends when nothing is left to carry. Idempotent."""
        self.is_closed = True
        if not self.lock.locked():  # else the loop listens to it
            self.control.close()

    async def join(self, one: StreamConnection, other: StreamConnection) -> None:
        """Have it carry between two ends, which it has then.

        Raises:
            Broken: it does not take them.
        """
        async with self.lock:
            try:
                taken = await self._give(one, other)
            finally:
                if self.is_closed:
                    self.control.close()
        if taken != _JOIN:
            raise Broken("The program that carries a stream has died")

    async def _give(self, one: StreamConnection, other: StreamConnection) -> bytes:
        try:
            socket.send_fds(self.control, [_JOIN], [one.fileno(), other.fileno()])
            async with asyncio.timeout(_TAKES_S):
                return await asyncio.get_running_loop().sock_recv(self.control, 1)
        except (OSError, TimeoutError) as error:
            raise Broken(f"The program that carries a stream does not take it: {error}") from error


class LocalRelays:
    """Joins QEMU's local connections with connections between the hosts."""

    def __init__(self) -> None:
        self._programs: dict[HandoverId, _Program] = {}
        self._children = Children()
        self._listening: dict[HandoverId, asyncio.Task[None]] = {}

    async def into(self, path: str, connection: StreamConnection, uid: int | None, handover: HandoverId) -> None:
        """Join a connection with a new one to QEMU's local socket.

        Args:
            path: where QEMU listens.
            connection: from the other host; the caller closes its own end of it.
            uid: the guest's user, as whom the program runs; None: the agent's own.
            handover: whose stream.

        Raises:
            Broken: QEMU does not listen (any more), or the program does not take them.
        """
        program = await self._program(uid, handover)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as local:
            try:
                async with asyncio.timeout(_TAKES_S):
                    await asyncio.get_running_loop().sock_connect(local, path)
            except (OSError, TimeoutError) as error:
                raise Broken(f"QEMU takes no connection at {path}: {error}", side="destination") from error
            keep_alive(connection)
            await program.join(local, connection)

    async def out_of(
        self, path: str, dial: Callable[[], Awaitable[StreamConnection]], uid: int | None, handover: HandoverId
    ) -> None:
        """Listen on a local socket for QEMU, which may be told to connect then; until `finish` or `end`.

        Args:
            path: where to listen; what is left there of an earlier attempt is replaced.
            dial: connects to the other host; called for one after the other, in the order in which QEMU connects.
            uid: as `into`.
            handover: whose stream.

        Raises:
            Broken, or what `dial` raises: there is no stream to the other host; QEMU must not be told then.
        """
        first = await dial()
        with contextlib.ExitStack() as failed:
            failed.callback(first.close)
            program = await self._program(uid, handover)
            listens = _listen(Path(path), uid)
            failed.callback(listens.close)
            failed.pop_all()
        task = asyncio.create_task(_serve(listens, Path(path), first, dial, program), name=f"relay:{handover}")
        self._listening[handover] = task

    def end(self, handover: HandoverId) -> None:
        """Carry nothing more for a hand-over; unknown ones are no error."""
        if (listening := self._listening.pop(handover, None)) is not None:
            listening.cancel()
        if (program := self._programs.pop(handover, None)) is not None:
            program.close()
        self._children.end(handover)

    def finish(self, handover: HandoverId) -> None:
        """Let what is carried come to its end; no further connection is."""
        if (listening := self._listening.pop(handover, None)) is not None:
            listening.cancel()
        if (program := self._programs.pop(handover, None)) is not None:
            program.close()

    async def close(self) -> None:
        """Let go of everything: what is carried goes on. Idempotent."""
        tasks = list(self._listening.values())
        for handover in list(self._programs):
            self.finish(handover)
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._children.close()

    async def _program(self, uid: int | None, handover: HandoverId) -> _Program:
        """Return the program of a hand-over, started when it is needed first."""
        if (known := self._programs.get(handover)) is None:
            known = await finish(lambda: _start(uid), _stop)
            self._programs[handover] = known
            self._children.add(handover, known.pid, lambda code: _ended(handover, code))
        return known


def _start(uid: int | None) -> _Program:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        words = [sys.executable, "-I", "-S", carry.__file__, str(theirs.fileno()), "-" if uid is None else str(uid)]
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
            )
        except OSError as error:
            ours.close()
            raise Broken(f"The program that carries a stream cannot be started: {error.strerror}") from error
    process.returncode = 0  # it is waited for by its pid, or outlives us: Popen has nothing to complain of
    ours.setblocking(False)  # noqa: FBT003 - the standard library's
    return _Program(process.pid, ours)


def _stop(program: _Program) -> None:
    """End a program that nobody waits for any more."""
    program.close()
    os.killpg(program.pid, signal.SIGKILL)
    os.waitpid(program.pid, 0)


def _ended(handover: HandoverId, code: int) -> None:
    (_log.info if code == 0 else _log.warning)("program that carried a stream ended", handover=handover, code=code)


def _listen(path: Path, uid: int | None) -> socket.socket:
    """Return a local socket to which only the guest's user connects.

    Raises:
        Broken: it cannot be made.
    """
    listens = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        listens.bind(str(path))
        path.chmod(0o600)
        if uid is not None:
            os.chown(path, uid, uid)
        listens.listen(_BACKLOG)
    except OSError as error:
        listens.close()
        raise Broken(f"Socket {path} for a stream cannot be made: {error.strerror}") from error
    return listens


def _close(listens: socket.socket, path: Path) -> None:
    listens.close()
    path.unlink(missing_ok=True)


async def _serve(
    listens: socket.socket,
    path: Path,
    first: StreamConnection,
    dial: Callable[[], Awaitable[StreamConnection]],
    program: _Program,
) -> None:
    """Join each connection of QEMU with one to the other host, one after the other: the first is the main channel's.

    Source: QEMU migration/migration.c, migration_ioc_process_incoming (7.2 tells channels apart by their order).
    """
    loop = asyncio.get_running_loop()
    ahead: StreamConnection | None = first
    try:
        while True:
            local, _ = await loop.sock_accept(listens)
            with contextlib.closing(local):
                try:
                    connection, ahead = ahead or await dial(), None
                    with contextlib.closing(connection):
                        keep_alive(connection)
                        await program.join(local, connection)
                except VmferryError as error:  # QEMU sees a channel that is closed, and says so
                    _log.warning("channel of a stream was not connected", error=str(error))
    finally:
        if ahead is not None:
            ahead.close()
        _close(listens, path)
