"""What a libvirt daemon tells of its domains while it happens, as `virsh event` prints it."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from dataclasses import dataclass
from typing import Any, Self

from vmferry.lab.commands import end
from vmferry.lab.libvirt.daemon import LibvirtDaemon

_EVENT = re.compile(r"^(?P<when>\S+ [\d:.]+\+0000): event '(?P<event>[^']+)' for domain '[^']*':\s*(?P<words>.*)$")


@dataclass(frozen=True, slots=True)
class TapEvent:
    """One event."""

    at: float  #: seconds since 1970, by the clock of virsh
    host: str  #: source or destination
    event: str  #: lifecycle, migration-iteration, job-completed ...
    words: str  #: what virsh prints behind it; several lines become one

    def line(self, began: float) -> dict[str, Any]:
        """Return it as a line of a transcript that began at a moment."""
        at_ms = round((self.at - began) * 1000, 1)
        return {"t": "event", "at_ms": at_ms, "host": self.host, "event": self.event, "words": self.words}


class EventTap:
    """Listens to one daemon while it is entered.

    Args:
        daemon: of a lab.
        host: what its host is called in the events.
    """

    def __init__(self, daemon: LibvirtDaemon, host: str) -> None:
        self._daemon = daemon
        self._host = host
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[str] | None = None
        self.events: tuple[TapEvent, ...] = ()  #: complete when it has been left

    async def __aenter__(self) -> Self:
        """Begin to listen; returns when virsh has had time to connect."""
        self._process = await asyncio.create_subprocess_exec(
            *("stdbuf", "-oL", *self._daemon.virsh_argv("event", "--all", "--loop", "--timestamp")),
            env=self._daemon.lab.environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._reader = asyncio.create_task(self._read(self._process.stdout))
        await asyncio.sleep(0.5)  # it does not say when it listens
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        if self._process is not None and self._reader is not None:
            await end(self._process)
            self.events = tuple(parse_events(await self._reader, self._host))

    @staticmethod
    async def _read(stream: asyncio.StreamReader | None) -> str:
        return "" if stream is None else (await stream.read()).decode("utf-8", "replace")


def parse_events(text: str, host: str) -> list[TapEvent]:
    """Return the events out of what virsh printed; what goes on in an indented line belongs to the one before."""
    found: list[TapEvent] = []
    for line in text.splitlines():
        if match := _EVENT.match(line):
            when = dt.datetime.fromisoformat(match["when"])
            found.append(TapEvent(when.timestamp(), host, match["event"], match["words"].strip()))
        elif line.startswith(("\t", " ")) and found:
            last = found[-1]
            words = f"{last.words} {line.strip()}".strip()
            found[-1] = TapEvent(last.at, last.host, last.event, words)
    return found
