"""`vmferry save` and `vmferry restore`: a running guest goes into a file, and out of it."""

from __future__ import annotations

from typing import Annotated

import typer

from vmferry.cli.fleet import open_fleet
from vmferry.cli.guests import SLOW_S, goes_on
from vmferry.cli.options import AsJson, GuestArgument
from vmferry.cli.output import print_json
from vmferry.core.errors import BadInput

FileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="Absolute path on the guest's host, below one of its image_dirs.")
]


def save(guest: GuestArgument, file: FileArgument, *, as_json: AsJson = False) -> None:
    """Write a running guest into a file and end it on its host; its disks stay where they are.

    The file owns the guest from then on: it goes on where the file is restored, once.
    """
    from vmferry.core.units import format_bytes

    fleet = open_fleet()
    host = fleet.find_guest(guest)
    with goes_on(host):
        reply = fleet.ask(
            *(host, "POST", f"/v1/guests/{guest}/save", {"path": _absolute(file)}),
            time_limit_s=SLOW_S,
            what=f"{guest} is being saved",
        )
    if as_json:
        print_json(reply)
        return
    print(f"guest {guest} is in {file} on {host} ({format_bytes(reply['state_bytes'])}), epoch {reply['epoch']}")


def restore(
    file: FileArgument,
    on: Annotated[str, typer.Option("--on", metavar="HOST", help="Host on which the guest goes on; it has the file.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Have a guest go on out of a file, as it was when it was saved; the file is used up: FILE.restored-ID."""
    fleet = open_fleet()
    fleet.endpoint(on)
    with goes_on(on):
        view = fleet.ask(
            *(on, "POST", "/v1/restore", {"path": _absolute(file)}),
            time_limit_s=SLOW_S,
            what=f"{file} is being restored",
        )
    if as_json:
        print_json(view)
    else:
        print(f"guest {view['name']} goes on on {on}: {view['run_state']}, epoch {view['epoch']}")


def _absolute(file: str) -> str:
    if not file.startswith("/"):
        raise BadInput(
            f"{file!r} is not an absolute path, and it is the host's file that is meant",
            fix="name it as its host does, e.g. /srv/saved/web-7.guest",
        )
    return file
