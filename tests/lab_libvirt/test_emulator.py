"""A QEMU of ours as libvirt runs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vmferry.lab.libvirt import write_emulator
from vmferry.lab.toolchain import QemuBinary


def test_the_emulator_is_that_qemu(tmp_path: Path) -> None:
    """Its own arguments come first, its environment is set, and libvirt's arguments arrive as they are."""
    shown = 'printf "%s\\n" "$QEMU_MODULE_DIR" "$@"'
    argv = ("/bin/sh", "-c", shown, "sh", "-L", "/a b")
    binary = QemuBinary((10, 0, 2), argv, {"QEMU_MODULE_DIR": "/m $x"}, tmp_path, unpacked=True)
    path = write_emulator(binary, tmp_path / "emulator")
    ran = subprocess.run([path, "-name", "guest=web 7"], env={}, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["/m $x", "-L", "/a b", "-name", "guest=web 7"]
