"""RDMA between nested hosts, in software (soft-RoCE), and QEMUs that move a guest through it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from typing import Any

from tests.nested.qemus import PID_FILE

from vmferry.lab.nested import NestedHost
from vmferry.lab.toolchain import QemuBinary

PORT = 49152
LOG = "/run/qemu.log"
_SOCKET = "/run/qemu.sock"
_CONTENT = "/run/content"
CONTENT_MIB = 24
#: One connection to QMP that asks in order and prints the answers; QEMU has so many seconds for each.
_ASK = """
import json, socket, sys
line = socket.socket(socket.AF_UNIX)
line.settimeout(10)
line.connect(sys.argv[1])
file = line.makefile("rw")
file.readline()
said = []
for question in [{"execute": "qmp_capabilities"}, *json.loads(sys.argv[2])]:
    file.write(json.dumps(question) + "\\n")
    file.flush()
    while "event" in (answer := json.loads(file.readline())):
        pass
    said.append(answer)
print(json.dumps(said[1:]))
"""


async def start_qemu(host: NestedHost, qemu: QemuBinary, *, arrives: bool) -> None:
    """Start a QEMU with a paused guest whose memory is not empty, or one that waits for it."""
    words = [
        *("-machine", "pc-q35-7.2,accel=tcg", "-m", "64", "-nodefaults", "-display", "none", "-S"),
        *("-device", f"loader,file={_CONTENT},addr=0x1000000,force-raw=on"),
        *("-qmp", f"unix:{_SOCKET},server=on,wait=off", "-daemonize", "-pidfile", PID_FILE, "-D", LOG),
        *(("-incoming", "defer") if arrives else ()),
    ]
    env = [f"{name}={value}" for name, value in qemu.env.items()]
    command = shlex.join(["env", *env, *qemu.argv, *words])
    await host.shell(f"rm -f {LOG}; head -c {CONTENT_MIB}M /dev/urandom > {_CONTENT}; {command}")


async def ask(host: NestedHost, *questions: dict[str, object]) -> list[dict[str, Any]]:
    """Ask the host's QEMU over QMP and return its answers, errors too.

    Raises:
        Broken: QEMU is gone, or does not answer within 10 s.
    """
    answers: list[dict[str, Any]] = json.loads(await host.python(_ASK, _SOCKET, json.dumps(questions)))
    return answers


def capabilities(names: Iterable[str]) -> dict[str, object]:
    """Return the question that sets these capabilities on."""
    rows = [{"capability": name, "state": True} for name in names]
    return {"execute": "migrate-set-capabilities", "arguments": {"capabilities": rows}}


def by_rdma(command: str, host: NestedHost) -> dict[str, object]:
    """Return the question that listens on a host's address, or sends there."""
    return {"execute": command, "arguments": {"uri": f"rdma:{host.plan.ip}:{PORT}"}}


async def migration(host: NestedHost) -> dict[str, Any]:
    """Return what QEMU says of its migration."""
    (answer,) = await ask(host, {"execute": "query-migrate"})
    found: dict[str, Any] = answer["return"]
    return found
