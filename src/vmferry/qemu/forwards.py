"""Ports of the host that are forwarded into an arrived guest (network = user).

A port can be bound once on a host, and while a guest moves within one host its old process still has it. So an arriving
process starts without its forwards, and gets each as soon as the port is free.
"""

from __future__ import annotations

import asyncio

from vmferry.core.guest import GuestSpec, NetworkKind
from vmferry.qemu.qmp import QmpSession

FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 0.5

#: (netdev, host port, guest port)
Forward = tuple[str, int, int]


def forwards_of(spec: GuestSpec) -> frozenset[Forward]:
    """Return every forward that the guest should have."""
    return frozenset(
        (f"net{index}", host, guest)
        for index, nic in enumerate(spec.nics)
        if nic.network is NetworkKind.USER
        for host, guest in nic.forward_udp
    )


async def open_forwards(session: QmpSession, wanted: frozenset[Forward]) -> None:
    """Open what is missing, trying again until each port is free; returns when all are open.

    Raises:
        Broken: the connection is gone.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        present = await _open_ports(session)
        missing = [forward for forward in sorted(wanted) if forward[1] not in present]
        if not missing:
            return
        for netdev, host, guest in missing:
            await _monitor(session, f"hostfwd_add {netdev} udp:127.0.0.1:{host}-:{guest}")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


async def _open_ports(session: QmpSession) -> frozenset[int]:
    text = await _monitor(session, "info usernet")
    rows = [line.split() for line in text.splitlines() if "HOST_FORWARD" in line]
    return frozenset(int(row[3]) for row in rows if len(row) > 3)


async def _monitor(session: QmpSession, line: str) -> str:
    # QMP has no command for forwards, in 7.2 and 10.0 alike.
    return str(await session.execute("human-monitor-command", {"command-line": line}))
