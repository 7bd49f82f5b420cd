"""The guest file: TOML that a person wrote, turned into a `GuestSpec`, or into every mistake at once with its line.

`words` holds what each key may say, `model` its shape, `combinations` what keys say together, `positions` finds
lines, `load` joins them, `write` is the way back, `reference` writes docs/guest-file.md.
"""

from __future__ import annotations

from vmferry.guestfile.load import load_guest_file, parse_guest_file
from vmferry.guestfile.problems import GuestFileInvalid, Problem
from vmferry.guestfile.write import dump_guest_file

__all__ = ["GuestFileInvalid", "Problem", "dump_guest_file", "load_guest_file", "parse_guest_file"]
