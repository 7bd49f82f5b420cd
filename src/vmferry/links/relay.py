"""Several connections of one stream over the agents' one port: each is joined with a local one of QEMU's.

    source's QEMU -> local socket -> program -> connection -> program -> local socket -> destination's QEMU

QEMU makes as many local connections as it has channels, and each becomes one on the agents' port, proven with the
ticket. The program (`carry.py`) is one per hand-over and host; it moves bytes within the kernel, and outlives an agent
that is restarted. It alone touches the local socket: that lies in a directory which belongs to the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
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

#: For the program to do as it is told: it waits for QEMU at the most.
_OBEYS_S = 10.0
_MOST_ANSWER = 512

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Program:
    """What carries for one hand-over."""

    pid: int
    control: socket.socket
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_closed: bool = False

    def close(self) -> None:
        """Tell it nothing more; it ends when nothing is left to carry. Idempotent."""
        self.is_closed = True
        if not self.lock.locked():  # else the loop listens to it
            self.control.close()

    async def order(self, what: bytes, ends: Sequence[StreamConnection] = ()) -> Sequence[int]:
        """Have it do something with descriptors, which it has then; returns those that it answers with.

        Raises:
            Broken: it does not do it.
        """
        async with self.lock:
            try:
                if self.is_closed:
                    raise Broken("A stream is carried no more")
                socket.send_fds(self.control, [what], [end.fileno() for end in ends])
                return await self._answer(what)
            except (OSError, TimeoutError) as error:
                self.is_closed = True  # what it answers later is no answer to something else
                raise Broken(f"The program that carries a stream does not obey: {error}") from error
            finally:
                if self.is_closed:
                    self.control.close()

    async def _answer(self, what: bytes) -> Sequence[int]:
        heard, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(self.control, heard.set)
        try:
            async with asyncio.timeout(_OBEYS_S):
                await heard.wait()
        finally:
            loop.remove_reader(self.control)
        answer, descriptors, _, _ = socket.recv_fds(self.control, _MOST_ANSWER, 1)
        if answer == what and not self.is_closed:
            return descriptors
        for descriptor in descriptors:  # it was ended meanwhile
            os.close(descriptor)
        why = answer.removeprefix(carry.FAILED).decode("utf-8", "replace") or "nothing carries it any more"
        raise Broken(f"QEMU's local socket for a stream cannot be used: {why}")


@dataclass(slots=True)
class _Listening:
    """Where a source's QEMU connects to."""

    socket: socket.socket
    path: Path
    ahead: StreamConnection | None  #: made for the first that comes

    def close(self) -> None:
        """Listen no more."""
        self.socket.close()
        if self.ahead is not None:
            self.ahead.close()
        with contextlib.suppress(OSError):  # a name only: what it leads to is not looked at
            self.path.unlink(missing_ok=True)


class LocalRelays:
    """Joins QEMU's local connections with connections between the hosts."""

    def __init__(self) -> None:
        self._programs: dict[HandoverId, asyncio.Task[_Program]] = {}
        self._children = Children()
        self._listening: dict[HandoverId, asyncio.Task[None]] = {}

    async def into(self, path: str, connection: StreamConnection, uid: int | None, handover: HandoverId) -> None:
        """Join a connection with a new one to QEMU's local socket."""
        program = await self._program(Path(path), uid, handover)
        keep_alive(connection)
        await program.order(carry.CONNECT, [connection])

    async def out_of(
        self, path: str, dial: Callable[[], Awaitable[StreamConnection]], uid: int | None, handover: HandoverId
    ) -> None:
        """Listen on a local socket for QEMU, which may be told to connect then; until `finish` or `end`.

        A channel that cannot be connected breaks the whole stream: QEMU takes it for one that is there.
        """
        first = await dial()
        with contextlib.ExitStack() as failed:
            failed.callback(first.close)
            program = await self._program(Path(path), uid, handover)
            (descriptor,) = await program.order(carry.LISTEN)
            listens = socket.socket(fileno=descriptor)
            listens.setblocking(False)  # noqa: FBT003 - the standard library's
            failed.pop_all()
        source = _Listening(listens, Path(path), first)
        serving = asyncio.create_task(self._serve(source, dial, program, handover), name=f"relay:{handover}")
        serving.add_done_callback(lambda _: source.close())  # also one that was ended before it began
        self._listening[handover] = serving

    def end(self, handover: HandoverId) -> None:
        """Carry nothing more for a hand-over; unknown ones are no error."""
        self._let_go(handover, lambda program: self._break(program, handover))

    def _break(self, program: _Program, handover: HandoverId) -> None:
        program.close()
        self._children.end(handover)

    def finish(self, handover: HandoverId) -> None:
        """Let what is carried come to its end; no further connection is."""
        self._let_go(handover, _Program.close)

    def _let_go(self, handover: HandoverId, undo: Callable[[_Program], None]) -> None:
        if (listening := self._listening.pop(handover, None)) is not None:
            listening.cancel()
        if (program := self._programs.pop(handover, None)) is not None:
            program.add_done_callback(lambda done: _undo(done, undo))

    async def close(self) -> None:
        """Let go of everything: what is carried goes on. Idempotent."""
        tasks = [*self._listening.values(), *self._programs.values()]
        for handover in list(self._programs):
            self.finish(handover)
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._children.close()

    async def _program(self, path: Path, uid: int | None, handover: HandoverId) -> _Program:
        """Return the program of a hand-over, started when it is needed first; one for all who ask at once."""
        if (known := self._programs.get(handover)) is None:
            known = asyncio.create_task(self._begin(path, uid, handover), name=f"carrier:{handover}")
            self._programs[handover] = known
        return await asyncio.shield(known)

    async def _begin(self, path: Path, uid: int | None, handover: HandoverId) -> _Program:
        program = await finish(lambda: _start(path, uid), _kill)
        self._children.add(handover, program.pid, lambda code: _ended(handover, code))
        return program

    async def _serve(
        self,
        source: _Listening,
        dial: Callable[[], Awaitable[StreamConnection]],
        program: _Program,
        handover: HandoverId,
    ) -> None:
        """Join each connection of QEMU with one to the other host, in order: the first is the main channel's.

        Source: QEMU migration/migration.c, migration_ioc_process_incoming (7.2 tells channels apart by their order).
        """
        loop = asyncio.get_running_loop()
        try:
            while True:
                local, _ = await loop.sock_accept(source.socket)
                with contextlib.closing(local):
                    connection, source.ahead = source.ahead or await dial(), None
                    with contextlib.closing(connection):
                        keep_alive(connection)
                        await program.order(carry.JOIN, [local, connection])
        except (OSError, VmferryError) as error:
            _log.warning("channel of a stream was not connected: the stream is broken", error=str(error))
            self.end(handover)


def _start(path: Path, uid: int | None) -> _Program:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        user = "-" if uid is None else str(uid)
        words = [sys.executable, "-I", "-S", carry.__file__, str(theirs.fileno()), user, path.name]
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=path.parent,  # entered with the agent's rights: the directories above are its own
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


def _undo(started: asyncio.Task[_Program], undo: Callable[[_Program], None]) -> None:
    if not started.cancelled() and started.exception() is None:
        undo(started.result())


def _kill(program: _Program) -> None:
    """End a program that nobody watches."""
    program.close()
    os.killpg(program.pid, signal.SIGKILL)
    os.waitpid(program.pid, 0)


def _ended(handover: HandoverId, code: int) -> None:
    (_log.info if code == 0 else _log.warning)("program that carried a stream ended", handover=handover, code=code)
