"""What requests and replies about a host's PCI devices look like."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vmferry.api.bases import Reply, Request
from vmferry.core.errors import Blocker
from vmferry.core.functions import FunctionSettings


class PciView(Reply):
    """One PCI device of a host."""

    address: dict[str, str]  #: in every form that programs write it
    ids: str  #: vendor and device, as lspci -n writes them
    kind: str
    name: str  #: maker and model; empty where the host has no list of them
    driver: str | None
    iommu_group: int | None
    group: tuple[str, ...]  #: what shares its IOMMU group and must go with it
    numa_node: int | None
    is_bridge: bool
    nets: tuple[str, ...]  #: the host's interfaces on it
    disks: tuple[str, ...]  #: the host's disks behind it
    user: str | None  #: the program that has it through VFIO
    physical: str | None  #: it is a virtual function of this one
    functions_most: int  #: virtual functions that it can make; 0: it makes none
    functions: tuple[str, ...]  #: those there are
    settings: FunctionSettings | None  #: what its card was told of it; None: it is no virtual function, or nobody knows
    blockers: tuple[Blocker, ...]  #: why it cannot be given to a guest as it is now


class PciList(Reply):
    """The PCI devices of a host, in the order of their addresses."""

    devices: tuple[PciView, ...]


class SetFunctions(Request):
    """Have a card make so many virtual functions; those it has end."""

    card: Annotated[str, Field(max_length=300)]  #: its address, in any form
    count: Annotated[int, Field(ge=0, le=65535)]


class SetFunction(Request):
    """Tell a card of one of its virtual functions; what is not said stays as it is."""

    function: Annotated[str, Field(max_length=300)]  #: its address, in any form
    mac: Annotated[str, Field(max_length=50)] | None = None
    vlan: int | None = None
    trust: bool | None = None
    spoofchk: bool | None = None
    max_rate_mbit: int | None = None


class AttachDevices(Request):
    """Give a running guest devices of its host, all or none."""

    devices: Annotated[tuple[Annotated[str, Field(max_length=300)], ...], Field(min_length=1, max_length=8)]


class DetachDevice(Request):
    """Take a device from a running guest."""

    device: Annotated[str, Field(max_length=300)]  #: its address, in any form
    time_limit_s: Annotated[float, Field(ge=0, le=600)] = 30.0  #: which the guest may take
