"""The lab's end of a nested host's port: commands go in, what they did comes out (control.py is the other end)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmferry.core.errors import Broken, TimedOut
from vmferry.lab.commands import Ran

#: How much longer than a command may take an answer is waited for: the host may be slow to kill it.
GRACE_S = 20.0
#: Longest line of an answer, in bytes.
_LINE_LIMIT = 64 << 20


class Channel:
    """One host's port. It listens before the host is started, which then connects to it.

    Args:
        host: the host's name, for messages.
        path: of the socket.
    """

    def __init__(self, host: str, path: Path) -> None:
        self._host = host
        self._path = path
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._serving: asyncio.Task[None] | None = None
        self._is_up = False
        self._settled = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last = 0

    @property
    def is_up(self) -> bool:
        """Whether commands can be run now."""
        return self._is_up

    async def listen(self) -> None:
        """Be ready for the host; a socket that an earlier one left is replaced."""
        self._path.unlink(missing_ok=True)
        self._settled.clear()
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_LINE_LIMIT)

    async def wait_up(self) -> None:
        """Wait until the host says that it is up.

        Raises:
            Broken: it hung up first.
        """
        await self._settled.wait()
        if not self._is_up:
            raise Broken(f"Nested host {self._host} ended before it was up")

    async def run(self, argv: Sequence[str], timeout_s: float, text: str = "") -> Ran:
        """Run a command in the host and return what it did. A cancelled call leaves it to its time limit.

        Args:
            argv: the command; what it leaves running must not hold its output open.
            timeout_s: after so many seconds it is killed, with its process group.
            text: its standard input.

        Raises:
            Broken: the host is not up, or hung up.
            TimedOut: it did not end in time, or the host does not answer.
        """
        did = await self._ask({"argv": list(argv), "timeout_s": timeout_s, "input": text}, timeout_s + GRACE_S)
        if did["late"]:
            said = f"{did['stdout']}{did['stderr']}"[-500:]
            raise TimedOut(f"`{' '.join(argv)}` took more than {timeout_s:g} s on nested host {self._host}: {said}")
        return Ran(did["exit_code"], did["stdout"], did["stderr"])

    def hang_up(self) -> None:
        """Take note that the host has ended: whoever waits for it is told. Idempotent."""
        self._is_up = False
        self._settled.set()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Broken(f"Nested host {self._host} ended before its command did"))

    async def close(self) -> None:
        """Hang up, and listen no more. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._serving is not None:
            await self._serving
            self._serving = None
        self.hang_up()

    async def _ask(self, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if self._writer is None or not self._is_up:
            raise Broken(f"Nested host {self._host} is not up")
        self._last += 1
        number = self._last
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._writer.write(json.dumps({"id": number, **question}).encode() + b"\n")
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise TimedOut(f"Nested host {self._host} does not answer to {question['argv']}") from error
        finally:
            del self._waiting[number]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer, self._serving = writer, asyncio.current_task()
        try:
            with contextlib.suppress(OSError):  # QEMU was killed
                while line := await reader.readline():
                    self._take(json.loads(line))
        finally:
            self.hang_up()
            writer.close()

    def _take(self, message: dict[str, Any]) -> None:
        if "up" in message:
            self._is_up = True
            self._settled.set()
        elif (answer := self._waiting.get(message["id"])) is not None and not answer.done():
            answer.set_result(message)
