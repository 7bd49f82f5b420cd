"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
GuestArgument = Annotated[str, typer.Argument(metavar="GUEST", help="Name of the guest.")]
HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="Name of the host.")]


def group(help_text: str) -> typer.Typer:
    """Return a group of commands; rich is left out of the help, since it takes longer to load than to read."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
