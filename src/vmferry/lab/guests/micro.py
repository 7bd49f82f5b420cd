"""Builds the micro guest: a 32-bit multiboot program of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmferry.lab.guests.compiler import compile_c
from vmferry.lab.guests.sources import MICRO, read_all

if TYPE_CHECKING:
    from pathlib import Path

_FLAGS = (
    "-m32", "-march=i686", "-O2", "-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie",
    "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none",
    "-mno-sse", "-mno-mmx", "-mgeneral-regs-only",
    "-Wl,-T,micro.ld", "-Wl,-z,noexecstack", "-Wl,-z,norelro",
)  # fmt: skip


def inputs(_cache: Path) -> list[bytes]:
    """Return everything that the micro guest's bytes depend on."""
    return read_all(MICRO)


def make(folder: Path, _cache: Path) -> None:
    """Write the program into a folder.

    Raises:
        Broken: When the compiler is missing or refuses.
    """
    print("compiling the micro guest", flush=True)
    compile_c([*MICRO.glob("*.c"), *MICRO.glob("*.S")], folder / "micro.elf", _FLAGS)
