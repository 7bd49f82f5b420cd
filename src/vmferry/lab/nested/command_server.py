"""The command line in a nested host, loaded once and forked for each command: loading it takes seconds there.

    python -m vmferry.lab.nested.command_server SOCKET        # serves until it is killed
    python -IS -c CLIENT SOCKET '["guest", "list"]' '{"VMFERRY_CONFIG": "/..."}'

A connection is one command: a line of JSON there, and one back with what it printed and its exit code. Who hangs up has
it killed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

#: Runs in an interpreter that loads nothing; ends as the command did.
CLIENT = """
import json, socket, sys, time
there = socket.socket(socket.AF_UNIX)
for _ in range(600):
    try:
        there.connect(sys.argv[1])
        break
    except OSError:
        time.sleep(0.1)
there.sendall(json.dumps({"argv": json.loads(sys.argv[2]), "env": json.loads(sys.argv[3])}).encode() + b"\\n")
did = json.loads(there.makefile("rb").readline())
sys.stdout.write(did["stdout"])
sys.stderr.write(did["stderr"])
sys.exit(did["exit_code"])
"""
_LOOK_EVERY_S = 0.02
#: What commands need, much of it only when they run.
_LOADED = (
    *("vmferry.cli.main", "vmferry.api.client", "vmferry.api.fleet_commands", "vmferry.cli.libvirt_hosts"),
    *("vmferry.cli.render.live", "vmferry.cli.render.plain", "vmferry.cli.render.check", "vmferry.pki.authority"),
)


def main() -> None:
    """Serve."""
    load()
    path = Path(sys.argv[1])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen()
        while True:
            connection, _ = door.accept()
            if os.fork() == 0:
                door.close()
                _answer(connection)
            connection.close()


def load() -> None:
    """Import what commands need."""
    for name in _LOADED:
        importlib.import_module(name)


def _answer(connection: socket.socket) -> None:
    """Run the command of a connection, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with (
        connection,
        connection.makefile("rb") as lines,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        asked = json.loads(lines.readline())
        child = os.fork()
        if child == 0:
            _become(asked, out, err)
        code = _wait(child, connection)
        did = {"exit_code": code, "stdout": _text(out), "stderr": _text(err)}
        with contextlib.suppress(OSError):  # nobody listens any more
            connection.sendall(json.dumps(did).encode() + b"\n")
    os._exit(0)


def _become(asked: dict[str, Any], out: BinaryIO, err: BinaryIO) -> None:
    """Be the command."""
    from vmferry.cli.main import main as command

    os.setsid()
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    os.environ.update(asked["env"])
    sys.argv = ["vmferry", *asked["argv"]]
    code = 1
    try:
        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait(child: int, connection: socket.socket) -> int:
    """Return a command's exit code; it is killed when nobody waits for it any more."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        readable, _, _ = select.select([connection], [], [], _LOOK_EVERY_S)
        if readable and not connection.recv(1):
            os.killpg(child, signal.SIGKILL)
            connection.settimeout(None)


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


if __name__ == "__main__":
    main()
