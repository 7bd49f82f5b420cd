"""`vmferry ca`, `host`, `operator` and `agent`: who belongs to the fleet."""

from __future__ import annotations

import typer

from vmferry.cli.fleet import open_fleet
from vmferry.cli.options import AsJson, HostArgument, group
from vmferry.cli.output import print_json, print_table

ca = group("The fleet's certificate authority.")
hosts = group("Enrol, list and remove hosts.")
operators = group("Enrol, list and remove operators.")


@ca.command("init")
def ca_init() -> None:
    """Make the fleet's certificate authority."""
    raise NotImplementedError


@hosts.command("list")
def list_hosts(*, as_json: AsJson = False) -> None:
    """List the hosts of the fleet and what they offer; a host that does not answer is named."""
    fleet = open_fleet()
    answers = fleet.ask_all("/v1/host")
    if as_json:
        print_json({"hosts": list(answers.answers.values()), "silent": {h: e.what for h, e in answers.silent.items()}})
        return
    rows = [_row(host, answers.answers.get(host)) for host in fleet.hosts]
    print_table(["HOST", "ADDRESS", "AGENT", "QEMU", "ACCELERATION", "MEMORY FREE"], rows)


def _row(host: str, facts: dict[str, object] | None) -> list[str]:
    raise NotImplementedError


@hosts.command("show")
def show_host(host: HostArgument, *, as_json: AsJson = False) -> None:
    """Show one host: QEMU, acceleration, memory, bridges."""
    raise NotImplementedError


def run_agent() -> None:
    """Run the agent of this host."""
    raise typer.Exit(1)
