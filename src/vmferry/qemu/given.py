"""Connections and files that QEMU is given by the agent for a migration's stream: it opens none by itself.

Source: QEMU qapi/misc.json (getfd, add-fd), migration/{fd,file}.c, chardev/char-socket.c (tcp_chr_recv).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat

from vmferry.core.errors import VmferryError
from vmferry.ports.state_file import StateFile
from vmferry.ports.stream import StreamConnection
from vmferry.qemu.qmp import QmpSession

#: Under which QEMU is given a stream's connection.
DESCRIPTOR = "stream"
#: Set of the descriptor of a file with a guest in it; disks have lower numbers.
STATE_SET = 1000
#: The version from which on QEMU reads and writes `file:`.
KNOWS_FILES = (8, 2, 0)


async def over(session: QmpSession, connection: StreamConnection, command: str) -> None:
    """Have QEMU send or receive over a connection.

    Raises:
        VmferryError: QEMU did not take it; it has nothing of it any more.
    """
    try:
        await session.give_descriptor(DESCRIPTOR, connection.fileno())
        # QEMU makes every descriptor that it is given a blocking one, and would wait for the other side's part of the
        # TLS handshake in its main loop, for ever perhaps. Both descriptors are of one open file.
        if stat.S_ISSOCK(os.fstat(connection.fileno()).st_mode):
            os.set_blocking(connection.fileno(), False)
        await session.execute(command, {"uri": f"fd:{DESCRIPTOR}"})
    except BaseException:
        with contextlib.suppress(
            VmferryError
        ):  # taken, and let go, before it said no; or nobody has waited for its word
            await asyncio.shield(session.execute("closefd", {"fdname": DESCRIPTOR}))
        raise


async def with_file(session: QmpSession, file: StateFile, command: str, version: tuple[int, int, int]) -> None:
    """Have QEMU write or read a file from its offset on; one without `file:` gets it as a stream, where it stands."""
    if version < KNOWS_FILES:
        os.lseek(file.fileno(), file.offset, os.SEEK_SET)
        await session.give_descriptor(DESCRIPTOR, file.fileno())
        await session.execute(command, {"uri": f"fd:{DESCRIPTOR}"})
        return
    await session.give_descriptor_set(STATE_SET, file.fileno())
    await session.execute(command, {"uri": f"file:/dev/fdset/{STATE_SET},offset={file.offset:#x}"})


async def let_go_of_file(session: QmpSession) -> None:
    """Have QEMU close a file that it was given; it would keep it as long as it lives. Idempotent."""
    if any(found["fdset-id"] == STATE_SET for found in await session.execute("query-fdsets")):
        await session.execute("remove-fd", {"fdset-id": STATE_SET})
