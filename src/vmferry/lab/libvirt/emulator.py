"""A QEMU of ours as libvirt can name it: one path, without an environment and further arguments."""

from __future__ import annotations

import shlex
from pathlib import Path

from vmferry.lab.toolchain import QemuBinary


def write_emulator(binary: QemuBinary, path: Path) -> Path:
    """Write a program that is this QEMU with its firmware and modules, and return its path.

    Of its modules libvirt's daemon takes care (daemon.py). One that is there already is left alone: libvirt asks a
    program that has changed for seconds what it can.
    """
    env = " ".join(f"{name}={shlex.quote(value)}" for name, value in binary.env.items())
    start = " ".join(part for part in (env, "exec", shlex.join(binary.argv), '"$@"') if part)
    text = f"#!/bin/sh\n{start}\n"
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")
        path.chmod(0o755)
    return path
