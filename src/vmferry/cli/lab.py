"""`vmferry lab ...`: hosts on this machine, emulated, with agents; for who has none to try things on.

The lab is above everything, so it is run, not imported.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from vmferry.cli.options import group

app = group("Emulated hosts on this machine, to try things without any hardware.")

SriovOption = Annotated[
    bool, typer.Option("--sriov", help="With cards that make virtual functions, an IOMMU and KVM, all emulated.")
]
#: Their memory is this machine's (vmferry.lab.nested.lab.MOST_HOSTS).
_MOST_HOSTS = 4
HostsOption = Annotated[int, typer.Option("--hosts", metavar="N", min=1, max=_MOST_HOSTS, help="How many hosts.")]


@app.command("up")
def up(*, hosts: HostsOption = 2, sriov: SriovOption = False) -> None:
    """Start hosts with agents and one shared folder, and say how to ask them; they stay until `vmferry lab down`."""
    _run("up", "--hosts", str(hosts), *(["--sriov"] if sriov else []))


@app.command("show")
def show() -> None:
    """Say how the lab's hosts are asked."""
    _run("show")


@app.command("shell", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def shell(
    context: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST", help="One of the lab's hosts.")],
) -> None:
    """Run a command in a host of the lab, as root, or join a shell there when none is given; Ctrl-] leaves it."""
    _run("shell", host, *context.args)


@app.command("down")
def down() -> None:
    """End the lab; nothing of it is left."""
    _run("down")


def _run(*words: str) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-m", "vmferry.lab.kept", *words])  # noqa: S606 - our own program
