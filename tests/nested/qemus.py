"""QEMUs in a nested host that hold an image or would like to."""

from __future__ import annotations

import json
import shlex

from vmferry.core.host import FileFacts
from vmferry.core.units import Bytes
from vmferry.lab.commands import Ran
from vmferry.lab.nested import NestedHost
from vmferry.lab.toolchain import QemuBinary

PID_FILE = "/run/qemu.pid"
_WHY = "import sys; from vmferry.qemu.image_locks import why_locked; print(why_locked(sys.argv[1]) or '')"
_FACTS = """
import dataclasses, json, sys
from vmferry.agent.files import file_facts
print(json.dumps(dataclasses.asdict(file_facts(sys.argv[1], lambda path: None))))
"""


async def start_qemu(host: NestedHost, qemu: QemuBinary, image: str) -> Ran:
    """Start a QEMU whose guest is to write to an image; it ended well when it has the image, and then stays."""
    file = f"driver=file,node-name=file,filename={image},cache.direct=on,locking=on"
    words = [
        *("-machine", "q35", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-S"),
        *("-blockdev", file, "-blockdev", "driver=raw,node-name=disk,file=file,cache.direct=on"),
        *("-device", "virtio-blk-pci,drive=disk", "-daemonize", "-pidfile", PID_FILE),
    ]
    env = [f"{name}={value}" for name, value in qemu.env.items()]
    return await host.run("env", *env, *qemu.argv, *words)


async def end_qemus(host: NestedHost) -> None:
    """End the QEMU of this host, if there is one, and wait until it is gone: it removes its file last."""
    await host.shell(f"[ ! -e {PID_FILE} ] || kill $(cat {PID_FILE}); while [ -e {PID_FILE} ]; do sleep 0.05; done")


async def why_locked(host: NestedHost, image: str) -> str:
    """Return what vmferry says there about an image before a commit; empty when it is free."""
    return (await host.python(_WHY, image)).strip()


async def facts(host: NestedHost, image: str) -> FileFacts:
    """Return what an agent there would say of an image."""
    told = json.loads(await host.python(_FACTS, image))
    return FileFacts(**{**told, "size_bytes": Bytes(told["size_bytes"])})


async def make_image(host: NestedHost, image: str) -> None:
    """Make an empty image, where there may be one."""
    await host.must("qemu-img", "create", "-q", "-f", "raw", image, "4M")


class Writer:
    """A qemu-io in a host that holds an image and writes to it when it is told."""

    def __init__(self, host: NestedHost, image: str) -> None:
        self._host = host
        self._image = image

    async def start(self) -> None:
        """Open the image; a named pipe that is open at both ends keeps it waiting for orders."""
        command = f"qemu-io -t none -f raw {shlex.quote(self._image)}"
        script = "rm -f /run/orders; mkfifo /run/orders; exec 3<>/run/orders"
        await self._host.shell(f"{script}; setsid {command} <&3 >/run/answers 2>&1 & echo $! > /run/writer.pid")

    async def write(self, byte: int) -> None:
        """Order it to write to the first page; `answers` tells how that went."""
        await self._host.shell(f"echo 'write -P {byte} 0 4k' > /run/orders")

    async def answers(self, number: int) -> list[str]:
        """Wait for so many answers to orders, and return all of them."""
        found = await self._host.shell(
            f"while [ $(grep -cE 'wrote|failed' /run/answers) -lt {number} ]; do sleep 0.1; done;"
            " grep -E 'wrote|failed' /run/answers"
        )
        return found.splitlines()

    async def end(self) -> None:
        """End it, if it runs."""
        await self._host.shell("[ ! -e /run/writer.pid ] || kill -9 $(cat /run/writer.pid); rm -f /run/writer.pid")
