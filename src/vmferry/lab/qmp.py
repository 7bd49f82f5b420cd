"""Connecting to a QEMU that a test or a measurement starts by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

from qemu.qmp import ConnectError, QMPClient

from vmferry.core.errors import Broken

_POLL_S = 0.01


async def connect_when_listening(qmp: QMPClient, path: Path, process: asyncio.subprocess.Process) -> None:
    """Connect as soon as QEMU listens; the socket's file is there a moment before that.

    Raises:
        Broken: QEMU ended first.
    """
    while True:
        if process.returncode is not None:
            raise Broken(f"QEMU ended with status {process.returncode} before it listened")
        try:
            await qmp.connect(str(path))
        except ConnectError:
            await asyncio.sleep(_POLL_S)
        else:
            return
