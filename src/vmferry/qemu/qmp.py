"""A QMP session: each command has a deadline, and each failure is one of our errors with QEMU's own words."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate
from qemu.qmp.message import Message

from vmferry.core.errors import Broken, TimedOut
from vmferry.qemu.events import happened_ns
from vmferry.qemu.process import Process
from vmferry.qemu.sockets import connect

#: QEMU answers within milliseconds, unless a device or its main loop hangs.
COMMAND_TIMEOUT_S = 15.0
CONNECT_TIMEOUT_S = 20.0
POLL_S = 0.005


class SaidNo(Broken):
    """QEMU itself answered with an error: the command did not run, and the connection is good."""


class _Tap(EventListener):
    """Hands each event over the moment it is read, with the time at which QEMU says that it happened."""

    def __init__(self, sink: Callable[[Message, int], None]) -> None:
        super().__init__()
        self._sink = sink

    async def put(self, event: Message) -> None:
        self._sink(event, happened_ns(event, time.monotonic_ns(), time.time_ns()))


class QmpSession:
    """A connection to one QEMU.

    Args:
        guest: the guest's name, for messages.
    """

    def __init__(self, guest: str) -> None:
        self._guest = guest
        self._client = QMPClient(guest)
        # Its loggers repeat, at error level, what we raise anyway.
        self._client.logger.disabled = True
        # It would keep every event for a reader of its own, for as long as QEMU lives.
        self._client.events.event_filter = lambda _: False
        self._settled = asyncio.Event()  #: nobody tries to connect; who asks meanwhile waits
        self._settled.set()

    @property
    def is_connected(self) -> bool:
        """Tell whether QEMU has answered on it, and it is not closed."""
        return self._client.runstate is Runstate.RUNNING

    async def connect(
        self,
        address: Path | socket.socket,
        process: Process,
        timeout_s: float | None = CONNECT_TIMEOUT_S,
        *,
        negotiated: bool = False,
    ) -> None:
        """Connect as soon as the socket answers; gives up at once when the process ends.

        Args:
            address: where it listens, or a socket whose other end it inherited.
            process: the QEMU.
            timeout_s: for everything; None: as long as it takes.
            negotiated: the socket was in use before, by somebody who is gone; no answer is on its way there.

        Raises:
            Broken: the process ended before it answered, or another process listens there.
            TimedOut: it lives and does not answer.
        """
        self._client.await_greeting = self._client.negotiate = not negotiated
        self._settled.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait_connected(address, process)
        except TimeoutError:
            raise TimedOut(
                f"QEMU of guest {self._guest} (pid {process.record.pid}) did not answer on QMP in {timeout_s:.0f} s",
                fix="look at qemu.log in its run directory",
            ) from None
        finally:
            self._settled.set()

    async def _wait_connected(self, address: Path | socket.socket, process: Process) -> None:
        while True:
            with contextlib.suppress(QMPError, OSError):
                await self._connect_once(address, process)
                return
            if isinstance(address, socket.socket) or not process.is_alive():
                raise Broken(f"QEMU of guest {self._guest} (pid {process.record.pid}) ended before it answered on QMP")
            await asyncio.sleep(POLL_S)

    async def _connect_once(self, address: Path | socket.socket, process: Process) -> None:
        if isinstance(address, socket.socket):
            await self._client.connect(address)
            return
        with contextlib.ExitStack() as failed:
            connection = failed.enter_context(await connect(address, process.record.pid))
            await self._client.connect(connection)
            failed.pop_all()

    def on_event(self, sink: Callable[[Message, int], None]) -> None:
        """Call `sink(event, monotonic ns when it happened)` for every event, in order, from now on."""
        self._client.register_listener(_Tap(sink))

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
        *,
        oob: bool = False,
    ) -> Any:
        """Run a command and return its result.

        Args:
            command: its QAPI name.
            arguments: as QAPI has them.
            timeout_s: for the answer.
            oob: out of band: QEMU answers even when its main loop hangs. Only some commands can.

        Raises:
            SaidNo: QEMU said no; the command did not run.
            Broken: the connection is gone.
            TimedOut: no answer in time; whether it ran is not known.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
                return await self._client.execute(command, dict(arguments) if arguments else None, oob)
        except ExecuteError as error:
            raise SaidNo(f"QEMU of guest {self._guest} refused {command}: {error.error.error.desc}") from error
        except TimeoutError:
            raise TimedOut(
                f"QEMU of guest {self._guest} did not answer {command} in {timeout_s:.0f} s", retry=True
            ) from None
        except (QMPError, ExecInterruptedError, OSError, EOFError) as error:
            raise Broken(f"QMP connection to QEMU of guest {self._guest} is gone during {command}") from error

    async def give_descriptor(self, name: str, descriptor: int) -> None:
        """Give QEMU a descriptor of ours under a name; the caller closes its own.

        Raises:
            SaidNo: QEMU did not take it.
            Broken: the connection is gone.
            TimedOut: no answer in time; whether QEMU has it is not known.
        """
        self._send(descriptor)
        await self.execute("getfd", {"fdname": name})

    async def give_descriptor_set(self, number: int, descriptor: int) -> None:
        """Give QEMU a descriptor of ours as `/dev/fdset/NUMBER`; the caller closes its own. Raises the same."""
        self._send(descriptor)
        await self.execute("add-fd", {"fdset-id": number})

    def _send(self, descriptor: int) -> None:
        try:
            self._client.send_fd_scm(descriptor)
        except (QMPError, OSError, AssertionError) as error:  # the last: it is not connected
            raise Broken(f"QMP connection to QEMU of guest {self._guest} is gone") from error

    async def close(self) -> None:
        """Close the connection. Idempotent; QEMU is not touched."""
        with contextlib.suppress(Exception):  # whatever its reader died of is told again
            await self._client.disconnect()
