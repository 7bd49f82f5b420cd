"""Builds a guest from the shell: ``python -m vmferry.lab.guests build KIND``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from vmferry.core.errors import VmferryError
from vmferry.lab.guests.build import KINDS, build
from vmferry.lab.toolchain.cache import cache_dir


def main() -> int:
    """Build what was asked for and prints where it is; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vmferry.lab.guests")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="build a guest, or say where it already is")
    command.add_argument("kind", choices=KINDS)
    command.add_argument("--cache", type=Path, default=cache_dir())
    asked = parser.parse_args()
    started = time.monotonic()
    try:
        image = build(asked.kind, asked.cache)
    except VmferryError as error:
        print(f"cannot build guest {asked.kind}: {error}", file=sys.stderr)
        return error.exit_code
    for file in (image.kernel, image.initrd, image.firmware, image.nvram, *image.disks):
        if file:
            print(f"{file} ({file.stat().st_size / 2**20:.1f} MiB)")
    print(f"{image.kind} {image.content_hash[:16]} ready in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
