"""Whether a source still connects anew, for a QEMU that does not say so.

Before 9.1 the status is `postcopy-paused` while a resume connects and also after it has failed, without an event. A
second resume is accepted meanwhile, and when the first one then fails QEMU aborts (`Assertion !s->cleanup_bh`), and the
pages that only it has are lost. What it does write is a line in its log, right after it gave up.

Source: QEMU 7.2 migration/migration.c, migrate_fd_connect; docs/design/postcopy.md.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from vmferry.core.errors import TimedOut
from vmferry.ports.hypervisor import GuestEvent, GuestEventKind, MigrationStatus
from vmferry.qemu import foreign

#: From here on the status is `postcopy-recover-setup` while it connects, and QEMU refuses a second resume.
TELLS_CONNECTING = (9, 1, 0)

LIMIT_S = 15.0
POLL_S = 0.01
#: What QEMU writes after an order is a line or two.
_MOST_BYTES = 64 << 10

#: The stream that broke before, not the resume: some of these lines come after the status that they belong to.
_OF_THE_BREAK = (
    b"Detected IO failure for postcopy",
    b"Cannot read from TLS channel",
    b"Cannot write to TLS channel",
    b"Unable to shutdown socket",
)


class Reconnection:
    """The last resume of one source, until it is known how it ended.

    Args:
        guest: the guest's name, for messages.
        log: what QEMU itself writes.
    """

    def __init__(self, guest: str, log: Path) -> None:
        self._guest = guest
        self._log = log
        self._is_open = False
        self._read_to = 0

    def begin(self) -> None:
        """Note that a resume is ordered now."""
        self._is_open = True
        self._read_to, _ = foreign.read(self._log, 0, 0)

    def forget(self) -> None:
        """Note that the order was refused."""
        self._is_open = False

    def saw(self, event: GuestEvent) -> None:
        """Take note of an event: a resume that connected says so."""
        if event.kind is GuestEventKind.EXITED or event.status is MigrationStatus.POSTCOPY_RECOVER:
            self._is_open = False

    async def settle(self) -> None:
        """Wait until no resume is connecting any more.

        Raises:
            TimedOut: one still is; ordering another would endanger the source.
        """
        try:
            async with asyncio.timeout(LIMIT_S):
                while self._is_open and not self._gave_up():  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise TimedOut(
                f"QEMU of guest {self._guest} still connects anew after {LIMIT_S:.0f} s; "
                "another resume at the same time could end it, and with it the guest",
                retry=True,
            ) from None
        self._is_open = False

    def _gave_up(self) -> bool:
        _, written = foreign.read(self._log, self._read_to, _MOST_BYTES)
        lines = written.splitlines(keepends=True)
        return any(line.endswith(b"\n") and not any(mark in line for mark in _OF_THE_BREAK) for line in lines)
