"""`vmferry pci ...`, `vmferry pf ...` and `vmferry vf ...`: the PCI devices of hosts with an agent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from vmferry.cli.fleet import open_fleet
from vmferry.cli.options import AsJson, HostArgument, group
from vmferry.cli.output import print_json, print_table
from vmferry.core.errors import BadInput, NotFound
from vmferry.core.functions import MOST_VLAN, FunctionSettings
from vmferry.core.pci import PciAddress

pci = group("PCI devices of hosts with an agent: which there are, and what keeps one from being given to a guest.")
physical = group("Network cards that make virtual functions (SR-IOV).")
virtual = group("Virtual functions of network cards (SR-IOV): make them, release them.")

AddressArgument = Annotated[
    str,
    typer.Argument(
        metavar="ADDRESS", help="The device: 0000:03:10.0, its path in sysfs, pci_0000_03_10_0, or the XML's <address>."
    ),
]
CardArgument = Annotated[str, typer.Argument(metavar="PF", help="The card's address, in any form.")]
Device = dict[str, Any]


@pci.command("list")
def list_devices(
    host: HostArgument,
    *,
    groups: Annotated[bool, typer.Option("--groups", help="Draw which devices share an IOMMU group.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the PCI devices of a host.

    FOR GUESTS: whether a guest can have it as it is now; `show` tells why not.
    """
    found = _devices(host)
    if as_json:
        print_json({"host": host, "devices": found})
    elif groups:
        print("\n".join(_drawing(found)))
    else:
        print_table(["ADDRESS", "GROUP", "DRIVER", "FOR GUESTS", "USED BY", "DEVICE"], list(map(_row, found)))


@pci.command("show")
def show_device(host: HostArgument, address: AddressArgument, *, as_json: AsJson = False) -> None:
    """Show one device with every form of its address, and everything that keeps it from being given to a guest."""
    device = _find(_devices(host), host, address)
    if as_json:
        print_json({"host": host, **device})
    else:
        _print_device(device)


@physical.command("list")
def list_cards(host: HostArgument, *, as_json: AsJson = False) -> None:
    """List the devices of a host that make virtual functions."""
    found = [one for one in _devices(host) if one["functions_most"]]
    if as_json:
        print_json({"host": host, "cards": found})
        return
    rows = [
        [
            one["address"]["lspci"],
            ",".join(one["nets"]) or "-",
            f"{len(one['functions'])} of {one['functions_most']}",
            one["driver"] or "-",
            _title(one),
        ]
        for one in found
    ]
    print_table(["PF", "NET", "FUNCTIONS", "DRIVER", "DEVICE"], rows)


@physical.command("show")
def show_card(host: HostArgument, card: CardArgument, *, as_json: AsJson = False) -> None:
    """Show one card and its virtual functions: group, driver, and which program has one."""
    found = _devices(host)
    device = _find(found, host, card)
    if not device["functions_most"]:
        raise BadInput(
            f"{device['address']['lspci']} of {host} makes no virtual functions", fix="see `vmferry pf list`"
        )
    functions = [one for one in found if one["address"]["lspci"] in device["functions"]]
    if as_json:
        print_json({"host": host, **device, "functions": functions})
        return
    _print_device(device)
    if functions:
        print()
        print_table(
            ["VF", "GROUP", "DRIVER", "MAC", "VLAN", "SETTINGS", "USED BY"], list(map(_function_row, functions))
        )


@virtual.command("create")
def create(
    host: HostArgument,
    card: CardArgument,
    count: Annotated[int, typer.Argument(metavar="N", min=1, help="How many there shall be.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Have a card make N virtual functions, which no driver of the host takes. Refused while it has one in use."""
    _set_functions(host, card, count, as_json=as_json)


@virtual.command("release")
def release(host: HostArgument, card: CardArgument, *, as_json: AsJson = False) -> None:
    """End all virtual functions of a card. Refused while one of them is used."""
    _set_functions(host, card, 0, as_json=as_json)


@virtual.command("set")
def set_one(
    host: HostArgument,
    function: Annotated[str, typer.Argument(metavar="VF", help="The virtual function's address, in any form.")],
    *,
    mac: Annotated[str | None, typer.Option(help="The only MAC that it may use; 00:00:00:00:00:00 for any.")] = None,
    vlan: Annotated[int | None, typer.Option(min=0, max=MOST_VLAN, help="The card's own tag; 0 for none.")] = None,
    trust: Annotated[
        bool | None, typer.Option("--trust/--no-trust", help="It may change its MAC and listen to everything.")
    ] = None,
    spoofchk: Annotated[
        bool | None, typer.Option("--spoofchk/--no-spoofchk", help="What it sends under other addresses is dropped.")
    ] = None,
    rate: Annotated[
        int | None, typer.Option(min=0, metavar="MBIT", help="Mbit/s that it may send; 0 for no limit.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell a card of one of its virtual functions: all that is given, or nothing. Set a MAC before a guest has it."""
    wanted = FunctionSettings(mac, vlan, trust, spoofchk, rate)
    body = {"function": str(PciAddress.parse(function)), **wanted.given()}
    device = open_fleet().ask(host, "POST", "/v1/pci/function", body, what="the card")
    if as_json:
        print_json({"host": host, **device})
        return
    where, settings = device["address"]["lspci"], device["settings"]
    print(f"{where} of {host}: MAC {settings['mac']}, VLAN {settings['vlan'] or 'none'}, {_words(settings)}")


def _function_row(one: Device) -> list[str]:
    settings = one["settings"] or {}
    return [
        one["address"]["lspci"],
        _number(one["iommu_group"]),
        one["driver"] or "-",
        settings.get("mac") or "-",
        _number(settings.get("vlan") or None),
        _words(settings) or "-",
        one["user"] or "-",
    ]


def _words(settings: dict[str, Any]) -> str:
    """Return flags and rate in words; what is not known is left out."""
    flags = {True: "", False: "not "}
    words = [
        f"{flags[settings[name]]}{word}"
        for name, word in (("trust", "trusted"), ("spoofchk", "checked"))
        if settings.get(name) is not None
    ]
    if settings.get("max_rate_mbit"):
        words.append(f"at most {settings['max_rate_mbit']} Mbit/s")
    return ", ".join(words)


def _set_functions(host: str, card: str, count: int, *, as_json: bool) -> None:
    body = {"card": str(PciAddress.parse(card)), "count": count}
    what = f"{count} virtual functions" if count else "the end of the virtual functions"
    device = open_fleet().ask(host, "POST", "/v1/pci/functions", body, time_limit_s=120.0, what=what)
    if as_json:
        print_json({"host": host, **device})
        return
    functions = ", ".join(device["functions"]) or "none"
    print(f"{device['address']['lspci']} of {host} has virtual functions: {functions}")


def _devices(host: str) -> list[Device]:
    found: list[Device] = open_fleet().ask(host, "GET", "/v1/pci", what="its devices")["devices"]
    return found


def _find(found: Iterable[Device], host: str, address: str) -> Device:
    where = str(PciAddress.parse(address))
    device = next((one for one in found if one["address"]["lspci"] == where), None)
    if device is None:
        raise NotFound(f"Host {host} has no PCI device {where}", fix=f"see `vmferry pci list {host}`")
    return device


def _row(device: Device) -> list[str]:
    return [
        device["address"]["lspci"],
        _number(device["iommu_group"]),
        device["driver"] or "-",
        "-" if device["is_bridge"] else "no" if device["blockers"] else "yes",
        device["user"] or ",".join([*device["nets"], *device["disks"]]) or "-",
        _title(device),
    ]


def _drawing(found: Iterable[Device]) -> Iterator[str]:
    """Yield the IOMMU groups as a tree, and then what is in none."""
    groups: dict[int | None, list[Device]] = {}
    for device in found:
        groups.setdefault(device["iommu_group"], []).append(device)
    for number in sorted(groups, key=lambda one: (one is None, one or 0)):
        yield "in no group" if number is None else f"group {number}"
        members = groups[number]
        for device in members:
            branch = "└─" if device is members[-1] else "├─"
            yield f"{branch} {device['address']['lspci']}  {_title(device)}  [{device['driver'] or 'no driver'}]"


def _print_device(device: Device) -> None:
    for name, text in (*device["address"].items(), *_facts(device)):
        print(f"{name:<10} {text}")
    for blocker in device["blockers"]:
        print(f"{'blocked':<10} {blocker['code']}: {blocker['what']}; {blocker['fix']}")


def _facts(device: Device) -> Iterator[tuple[str, str]]:
    yield "device", _title(device)
    yield "driver", device["driver"] or "none"
    shared = ", ".join(device["group"])
    yield "group", _number(device["iommu_group"], "none") + (f", with {shared}" if shared else "")
    if device["numa_node"] is not None:
        yield "numa", str(device["numa_node"])
    for name in ("nets", "disks"):
        if device[name]:
            yield name, ", ".join(device[name])
    if device["physical"] is not None:
        yield "physical", f"{device['physical']}, whose virtual function it is"
    if device["functions_most"]:
        there = ", ".join(device["functions"]) or "none"
        yield "functions", f"{there}, of {device['functions_most']} at the most"
    yield "used by", device["user"] or "no program through VFIO"


def _title(device: Device) -> str:
    name = f": {device['name']}" if device["name"] else ""
    return f"{device['kind']}{name} [{device['ids']}]"


def _number(value: int | None, nothing: str = "-") -> str:
    return nothing if value is None else str(value)
