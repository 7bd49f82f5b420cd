"""A linux guest of its own, with the throttle's port, for showing what the write throttle does and costs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

from vmferry.core.errors import TimedOut
from vmferry.guest_throttle import PORT_NAME, ThrottleChannel
from vmferry.lab.guests.image import GuestImage
from vmferry.lab.qmp import connect_when_listening
from vmferry.lab.toolchain import QemuBinary

_READY_S = 120.0
_LINE_S = 60.0
MEMORY_MIB = 224
WORKING_SET_MIB = 64


@dataclass
class ThrottledGuest:
    """A running linux guest without agent: QMP, its control channel, and the throttle's port.

    Attributes:
        qmp: connected.
        port: socket of `PORT_NAME`; `open_throttle` connects to it.
    """

    qmp: QMPClient
    port: Path
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter

    async def ask(self, question: str) -> str:
        """Return the line that answers a question on the control channel."""
        self._writer.write(f"{question}\n".encode())
        return await _line(self._reader)

    async def numbers(self, question: str) -> dict[str, int]:
        """Return the whole numbers `key=value` of an answer."""
        return {key: int(value) for key, value in re.findall(r"\b([a-z_]+)=(\d+)\b", await self.ask(question))}

    async def writes_per_s(self, seconds: float) -> float:
        """Return pages that the workload wrote per second of the guest's own clock, over about so many seconds."""
        first = await self.numbers("status")
        await asyncio.sleep(seconds)
        last = await self.numbers("status")
        return (last["writes"] - first["writes"]) * 1000 / (last["uptime_ms"] - first["uptime_ms"])

    async def dirty_mib_per_s(self) -> int:
        """Return the dirty rate as QEMU sees it from outside, by sampling pages over a second."""
        await self.qmp.execute("calc-dirty-rate", {"calc-time": 1, "mode": "page-sampling", "sample-pages": 16384})
        while True:
            told: Any = await self.qmp.execute("query-dirty-rate")
            if told["status"] == "measured":
                return int(told["dirty-rate"])
            await asyncio.sleep(0.1)

    async def open_throttle(self) -> ThrottleChannel:
        """Connect to the helper in the guest."""
        return await ThrottleChannel.open(self.port)


@asynccontextmanager
async def throttled_guest(
    qemu: QemuBinary, image: GuestImage, folder: Path, *, helper: bool, incoming: bool = False, **settings: object
) -> AsyncIterator[ThrottledGuest]:
    """Run a linux guest under TCG until the block ends, and have it ready inside the block.

    Args:
        qemu: which QEMU.
        image: the linux guest's.
        folder: for its sockets; short, empty.
        helper: whether the workload runs under vmferry-throttle.
        incoming: whether it waits for a migration instead of booting; nobody is there to be asked before that.
        **settings: of the workload, beside the working set.

    Raises:
        Broken: QEMU ended.
        TimedOut: the guest was not ready in time.
    """
    words = {"mb": WORKING_SET_MIB, **({"throttle": "on"} if helper else {}), **settings}
    process = await asyncio.create_subprocess_exec(
        *_arguments(qemu, image, folder, words),
        *(("-incoming", "defer") if incoming else ()),
        env={"PATH": "/usr/bin:/bin", **qemu.env},
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    qmp = QMPClient("guest")
    writer = None
    try:
        await connect_when_listening(qmp, folder / "qmp", process)
        reader, writer = await asyncio.open_unix_connection(folder / "control")
        if not incoming:
            await _line(reader, _READY_S)
        yield ThrottledGuest(qmp, folder / "throttle", reader, writer)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if writer is not None:
            writer.close()
        with suppress(EOFError):
            await qmp.disconnect()


def _arguments(qemu: QemuBinary, image: GuestImage, folder: Path, words: dict[str, object]) -> list[str]:
    def port(number: int, name: str, file: str) -> list[str]:
        # A socket, not UDP: virtio-serial on a UDP chardev drops everything (QEMU 10.0).
        return [
            *("-chardev", f"socket,id={file},path={folder}/{file},server=on,wait=off"),
            *("-device", f"virtserialport,bus=serial0.0,nr={number},chardev={file},name={name}"),
        ]

    return [
        *(*qemu.argv, "-accel", "tcg", "-M", "pc-q35-7.2", "-cpu", "qemu64", "-m", str(MEMORY_MIB)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.append(**words)),
        *("-chardev", "null,id=beat", "-device", "isa-debugcon,iobase=0xe9,chardev=beat"),
        *("-device", "virtio-serial-pci,id=serial0"),
        *port(1, "org.vmferry.control", "control"),
        *port(2, PORT_NAME, "throttle"),
        *("-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
    ]


async def _line(reader: asyncio.StreamReader, limit_s: float = _LINE_S) -> str:
    try:
        return (await asyncio.wait_for(reader.readline(), limit_s)).decode().strip()
    except TimeoutError as error:
        raise TimedOut(f"The guest said nothing on its control channel within {limit_s:.0f} s") from error
