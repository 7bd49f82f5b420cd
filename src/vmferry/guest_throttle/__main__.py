"""Compiles the helper for a guest: ``python -m vmferry.guest_throttle FILE``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vmferry.core.errors import VmferryError
from vmferry.guest_throttle.program import compile_helper


def main() -> int:
    """Write the static program to a file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vmferry.guest_throttle")
    parser.add_argument("file", type=Path, help="where to write vmferry-throttle, to be copied into the guest")
    asked = parser.parse_args()
    try:
        compile_helper(asked.file)
    except VmferryError as error:
        print(error, file=sys.stderr)  # noqa: T201  a command's output
        return error.exit_code
    print(f"{asked.file} ({asked.file.stat().st_size >> 10} KiB)")  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
