"""`vmferry import` and `vmferry export`: libvirt's domains as guest files, and guests as libvirt's domains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from vmferry.cli.fleet import open_fleet
from vmferry.cli.options import AsJson
from vmferry.cli.output import print_json, say, waiting_for
from vmferry.core.errors import BadInput, Broken
from vmferry.core.guest import GuestSpec


def import_domain(
    domain: Annotated[
        str,
        typer.Argument(metavar="DOMAIN|FILE.xml", help="A domain of libvirt, or what `virsh dumpxml` wrote of one."),
    ],
    *,
    libvirt: Annotated[
        str | None, typer.Option(metavar="URI", help="Where the domain is, e.g. qemu+ssh://host-a/system.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The guest's name; else the domain's.")] = None,
    accept: Annotated[
        str, typer.Option(metavar="WHAT,...", help="What the guest may lose, by the names that the refusal gives.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Print a libvirt domain as a guest file, and tell what of it the guest will not have; docs/libvirt.md."""
    from vmferry.guestfile import dump_guest_file, parse_guest_file
    from vmferry.libvirt import read_domain

    accepted = frozenset(word.strip() for word in accept.split(",") if word.strip())
    ask = libvirt is not None or not _is_file(domain, ".xml")
    xml = _ask_libvirt(libvirt, domain) if ask else _read_file(domain)
    imported = read_domain(xml, source=domain, name=name, accept=accepted)
    text = dump_guest_file(imported.spec)
    parse_guest_file(text, f"made from {domain}")  # what two devices say together is the guest file's to judge
    if as_json:
        print_json({"guest_file": text, "left_out": [finding.row() for finding in imported.told]})
        return
    for finding in imported.told:
        say(f"left out: {finding.text(domain)}")
    print(text, end="")


def export_guest(
    guest: Annotated[str, typer.Argument(metavar="GUEST|FILE.toml", help="A guest of the fleet, or a guest file.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Print a guest as a libvirt domain's XML, and tell what of it the domain will not have; docs/libvirt.md."""
    from vmferry.guestfile import load_guest_file
    from vmferry.libvirt import write_domain

    spec = load_guest_file(guest) if _is_file(guest, ".toml") else _frozen_spec(guest)
    exported = write_domain(spec)
    if as_json:
        print_json({"xml": exported.xml, "left_out": list(exported.told)})
        return
    for sentence in exported.told:
        say(f"left out: {sentence}")
    print(exported.xml, end="")


def _is_file(text: str, suffix: str) -> bool:
    """Tell whether a file is meant: no guest and no domain is named so."""
    return "/" in text or text.endswith(suffix)


def _ask_libvirt(uri: str | None, domain: str) -> str:
    """Return the XML of a domain as it runs, without passwords; nothing more than reading is asked for."""
    import asyncio

    from vmferry.libvirt.adapter import LibvirtConnection
    from vmferry.libvirt.uri import LOCAL

    async def ask() -> str:
        connection = await LibvirtConnection.connect(uri or LOCAL, read_only=True)
        try:
            return await connection.domain_xml(domain)
        finally:
            await connection.close()

    with waiting_for(f"libvirt at {uri or LOCAL}"):
        return asyncio.run(ask())


def _read_file(path: str) -> bytes:
    from vmferry.libvirt.tree import MAX_BYTES

    try:
        with Path(path).open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read: {error.strerror}", fix="name what `virsh dumpxml DOMAIN` writes"
        ) from error


def _frozen_spec(guest: str) -> GuestSpec:
    """Return a guest of the fleet as it was frozen: with its UUID, MAC addresses and acceleration.

    Raises:
        NotFound: no host has it.
        Broken: its agent says something else of it than this version understands.
    """
    fleet = open_fleet()
    host = fleet.find_guest(guest)
    view = fleet.ask(host, "GET", f"/v1/guests/{guest}")
    try:
        return _spec_of(view)
    except (KeyError, ValueError) as error:
        raise Broken(
            f"what {host} says of guest {guest} is not understood: {error}",
            fix="use the vmferry of the agent's version",
        ) from error


def _spec_of(view: dict[str, Any]) -> GuestSpec:
    from pydantic import TypeAdapter

    given = {"uuid": view["uuid"], "acceleration": view["acceleration"]}
    spec = TypeAdapter(GuestSpec).validate_python({**view["spec"], **given})
    pairs = zip(spec.nics, view["macs"], strict=True)
    return dataclasses.replace(spec, nics=tuple(dataclasses.replace(nic, mac=mac) for nic, mac in pairs))
