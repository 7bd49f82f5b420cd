"""One QEMU over plain QMP, with none of our own code in between: what benches compare with, or look at."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from qemu.qmp import QMPClient

from vmferry.lab.qmp import connect_when_listening


@contextlib.asynccontextmanager
async def plain_qemu(argv: Sequence[str], qmp: Path, env: Mapping[str, str] | None = None) -> AsyncIterator[QMPClient]:
    """Start a QEMU and yield its QMP; it is killed afterwards.

    Args:
        argv: its command line, without QMP.
        qmp: its socket; goes away with it.
        env: its environment; None: ours.

    Raises:
        Broken: it ended before it listened.
    """
    listens = ("-qmp", f"unix:{qmp},server=on,wait=off")
    process = await asyncio.create_subprocess_exec(*argv, *listens, env=env, stdin=asyncio.subprocess.DEVNULL)
    client = QMPClient(qmp.stem)
    try:
        await connect_when_listening(client, qmp, process)
        yield client
    finally:
        with contextlib.suppress(Exception):  # its other end may be gone already
            await client.disconnect()
        if process.returncode is None:
            process.kill()
        await process.wait()
        await asyncio.to_thread(qmp.unlink, missing_ok=True)
