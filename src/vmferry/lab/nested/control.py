"""The program in a nested host that runs commands for the lab; it needs nothing but Python.

One line of JSON is a question, one line the answer; questions are answered as their commands end. When the lab closes
its end of the port, the program ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

PORT_NAME = "org.vmferry.nested"
_write_lock = threading.Lock()


def main() -> int:
    """Say that the host is up, then answer until the port is closed."""
    port = os.open(_find_port(), os.O_RDWR | os.O_CLOEXEC)
    _send(port, {"up": os.uname().nodename})
    with os.fdopen(os.dup(port), "rb") as questions:
        for line in questions:
            threading.Thread(target=_answer, args=(port, json.loads(line)), daemon=True).start()
    return 0


def _find_port() -> Path:
    """Return the device of our port. Source: Linux drivers/char/virtio_console.c, attribute `name`."""
    for folder in Path("/sys/class/virtio-ports").iterdir():
        name = folder / "name"
        if name.exists() and name.read_text("ascii").strip() == PORT_NAME:
            return Path("/dev") / folder.name
    raise SystemExit(f"no port {PORT_NAME}")


def _answer(port: int, question: dict[str, Any]) -> None:
    did = _run(question["argv"], question["input"], question["timeout_s"])
    _send(port, {"id": question["id"], **did})


def _run(argv: list[str], text: str, timeout_s: float) -> dict[str, object]:
    """Run one command to its end, or kill it and its process group when its time is over."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, text=True, errors="replace"
        )
    except OSError as error:
        return {"exit_code": 127, "stdout": "", "stderr": str(error), "late": False}
    late = False
    try:
        out, err = process.communicate(text, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    return {"exit_code": process.returncode, "stdout": out, "stderr": err, "late": late}


def _send(port: int, message: dict[str, Any]) -> None:
    rest = json.dumps(message).encode() + b"\n"
    with _write_lock:
        while rest:
            rest = rest[os.write(port, rest) :]


if __name__ == "__main__":
    sys.exit(main())
