"""The helper's source, and its compilation into one static program that any x86-64 Linux guest can run."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vmferry.core.errors import Broken

HELPER_SOURCE = Path(__file__).parent / "helper"
#: Beside what makes a build repeatable.
FLAGS = ("-O2", "-static")
_STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g0", "-s")


def sources() -> list[Path]:
    """Return the C files, in the order of their names."""
    return sorted(HELPER_SOURCE.glob("*.c"))


def compile_helper(program: Path) -> None:
    """Compile vmferry-throttle; on failure no program is left behind.

    Raises:
        Broken: there is no compiler, or it refuses; its last words are in the text.
    """
    command = ["gcc", *_STRICT, *FLAGS, "-o", str(program), *(str(source) for source in sources())]
    fix = "install gcc and libc6-dev"
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Broken(f"Cannot compile vmferry-throttle: {error}", fix=fix) from error
    if done.returncode:
        program.unlink(missing_ok=True)
        raise Broken(f"Cannot compile vmferry-throttle: {done.stderr.strip()[-500:]}", fix=fix)
