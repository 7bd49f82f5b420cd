"""The command: joins the groups, and turns errors into a line on standard error and an exit code."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from vmferry import __version__
from vmferry.cli import (
    admin,
    devices,
    domains,
    guests,
    handovers,
    lab,
    migration,
    pci,
    policies,
    preparing,
    recovery,
    saving,
)
from vmferry.cli.options import AsJson, group
from vmferry.cli.output import print_json, report_error
from vmferry.core.errors import VmferryError

#: Nobody read the output any more, as shells report it (128 + SIGPIPE). Not 0: that says where a guest runs.
UNREAD = 141

app = group("Moves running KVM guests between hosts: you know before, it arrives, exactly one.")
app.add_typer(admin.ca, name="ca")
admin.hosts.command("prepare")(preparing.prepare)
app.add_typer(admin.hosts, name="host")
app.add_typer(admin.operators, name="operator")
app.command("agent")(admin.run_agent)
app.add_typer(guests.app, name="guest")
app.add_typer(devices.app, name="device")
app.add_typer(pci.pci, name="pci")
app.add_typer(pci.physical, name="pf")
app.add_typer(pci.virtual, name="vf")
app.command("check")(migration.check)
app.command("migrate")(migration.migrate)
app.command("watch")(migration.watch)
app.command("trace")(migration.trace)
app.command("cancel")(migration.cancel)
app.command("bandwidth")(migration.bandwidth)
app.add_typer(handovers.app, name="handover")
app.add_typer(policies.app, name="policy")
app.add_typer(lab.app, name="lab")
app.command("save")(saving.save)
app.command("restore")(saving.restore)
app.command("import")(domains.import_domain)
app.command("export")(domains.export_guest)
app.command("recover")(recovery.recover)


@app.command("version")
def version(*, as_json: AsJson = False) -> None:
    """Print the version of this command."""
    if as_json:
        print_json({"version": __version__})
    else:
        print(f"vmferry {__version__}")


def main() -> NoReturn:
    """Run the command line and exit with the error's exit code; 2 for bad usage, 130 after Ctrl-C, 141 unread."""
    sys.exit(_let_readers_go(_run()))


def _run() -> int:
    """Run a command and return its exit code."""
    try:
        app(prog_name="vmferry")
    except VmferryError as error:
        return report_error(error, as_json="--json" in sys.argv[1:])
    except BrokenPipeError:
        return UNREAD
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # click makes a 1 of it, which says "cancelled" here
            return UNREAD
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def _let_readers_go(code: int) -> int:
    """Write out what is buffered and return the exit code: another one when whoever read it (head, less) has gone."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python shall neither try again nor complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or UNREAD
    return code
