"""`vmferry --help` is there at once: nothing heavy is imported for it, nor before a command knows that it needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"aiohttp", "asyncio", "cryptography", "http", "pydantic", "rich", "ssl", "structlog", "qemu", "sqlite3"}


@pytest.mark.parametrize(
    ("arguments", "needed"),
    # typer itself converts a command's arguments with pydantic
    [(["--help"], set()), (["migrate", "--help"], {"pydantic"}), (["version"], {"pydantic"})],
)
def test_nothing_heavy_is_imported_for_help(arguments: list[str], needed: set[str]) -> None:
    """The heavy libraries are not among the modules of a command that only prints its help."""
    code = (
        "import sys; from vmferry.cli.main import main\n"
        f"sys.argv = ['vmferry', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "print('modules:', *sys.modules); sys.exit(code)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(ran.stdout.rpartition("modules:")[2].split())
    assert "vmferry.cli.main" in modules
    assert sorted((modules & HEAVY) - needed) == []
