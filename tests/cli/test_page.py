"""The page about the command line names every command, and every option that is not plain from its help."""

from __future__ import annotations

from pathlib import Path

import typer

from vmferry.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def commands(app: typer.Typer, before: str = "vmferry") -> list[str]:
    """Return every command with the words before it."""
    own = [f"{before} {info.name}" for info in app.registered_commands]
    groups = [(info.typer_instance, f"{before} {info.name}") for info in app.registered_groups]
    return own + [name for group, words in groups if group is not None for name in commands(group, words)]


def test_every_command_is_on_the_page() -> None:
    """Each command is on a line of the page, alone or beside those of its group."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("    vmferry ")]
    missing = []
    for command in commands(app):
        *group, name = command.split()
        if not any(line.split()[: len(group)] == group and name in line.split() for line in lines):
            missing.append(command)
    assert missing == []
    assert len(commands(app)) > 20
