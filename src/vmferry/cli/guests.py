"""`vmferry guest ...`: run, look at and end guests."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from vmferry.cli.fleet import open_fleet
from vmferry.cli.options import AsJson, GuestArgument, group
from vmferry.cli.output import print_json, print_table, say

app = group("Run, look at and end guests.")

#: Starting QEMU or waiting for a guest to power off takes a while.
SLOW_S = 660.0


@app.command("run")
def run(
    file: Annotated[str, typer.Argument(metavar="FILE.toml", help="The guest file (docs/guest-file.md).")],
    on: Annotated[str, typer.Option("--on", metavar="HOST", help="Host on which the guest starts.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Define a guest from its file and start it."""
    from vmferry.guestfile import load_guest_file

    spec = dataclasses.asdict(load_guest_file(file))
    view = open_fleet().ask(on, "POST", "/v1/guests", {"spec": spec}, time_limit_s=SLOW_S)
    _show_done(view, f"guest {view.get('name', spec['name'])} runs on {on}", as_json=as_json)


@app.command("list")
def list_guests(*, as_json: AsJson = False) -> None:
    """List the guests of all hosts; a host that does not answer is named."""
    views, answers = open_fleet().guests()
    if as_json:
        print_json({"guests": views, "silent": {host: error.what for host, error in answers.silent.items()}})
        return
    print_table(["GUEST", "HOST", "STATE", "MEMORY", "VCPUS", "ACCELERATION", "NOTE"], [_row(view) for view in views])
    if answers.silent:
        say(f"warning: {answers.silent_text()}")


def _row(view: dict[str, Any]) -> list[str]:
    from vmferry.core.units import format_bytes

    spec = view["spec"]
    note = f"held by {view['busy_with']}" if view["busy_with"] else view["note"] or ""
    return [
        view["name"],
        view["owner"],
        view["run_state"] or "no process",
        format_bytes(spec["memory_bytes"]),
        str(spec["vcpus"]),
        view["acceleration_tag"],
        note,
    ]


@app.command("show")
def show(guest: GuestArgument, *, as_json: AsJson = False) -> None:
    """Show one guest: state, owner, hardware."""
    fleet = open_fleet()
    view = fleet.ask(fleet.find_guest(guest), "GET", f"/v1/guests/{guest}")
    if as_json:
        print_json(view)
        return
    for key, value in view.items():
        if key != "spec":
            print(f"{key:18} {'-' if value is None else value}")
    for key, value in view["spec"].items():
        print(f"spec.{key:13} {'-' if value in (None, [], ()) else value}")


@app.command("start")
def start(guest: GuestArgument, *, as_json: AsJson = False) -> None:
    """Start a guest that is stopped."""
    _order(guest, "start", {}, "started", as_json=as_json)


@app.command("stop")
def stop(
    guest: GuestArgument,
    *,
    force: Annotated[bool, typer.Option("--force", help="End QEMU at once, without asking the guest.")] = False,
    time_limit: Annotated[str, typer.Option(help="How long the guest may take to power off.")] = "60s",
    as_json: AsJson = False,
) -> None:
    """Power a guest off."""
    from vmferry.cli.quantities import parse_duration

    seconds = parse_duration(time_limit, "--time-limit") / 1000
    _order(guest, "stop", {"force": force, "time_limit_s": seconds}, "stopped", as_json=as_json)


@app.command("pause")
def pause(guest: GuestArgument, *, as_json: AsJson = False) -> None:
    """Stop a guest's vCPUs; its memory stays."""
    _order(guest, "pause", {}, "paused", as_json=as_json)


@app.command("resume")
def resume(guest: GuestArgument, *, as_json: AsJson = False) -> None:
    """Let a paused guest's vCPUs run again."""
    _order(guest, "resume", {}, "resumed", as_json=as_json)


@app.command("remove")
def remove(guest: GuestArgument, *, as_json: AsJson = False) -> None:
    """Forget a guest that is stopped; its disks stay."""
    fleet = open_fleet()
    host = fleet.find_guest(guest)
    fleet.ask(host, "DELETE", f"/v1/guests/{guest}")
    _show_done({"name": guest, "host": host}, f"guest {guest} removed from {host}", as_json=as_json)


@app.command("console")
def console(guest: GuestArgument) -> None:
    """Connect to a guest's serial console; Ctrl-] leaves it."""
    from vmferry.cli.console import join_console

    fleet = open_fleet()
    join_console(fleet, fleet.find_guest(guest), guest)


def _order(guest: str, verb: str, body: dict[str, Any], done: str, *, as_json: bool) -> None:
    """Tell the guest's agent to do something and say what became of it."""
    fleet = open_fleet()
    host = fleet.find_guest(guest)
    view = fleet.ask(host, "POST", f"/v1/guests/{guest}/{verb}", body, time_limit_s=SLOW_S)
    state = view.get("run_state") or "no process"
    _show_done(view, f"guest {guest} on {host}: {done} ({state})", as_json=as_json)


def _show_done(view: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(view)
    else:
        print(text)
