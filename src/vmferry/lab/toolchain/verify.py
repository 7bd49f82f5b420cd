"""Finds out by running it whether a QEMU works: its version, its modules, its firmware files.

Source: QMP, qemu docs/interop/qmp-spec.rst (greeting, qmp_capabilities, quit).
"""

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence

from vmferry.core.errors import Broken
from vmferry.lab.toolchain.command import output_of

#: seconds until a QEMU that does nothing must have answered and ended; generous for a busy machine
DEADLINE_S = 60.0

#: touches the TCG module, the BIOS and a network card's boot ROM
PROBE = (
    *("-nodefaults", "-no-user-config", "-display", "none", "-S"),
    *("-machine", "pc-q35-7.2,accel=tcg", "-m", "16", "-device", "virtio-net-pci", "-qmp", "stdio"),
)
DIALOGUE = '{"execute": "qmp_capabilities"}\n{"execute": "query-version"}\n{"execute": "quit"}\n'


def read_version(argv: Sequence[str], env: Mapping[str, str]) -> tuple[int, int, int]:
    """Return what `--version` says.

    Raises:
        Broken: it does not start or says something else.
    """
    text = output_of([*argv, "--version"], env=env, fix="reinstall qemu-system-x86")
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", text)
    if found is None:
        raise Broken(f"{argv[0]} --version said {text[:80]!r}", fix="reinstall qemu-system-x86")
    return int(found[1]), int(found[2]), int(found[3])


def check_starts(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Start a paused machine, talk QMP with it and end it; leaves no process behind.

    Raises:
        Broken: it did not answer or did not end by itself.
    """
    try:
        done = subprocess.run(
            [*argv, *PROBE],
            input=DIALOGUE,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Broken(f"{argv[0]} does not start: {error}", fix="reinstall qemu-system-x86") from error
    if done.returncode != 0 or not has_answered(done.stdout):
        seen = done.stderr.strip()[-300:] or done.stdout[-300:]
        raise Broken(f"{argv[0]} does not start (exit code {done.returncode}): {seen}", fix="reinstall qemu-system-x86")


def has_answered(text: str) -> bool:
    """Tell whether QMP's output holds the answer to query-version."""
    replies = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return any("qemu" in reply["return"] for reply in replies if isinstance(reply.get("return"), dict))
