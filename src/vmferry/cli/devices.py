"""`vmferry device ...`: the PCI devices of a libvirt host, and giving one to a running guest and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vmferry.cli.libvirt_hosts import load_hosts
from vmferry.cli.options import AsJson, HostArgument, group
from vmferry.cli.output import print_json, print_table, waiting_for
from vmferry.core.errors import BadInput, Blocked, NotFound
from vmferry.core.pci import PciAddress

if TYPE_CHECKING:
    from vmferry.libvirt.devices import HostDevices, PciDevice

T = TypeVar("T")

app = group("PCI devices of libvirt hosts: list them, take them from the host, give them to running guests.")

AddressArgument = Annotated[
    str,
    typer.Argument(
        metavar="ADDRESS", help="The device: 0000:03:10.0, its path in sysfs, pci_0000_03_10_0, or the XML's <address>."
    ),
]
GuestOfHost = Annotated[str, typer.Argument(metavar="GUEST", help="A domain that runs on that host.")]
DefineOption = Annotated[
    bool, typer.Option("--define", help="Change the domain's definition as well, for its next start.")
]


@app.command("list")
def list_devices(host: HostArgument, *, as_json: AsJson = False) -> None:
    """List the PCI devices of a host: driver, IOMMU group, whose virtual function it is, and which guest has it."""
    found = _ask(host, _devices)
    if as_json:
        print_json({"host": host, "devices": [_json(device) for device in found]})
        return
    print_table(["ADDRESS", "GROUP", "DRIVER", "NET", "FUNCTION OF", "GUEST", "DEVICE"], list(map(_row, found)))


@app.command("show")
def show_device(host: HostArgument, address: AddressArgument, *, as_json: AsJson = False) -> None:
    """Show one device with every form of its address, and what keeps it from being given to a guest."""
    from vmferry.libvirt.devices import check_detach

    where = PciAddress.parse(address)
    device = _ask(host, lambda devices: devices.device(where))
    blockers = list(check_detach(host, device))
    if as_json:
        rows = [{"code": each.code, "what": each.what, "fix": each.fix} for each in blockers]
        print_json({"host": host, **_json(device), "blockers": rows})
        return
    for name, text in (*device.address.forms.items(), *_facts(device)):
        print(f"{name:<10} {text}")
    for blocker in blockers:
        print(f"{'blocked':<10} {blocker.code}: {blocker.what}; {blocker.fix}")


def _facts(device: PciDevice) -> Iterator[tuple[str, str]]:
    """Yield what is known of a device, for people."""
    shared = ", ".join(str(other) for other in device.group if other != device.address)
    group = "none" if device.iommu_group is None else str(device.iommu_group)
    yield "device", f"{device.vendor} {device.product}".strip()
    yield "driver", device.driver or "none"
    yield "group", f"{group}, with {shared}" if shared else group
    if device.physical is not None:
        yield "physical", f"{device.physical}, whose virtual function it is"
    if device.functions:
        yield "functions", ", ".join(map(str, device.functions))
    yield "guest", device.guest or "none"


@app.command("detach")
def detach_device(host: HostArgument, address: AddressArgument, *, as_json: AsJson = False) -> None:
    """Take a device from its host's driver, so that guests can have it (VFIO). The host can no longer use it."""
    from vmferry.libvirt.devices import check_detach

    where = PciAddress.parse(address)

    async def detach(devices: HostDevices) -> PciDevice:
        if blockers := tuple(check_detach(host, await devices.device(where))):
            raise Blocked(f"{where} cannot be taken from {host}", blockers=blockers)
        await devices.detach(where)
        return await devices.device(where)

    _tell(_ask(host, detach), host, "is detached from the host", as_json=as_json)


@app.command("reattach")
def reattach_device(host: HostArgument, address: AddressArgument, *, as_json: AsJson = False) -> None:
    """Give a device back to its host's driver."""
    where = PciAddress.parse(address)

    async def reattach(devices: HostDevices) -> PciDevice:
        device = await devices.device(where)
        if device.guest is not None:
            fix = f"vmferry device unplug {host} {device.guest} {where}"
            raise BadInput(f"{where} of {host} belongs to domain {device.guest}, which runs", fix=fix)
        await devices.reattach(where)
        return await devices.device(where)

    _tell(_ask(host, reattach), host, "is given back to the host", as_json=as_json)


@app.command("plug")
def plug_device(
    host: HostArgument,
    guest: GuestOfHost,
    address: AddressArgument,
    *,
    mac: Annotated[str | None, typer.Option(help="It is a network card's function, and gets this MAC.")] = None,
    teaming: Annotated[
        str | None,
        typer.Option(metavar="ALIAS", help="It is the other half of that virtio card (ua-...), so the guest can move."),
    ] = None,
    define: DefineOption = False,
    as_json: AsJson = False,
) -> None:
    """Give a running guest a device of its host. libvirt takes it from the host's driver by itself."""
    from vmferry.libvirt.devices import Pairing, plug

    where = PciAddress.parse(address)
    if teaming is not None and mac is None:
        raise BadInput("--teaming: both halves of a pair have one MAC", fix="give the virtio card's with --mac")
    pairing = None if mac is None else Pairing(mac, teaming)

    async def give(devices: HostDevices) -> PciDevice:
        await plug(devices, guest, where, pairing, define=define)
        return await devices.device(where)

    _tell(_ask(host, give), host, f"belongs to {guest}", as_json=as_json)


@app.command("unplug")
def unplug_device(
    host: HostArgument,
    guest: GuestOfHost,
    address: AddressArgument,
    *,
    define: DefineOption = False,
    within: Annotated[str, typer.Option(help="How long the guest may take to let go.")] = "30s",
    as_json: AsJson = False,
) -> None:
    """Take a device from a running guest, and wait until it lets go. The host's driver gets it back."""
    from vmferry.cli.quantities import parse_duration
    from vmferry.libvirt.devices import unplug

    where = PciAddress.parse(address)
    within_s = parse_duration(within, "--within", most_ms=3_600_000) / 1000

    async def take(devices: HostDevices) -> tuple[float, PciDevice]:
        took_s = await unplug(devices, guest, where, define=define, within_s=within_s)
        return took_s, await devices.device(where)

    took_s, device = _ask(host, take)
    _tell(device, host, f"was let go by {guest} in {took_s:.1f} s", as_json=as_json)


async def _devices(devices: HostDevices) -> list[PciDevice]:
    return list((await devices.devices()).values())


def _ask(name: str, question: Callable[[HostDevices], Awaitable[T]]) -> T:
    """Return what is asked of a host's devices; its connection is closed afterwards.

    Raises:
        NotFound: it is no libvirt host of the list.
        VmferryError: its daemon does not answer, or what was asked failed.
    """
    import asyncio

    hosts = load_hosts()
    if name not in hosts:
        raise NotFound(
            f"{name} is no libvirt host", fix=f"`vmferry host add {name} --libvirt URI`; `vmferry host list` shows them"
        )

    async def ask() -> T:
        from vmferry.libvirt.adapter import LibvirtConnection
        from vmferry.libvirt.devices import HostDevices

        connection = await LibvirtConnection.connect(hosts[name].uri)
        try:
            return await question(HostDevices(name, connection))
        finally:
            await connection.close()

    with waiting_for(f"libvirt on {name}"):
        return asyncio.run(ask())


def _tell(device: PciDevice, host: str, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"host": host, **_json(device)})
    else:
        print(f"{device.address} of {host} {what}; driver {device.driver or 'none'}")


def _row(device: PciDevice) -> list[str]:
    return [
        str(device.address),
        "-" if device.iommu_group is None else str(device.iommu_group),
        device.driver or "-",
        device.net or "-",
        "-" if device.physical is None else str(device.physical),
        device.guest or "-",
        f"{device.vendor} {device.product}".strip(),
    ]


def _json(device: PciDevice) -> dict[str, Any]:
    return {
        "address": device.address.forms,
        "vendor": device.vendor,
        "product": device.product,
        "driver": device.driver,
        "net": device.net,
        "iommu_group": device.iommu_group,
        "group": [str(address) for address in device.group],
        "physical": None if device.physical is None else str(device.physical),
        "functions": [str(address) for address in device.functions],
        "is_bridge": device.is_bridge,
        "guest": device.guest,
    }
