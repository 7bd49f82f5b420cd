"""`vmferry ca`, `host`, `operator` and `agent`: who belongs to the fleet."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmferry.cli.fleet import identity_directory, open_fleet, open_identity
from vmferry.cli.options import AsJson, HostArgument, group
from vmferry.cli.output import print_json, print_table, say
from vmferry.core.errors import BadInput

if TYPE_CHECKING:
    from vmferry.api.fleet_commands import Told
    from vmferry.cli.libvirt_hosts import LibvirtHost

ca = group("The fleet's certificate authority.")
hosts = group("Enrol, list and remove hosts.")
operators = group("Enrol, list and remove operators.")

#: Where an agent looks for the CA directory unless its configuration says otherwise.
DEFAULT_CA_DIR = "/var/lib/vmferry/ca"
DEFAULT_PORT = 7716
#: Longer than any code: a file that holds something else is not read whole.
_MOST_CODE = 1000
DEFAULT_LIFETIME = "2160h"  # 90 days

CaDir = Annotated[
    Path, typer.Option("--ca-dir", metavar="DIR", envvar="VMFERRY_CA_DIR", help="The CA directory, on this machine.")
]
OperatorArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the operator.")]


@ca.command("init")
def ca_init(
    *,
    ca_dir: CaDir = Path(DEFAULT_CA_DIR),
    operator: Annotated[str, typer.Option(metavar="NAME", help="Name of the first operator: you.")] = "admin",
    lifetime: Annotated[str, typer.Option(help="Lifetime of certificates; they renew themselves.")] = DEFAULT_LIFETIME,
    as_json: AsJson = False,
) -> None:
    """Make a new fleet: its certificate authority, and you as its first operator."""
    from vmferry.api.fleet_commands import init_ca
    from vmferry.cli.quantities import parse_duration

    lifetime_s = max(1, round(parse_duration(lifetime, "--lifetime") / 1000))
    made = init_ca(ca_dir, identity_directory(), operator=operator, lifetime_s=lifetime_s)
    if as_json:
        print_json({"ca_dir": str(made.ca_dir), "identity_dir": str(made.identity_dir), "operator": made.operator.name})
        return
    print(f"CA made in {made.ca_dir}; operator {made.operator.name} in {made.identity_dir}")
    print("next: start `vmferry agent` on each host, then `vmferry host add NAME ADDRESS CODE` with the code it prints")


@ca.command("show")
def ca_show(*, as_json: AsJson = False) -> None:
    """Show the CA that this operator believes, and when its certificate ends."""
    import datetime as dt

    from vmferry.pki.certificates import ends_soon

    certificate = open_identity(identity_directory()).ca()
    name, end = certificate.subject.rfc4514_string().removeprefix("CN="), certificate.not_valid_after_utc
    if as_json:
        warning = ends_soon(certificate, dt.datetime.now(dt.UTC))
        print_json({"name": name, "valid_until": end.isoformat(), "warning": warning})
        return
    print(f"{name}, valid until {end:%F %R} UTC")
    _warn_ca()


@ca.command("renew")
def ca_renew(*, ca_dir: CaDir = Path(DEFAULT_CA_DIR), as_json: AsJson = False) -> None:
    """Give the CA ten more years with the same key: members go on, and get the new certificate from you."""
    from vmferry.pki.authority import CERTIFICATE_FILE, Authority
    from vmferry.pki.identity import IdentityDirectory

    certificate = Authority.open(ca_dir).renew()
    own = IdentityDirectory(identity_directory())
    if own.exists():
        own.replace_ca(certificate)
    if as_json:
        print_json({"ca_dir": str(ca_dir), "valid_until": certificate.not_valid_after_utc.isoformat()})
        return
    print(f"CA in {ca_dir} is valid until {certificate.not_valid_after_utc:%F %R} UTC; members go on with the old one")
    print(
        f"next: copy {ca_dir / CERTIFICATE_FILE} to identity/ca.pem in each host's state directory and restart its"
        " agent (guests run on), and to ca.pem of each operator's identity"
    )


@hosts.command("add")
def add_host(  # noqa: PLR0913 - one for each option of the command
    name: Annotated[str, typer.Argument(metavar="NAME", help="The host's name in the fleet.")],
    address: Annotated[
        str | None, typer.Argument(metavar="[ADDRESS]", help="Where all other hosts reach its agent.")
    ] = None,
    code: Annotated[
        str | None, typer.Argument(metavar="[CODE]", help="The enrolment code that its agent printed.")
    ] = None,
    *,
    code_option: Annotated[str | None, typer.Option("--code", metavar="CODE", help="The same, as an option.")] = None,
    code_file: Annotated[
        str | None,
        typer.Option(
            "--code-file", metavar="FILE", help="A file with the code, - for standard input: `ps` does not show it."
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of its agent.")] = DEFAULT_PORT,
    libvirt: Annotated[
        str | None,
        typer.Option(metavar="URI", help="No agent, but libvirt: where its daemon is from here (docs/libvirt.md)."),
    ] = None,
    peer_uri: Annotated[
        str | None,
        typer.Option(metavar="URI", help="With --libvirt: where its daemon is from other hosts. Default: the same."),
    ] = None,
    lock_manager: Annotated[
        str | None,
        typer.Option(
            metavar="lockd|sanlock|none",
            help="With --libvirt: the lock manager in its qemu.conf, which libvirt tells nobody. Default: not known.",
        ),
    ] = None,
    ca_dir: CaDir = Path(DEFAULT_CA_DIR),
    as_json: AsJson = False,
) -> None:
    """Enrol a host whose agent runs and printed an enrolment code, or name one of libvirt's."""
    from vmferry.api import fleet_commands as commands

    if libvirt is not None:
        if address is not None:
            raise BadInput(f"host {name} has an agent or libvirt, not both", fix="leave ADDRESS and CODE out")
        _add_libvirt_host(name, libvirt, peer_uri, lock_manager, as_json=as_json)
        return
    if address is None:
        raise BadInput(
            f"it is not said where host {name} is",
            fix="`vmferry host add NAME ADDRESS CODE`, or `vmferry host add NAME --libvirt URI`",
        )
    shown = code or code_option or (_read_code(code_file) if code_file is not None else None)
    if shown is None:
        raise BadInput(
            f"no enrolment code for host {name}", fix="start `vmferry agent` there and give the code that it prints"
        )
    added = commands.add_host(name, address, shown, ca_dir=ca_dir, identity_dir=identity_directory(), port=port)
    if as_json:
        told = _told(added.told)
        seen = {"host": name, "address": address, "port": port, "authority": added.is_authority}
        print_json({**seen, "answers": added.silent is None, **told})
        return
    renews = "; it renews the fleet's certificates" if added.is_authority else ""
    print(f"host {name} at {address} port {port} is in the fleet (vmferry {added.agent_version}){renews}")
    if added.silent is not None:
        say(f"warning: its agent was not heard yet: {added.silent}")
    _warn_untold(added.told)


def _add_libvirt_host(name: str, uri: str, peer_uri: str | None, lock_manager: str | None, *, as_json: bool) -> None:
    from vmferry.cli import libvirt_hosts

    added = libvirt_hosts.add_host(name, uri, peer_uri, lock_manager=lock_manager)
    said = {} if lock_manager is None else {"lock_manager": lock_manager}
    if as_json:
        print_json({"host": name, "libvirt": added.uri, "peer_uri": added.peer_uri, **said})
        return
    print(f"libvirt host {name} is at {added.uri}; from other hosts at {added.peer_uri}")


def _read_code(path: str) -> str:
    """Return the enrolment code in a file.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        if path == "-":
            return sys.stdin.readline(_MOST_CODE).strip()
        with Path(path).open(encoding="ascii") as file:
            return file.readline(_MOST_CODE).strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise BadInput(
            f"enrolment code in {path} cannot be read: {why}",
            fix="name a file with the code that `vmferry agent` printed, or - for standard input",
        ) from error


@hosts.command("list")
def list_hosts(*, as_json: AsJson = False) -> None:
    """List the hosts of the fleet and what they offer, and those of libvirt; one that does not answer is named."""
    from vmferry.cli.libvirt_hosts import load_hosts

    libvirts = list(load_hosts().values())
    if libvirts and not (identity_directory() / "ca.pem").exists():  # an operator of libvirt hosts alone
        _print_libvirts(libvirts, as_json=as_json)
        return
    fleet = open_fleet()
    answers = fleet.ask_all("/v1/host")
    if as_json:
        silent = {host: error.what for host, error in answers.silent.items()}
        ours = {"hosts": [answers.answers[host] for host in sorted(answers.answers)], "silent": silent}
        print_json({**ours, **_libvirt_rows(libvirts)})
        return
    rows = [[host, fleet.endpoint(host).address, *_columns(answers.answers.get(host))] for host in fleet.hosts]
    print_table(["HOST", "ADDRESS", "AGENT", "QEMU", "ACCELERATION", "MEMORY FREE", "BRIDGES"], rows)
    _warn_ca()
    if answers.silent:
        say(f"warning: {answers.silent_text()}")
    if libvirts:
        print()
        _print_libvirts(libvirts, as_json=False)


def _libvirt_rows(hosts: list[LibvirtHost]) -> dict[str, Any]:
    """Return the hosts of libvirt as JSON has them; no key where there are none."""
    rows = [{"name": host.name, "uri": host.uri, "peer_uri": host.peer_uri} for host in hosts]
    return {"libvirt": rows} if rows else {}


def _print_libvirts(hosts: list[LibvirtHost], *, as_json: bool) -> None:
    if as_json:
        print_json({"hosts": [], "silent": {}, **_libvirt_rows(hosts)})
        return
    print_table(["LIBVIRT HOST", "FROM HERE", "FROM OTHER HOSTS"], [[h.name, h.uri, h.peer_uri] for h in hosts])


def _columns(facts: dict[str, Any] | None) -> list[str]:
    """Return what a host offers, as the columns of the list."""
    from vmferry.core.units import format_bytes

    if facts is None:
        return ["no answer", "-", "-", "-", "-"]
    return [
        facts["agent_version"],
        ".".join(str(part) for part in facts["qemu"]["version"]),
        facts["acceleration_tag"],
        format_bytes(facts["memory_free_bytes"]),
        ",".join(sorted(facts["bridges"])) or "-",
    ]


@hosts.command("show")
def show_host(host: HostArgument, *, as_json: AsJson = False) -> None:
    """Show one host: QEMU, acceleration and why, memory, bridges."""
    from vmferry.core.units import format_bytes

    facts = open_fleet().ask(host, "GET", "/v1/host")
    if as_json:
        print_json(facts)
        return
    qemu = facts["qemu"]
    rows = {
        "host": facts["name"],
        "agent": f"{facts['agent_version']}, protocol {facts['protocol']}",
        "QEMU": ".".join(str(part) for part in qemu["version"]),
        "acceleration": f"{facts['acceleration_tag']}: {facts['acceleration_reason']}",
        "memory": f"{format_bytes(facts['memory_free_bytes'])} of {format_bytes(facts['memory_total_bytes'])} free",
        "bridges": ", ".join(sorted(facts["bridges"])) or "none",
        "migration ports": f"{facts['migration_ports_free']} free",
        **_leases(facts.get("disk_leases")),
        "machine types": ", ".join(sorted(name for name in qemu["machines"] if name.startswith("pc-q35-"))),
        "CPU models": ", ".join(sorted(qemu["cpu_models"])),
    }
    for key, value in rows.items():
        print(textwrap.fill(value, 100, initial_indent=f"{key:17}", subsequent_indent=" " * 17))


def _leases(facts: dict[str, Any] | None) -> dict[str, str]:
    """Return how a host takes leases of disk images; nothing where it takes none."""
    if facts is None:
        return {}
    told = f"lockspace {facts['lockspace']}, host id {facts['host_id']}, below {', '.join(facts['image_dirs'])}"
    if facts["problem"] is not None:
        return {"disk leases": f"{told}; none can be had now: {facts['problem']['what']}; {facts['problem']['fix']}"}
    return {"disk leases": told if facts["watchdog"] else f"{told}; without a watchdog"}


@hosts.command("probe")
def probe_link(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The host that sends.")],
    destination: Annotated[str, typer.Argument(metavar="TO", help="The host that counts what arrives.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Measure the link between two hosts with up to 64 MiB, in about 0.3 s; refused while a guest moves there."""
    from vmferry.cli.render.link import link_text

    view = open_fleet().ask(source, "POST", "/v1/links/probe", {"destination": destination}, time_limit_s=65)
    if as_json:
        print_json(view)
    else:
        print(link_text(view))


@hosts.command("remove")
def remove_host(
    host: HostArgument,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Also when it has guests, renews certificates, or is needed by a move.")
    ] = False,
    ca_dir: CaDir = Path(DEFAULT_CA_DIR),
    as_json: AsJson = False,
) -> None:
    """Remove a host: its certificate gets nothing from that moment. One of libvirt's is only forgotten."""
    from vmferry.api import fleet_commands as commands
    from vmferry.cli import libvirt_hosts

    if host in libvirt_hosts.load_hosts():
        libvirt_hosts.remove_host(host, force=force)
        if as_json:
            print_json({"host": host})
        else:
            print(f"libvirt host {host} is forgotten; its domains are as they were")
        return
    removed = commands.remove_host(host, ca_dir=ca_dir, identity_dir=identity_directory(), force=force)
    if as_json:
        print_json({"host": host, **_told(removed.told)})
        return
    print(f"host {host} is no longer in the fleet")
    _warn_untold(removed.told)


@operators.command("add")
def add_operator(
    name: OperatorArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where their identity is put: a new directory.")],
    *,
    role: Annotated[str, typer.Option(help="read (look) or operate (look and change).")] = "read",
    ca_dir: CaDir = Path(DEFAULT_CA_DIR),
    as_json: AsJson = False,
) -> None:
    """Add an operator; bring the directory to them as their ~/.config/vmferry, over a safe way."""
    from vmferry.api import fleet_commands as commands
    from vmferry.pki.membership import Role

    if role not in set(Role):
        raise BadInput(f"--role {role!r} is no role", fix=f"write one of {', '.join(Role)}")
    added = commands.add_operator(
        name, Role(role), ca_dir=ca_dir, identity_dir=identity_directory(), out_dir=out.absolute()
    )
    if as_json:
        print_json({"operator": name, "role": role, "identity_dir": str(added.identity_dir), **_told(added.told)})
        return
    print(f"operator {name} may {role}; their identity is in {added.identity_dir}: keep it private")
    _warn_untold(added.told)


@operators.command("list")
def list_operators(*, as_json: AsJson = False) -> None:
    """List the operators, as the newest fleet document that is known here has them."""
    from vmferry.api import fleet_commands as commands

    members = commands.list_hosts(identity_directory()).operators
    if as_json:
        print_json({"operators": [{"name": member.name, "role": member.role} for member in members]})
    else:
        print_table(["OPERATOR", "ROLE"], [[member.name, member.role] for member in members])


@operators.command("remove")
def remove_operator(name: OperatorArgument, *, ca_dir: CaDir = Path(DEFAULT_CA_DIR), as_json: AsJson = False) -> None:
    """Remove an operator: their certificate gets nothing from that moment."""
    from vmferry.api import fleet_commands as commands

    removed = commands.remove_operator(name, ca_dir=ca_dir, identity_dir=identity_directory())
    if as_json:
        print_json({"operator": name, **_told(removed.told)})
        return
    print(f"operator {name} is no longer in the fleet")
    _warn_untold(removed.told)


def run_agent(
    *,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Configuration. Default: /etc/vmferry/agent.toml, if there is one."),
    ] = None,
    no_supervisor: Annotated[
        bool, typer.Option("--no-supervisor", help="Do not restart it when it dies: systemd does that.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log more.")] = False,
) -> None:
    """Run the agent of this host; its guests live on when it ends."""
    from vmferry.agent.main import main

    raise typer.Exit(main(config, supervised=not no_supervisor, debug=debug))


def _told(told: Told) -> dict[str, Any]:
    return {"version": told.version, "told": list(told.hosts), "untold": dict(told.untold)}


def _warn_ca() -> None:
    """Tell in time that the CA's certificate ends."""
    import datetime as dt

    from vmferry.pki.certificates import ends_soon
    from vmferry.pki.identity import IdentityDirectory

    if (warning := ends_soon(IdentityDirectory(identity_directory()).ca(), dt.datetime.now(dt.UTC))) is not None:
        say(f"warning: {warning}")


def _warn_untold(told: Told) -> None:
    """Name the hosts that do not know the new fleet document yet."""
    for host, why in told.untold:
        say(f"warning: {host} could not be told and fetches it by itself once it is back: {why}")
