"""`vmferry guest ...`: run, look at and end guests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from vmferry.cli.fleet import Answers, Fleet, open_fleet
from vmferry.cli.options import AsJson, GuestArgument, group
from vmferry.cli.output import print_json, print_table, say
from vmferry.core.errors import BadInput, VmferryError
from vmferry.core.pci import PciAddress

app = group("Run, look at and end guests.")

#: Starting QEMU or waiting for a guest to power off takes a while.
SLOW_S = 660.0
#: The longest that an agent waits for a guest to power off, or to let a device go.
MOST_POWER_OFF_MS = 600_000.0


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
    fleet = open_fleet()
    _check_name_free(fleet, spec["name"], on)
    with goes_on(on):
        view = fleet.ask(
            *(on, "POST", "/v1/guests", {"spec": spec}), time_limit_s=SLOW_S, what=f"{spec['name']} is being started"
        )
    _show_done(view, f"guest {view.get('name', spec['name'])} runs on {on}", as_json=as_json)


def _check_name_free(fleet: Fleet, name: str, on: str) -> None:
    """Refuse a second guest of one name in the fleet: the host itself knows only its own guests.

    Raises:
        NotFound: no such host.
        BadInput: another host has a guest of that name.
    """
    fleet.endpoint(on)
    if fleet.hosts == [on]:
        return
    try:
        answers = fleet.ask_all("/v1/guests", without=on)
    except VmferryError as error:
        answers = Answers({}, {"every other host": error})
    for host, answer in answers.answers.items():
        if any(view["name"] == name for view in answer["guests"]):
            raise BadInput(
                f"there is a guest of the name {name} on {host} already; nothing was touched",
                fix=f"choose another name, or move that one: `vmferry migrate {name} {on}`",
            )
    if answers.silent:
        say(f"warning: whether the name {name} is unique in the fleet is not certain: {answers.silent_text()}")


@contextmanager
def goes_on(host: str) -> Iterator[None]:
    """Tell on Ctrl-C that an order which was given may be carried out nevertheless."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"\ninterrupted; {host} may go on with it: `vmferry guest list` shows what becomes of it")
        raise


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
    note = f"busy: {view['busy_with']}" if view["busy_with"] else view["note"] or ""
    if degraded := view.get("degraded"):
        note += f"{'; ' if note else ''}degraded: {', '.join(degraded)} without what it is to have of its host"
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
    told = {**view["spec"], **{key: value for key, value in view.items() if key != "spec"}}
    rows = sorted(_rows(told), key=lambda row: row[0].partition("[")[0].partition(".")[0] not in view)
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        print(f"{key.ljust(width)}  {value}")


def _rows(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield a view's values as a guest file names them: boot.kernel, disks[0].path; what is not set is left out."""
    from vmferry.core.units import format_bytes

    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _rows(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _rows(inner, f"{key}[{index}]")
    elif isinstance(value, list) and value and all(isinstance(inner, str) for inner in value):
        yield key, ", ".join(value)
    elif isinstance(value, bool):
        yield key, "yes" if value else "no"
    elif key.endswith("_bytes"):
        yield key.removesuffix("_bytes"), format_bytes(value)
    elif value not in (None, "", [], ()):
        yield key, str(value)


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

    seconds = parse_duration(time_limit, "--time-limit", most_ms=MOST_POWER_OFF_MS) / 1000
    what = "QEMU is being ended" if force else f"the guest is asked to power off, within {time_limit}"
    _order(guest, "stop", {"force": force, "time_limit_s": seconds}, "stopped", as_json=as_json, what=what)


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


@app.command("attach")
def attach(
    guest: GuestArgument,
    devices: Annotated[
        list[str], typer.Argument(metavar="DEVICE...", help="Its address; several of one IOMMU group go together.")
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Give a running guest PCI devices of its host (`vmferry pci list HOST`), until it is stopped or they are detached.

    The host's driver lets them go. The guest cannot move while it has one.
    """
    which = [str(PciAddress.parse(device)) for device in devices]
    what = f"{', '.join(which)} is given to the guest"
    _order(guest, "attach", {"devices": which}, f"has {', '.join(which)}", as_json=as_json, what=what)


@app.command("detach")
def detach(
    guest: GuestArgument,
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Its address on the host.")],
    *,
    within: Annotated[str, typer.Option(help="How long the guest may take to let go.")] = "30s",
    as_json: AsJson = False,
) -> None:
    """Take a device from a running guest, and give it back to the host's own driver."""
    from vmferry.cli.quantities import parse_duration

    which = str(PciAddress.parse(device))
    seconds = parse_duration(within, "--within", most_ms=MOST_POWER_OFF_MS) / 1000
    body = {"device": which, "time_limit_s": seconds}

    def done(view: dict[str, Any]) -> str:
        waits = ", which waits for others of its IOMMU group" if which in view.get("devices", ()) else ""
        return f"has let {which} go{waits}"

    _order(guest, "detach", body, done, as_json=as_json, what=f"the guest lets go, within {within}")


@app.command("console")
def console(guest: GuestArgument) -> None:
    """Connect to a guest's serial console; Ctrl-] leaves it."""
    from vmferry.cli.console import join_console

    fleet = open_fleet()
    join_console(fleet, fleet.find_guest(guest), guest)


def _order(
    guest: str,
    verb: str,
    body: dict[str, Any],
    done: str | Callable[[dict[str, Any]], str],
    *,
    as_json: bool,
    what: str = "the order is carried out",
) -> None:
    """Tell the guest's agent to do something and say what became of it."""
    fleet = open_fleet()
    host = fleet.find_guest(guest)
    with goes_on(host):
        view = fleet.ask(host, "POST", f"/v1/guests/{guest}/{verb}", body, time_limit_s=SLOW_S, what=what)
    state = view.get("run_state") or "no process"
    said = done if isinstance(done, str) else done(view)
    _show_done(view, f"guest {guest} on {host}: {said} ({state})", as_json=as_json)


def _show_done(view: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(view)
    else:
        print(text)
