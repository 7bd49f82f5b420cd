"""Devices of its host that a guest is to have wherever it runs, and which of a host's could be them. Pure.

They are not built in: they are plugged into the guest when it runs, and taken out before it moves. What is wanted
follows from the guest's definition alone, so that both hosts of a move mean the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import Blocker
from vmferry.core.functions import NOTHING_SAID, FunctionSettings
from vmferry.core.guest import FrozenGuest
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import Inventory, PciDevice

#: Each has a root port of its own, the first of the guest's, in the order of its cards (qemu/freeze.py).
PORTS = ("rp0", "rp1", "rp2", "rp3")


@dataclass(frozen=True, slots=True)
class WantedDevice:
    """A device that a guest is to have: a virtual function of one of a network's cards, or a device as such."""

    id: str  #: the guest's card that it is, or the guest's name for it
    port: str  #: the guest's root port that it is plugged into
    may_detach: bool  #: it may be taken away, although nothing stands in for it
    network: str | None = None  #: of a function: one of the host's physical networks
    mac: str | None = None  #: of a function
    vlan: int = 0  #: of a function
    bridge: str | None = None  #: where a function's standby is plugged in, which carries the traffic meanwhile
    device: str | None = None  #: of another device: vendor:device, or its address

    @property
    def has_standby(self) -> bool:
        """Return whether a virtio card carries the traffic while it is not there."""
        return self.bridge is not None

    @property
    def settings(self) -> FunctionSettings:
        """What a card is told of its function before the guest has it; nothing of other devices."""
        return NOTHING_SAID if self.network is None else FunctionSettings(mac=self.mac, vlan=self.vlan)

    def is_one(self, device: PciDevice) -> bool:
        """Return whether a device, no function of a network, is what is wanted."""
        return self.device in {device.ids, str(device.address)}

    def __str__(self) -> str:
        """Return how people are told of it."""
        if self.network is not None:
            return f"{self.id}'s virtual function of {self.network}"
        return f"{self.id} ({self.device})"


def wanted_devices(guest: FrozenGuest) -> tuple[WantedDevice, ...]:
    """Return what a guest is to have of its host: the functions in the order of its cards, then the devices."""
    ports = iter(PORTS)
    cards = [
        (index, nic, mac)
        for index, (nic, mac) in enumerate(zip(guest.spec.nics, guest.macs, strict=False))
        if nic.is_function and nic.physical_network is not None
    ]
    functions = [
        WantedDevice(f"nic{index}", port, nic.may_detach, nic.physical_network, mac, nic.vlan, nic.bridge)
        for (index, nic, mac), port in zip(cards, ports, strict=False)
    ]
    devices = [
        WantedDevice(f"host{index}", port, one.may_detach, device=one.device)
        for (index, one), port in zip(enumerate(guest.spec.host_devices), ports, strict=False)
    ]
    return (*functions, *devices)


@dataclass(frozen=True, slots=True)
class Pools:
    """What a host has to give: its devices, which cards belong to which network, and what is kept for whom.

    Args:
        host: its name.
        found: its devices.
        networks: the cards of each physical network.
        held: all claims of this host.
    """

    host: str
    found: Inventory
    networks: Mapping[str, Sequence[PciAddress]]
    held: Sequence[DeviceClaim] = field(default=())


def choose_devices(
    wanted: Sequence[WantedDevice], pools: Pools
) -> tuple[tuple[tuple[WantedDevice, PciDevice], ...], tuple[Blocker, ...]]:
    """Return a free device for each of what is wanted, and why some can have none.

    Of functions, the card with the most free ones gives the next; of one card, and of devices, the lowest.
    """
    taken = {claim.address for claim in pools.held}
    groups = {claim.iommu_group for claim in pools.held}
    chosen: list[tuple[WantedDevice, PciDevice]] = []
    blockers: list[Blocker] = []
    for one in wanted:
        found = _function(one, pools, taken, groups) if one.network is not None else _device(one, pools, taken, groups)
        if isinstance(found, Blocker):
            blockers.append(found)
            continue
        chosen.append((one, found))
        taken.add(found.address)
        groups |= set() if found.iommu_group is None else {found.iommu_group}
    return tuple(chosen), tuple(blockers)


def _function(
    one: WantedDevice, pools: Pools, taken: Collection[PciAddress], groups: Collection[int]
) -> PciDevice | Blocker:
    cards = pools.networks.get(one.network or "")
    if cards is None:
        return _no_network(one, pools)
    free = [list(_free(card, pools, taken, groups)) for card in cards]
    best = max(free, key=len, default=[])
    return best[0] if best else _none_free(one, cards, pools, taken)


def _device(
    one: WantedDevice, pools: Pools, taken: Collection[PciAddress], groups: Collection[int]
) -> PciDevice | Blocker:
    told: list[str] = []
    for device in pools.found.devices.values():
        if not one.is_one(device):
            continue
        if device.address in taken or device.iommu_group in groups:
            told.append(f"{device.address} is kept for a guest")
        elif blockers := pools.found.why_not(device, frozenset({device.address})):
            told.append("; ".join(blocker.what for blocker in blockers))
        else:
            return device
    return Blocker(
        "device.none-free",
        f"{one} cannot be had on {pools.host}: {'; '.join(told) or 'it has none'}",
        f"see `vmferry pci list {pools.host}`: free one, or choose another host",
    )


def _free(
    card: PciAddress, pools: Pools, taken: Collection[PciAddress], groups: Collection[int]
) -> Iterator[PciDevice]:
    """Yield the functions of a card that a guest could have now."""
    device = pools.found.devices.get(card)
    if device is None or device.sriov is None or not any(net.is_up for net in device.nets):
        return
    for address in device.sriov.functions:
        function = pools.found.devices.get(address)
        if function is None or address in taken or function.iommu_group in groups:
            continue
        if not function.nets and not pools.found.why_not(function, frozenset({address})):
            yield function


def _no_network(one: WantedDevice, pools: Pools) -> Blocker:
    there = ", ".join(sorted(pools.networks)) or "none"
    return Blocker(
        "device.no-network",
        f"{one} cannot be had on {pools.host}: it has no physical network of that name; it has {there}",
        f"name the cards that are on it in agent.toml of {pools.host}: [physical_networks], or choose another host",
    )


def _none_free(one: WantedDevice, cards: Sequence[PciAddress], pools: Pools, taken: Collection[PciAddress]) -> Blocker:
    told = "; ".join(_of_card(card, pools, taken) for card in cards) or "no card is on it"
    return Blocker(
        "device.no-function",
        f"{one} cannot be had on {pools.host}: {told}",
        f"make one with `vmferry vf create {pools.host} PF N`, take one from another guest, or choose another host",
    )


def _of_card(card: PciAddress, pools: Pools, taken: Collection[PciAddress]) -> str:
    device = pools.found.devices.get(card)
    if device is None:
        return f"there is no card {card}"
    if device.sriov is None:
        return f"{card} makes no virtual functions"
    if not any(net.is_up for net in device.nets):
        return f"the interface of card {card} is down, and its functions have no link without it"
    count = len(device.sriov.functions)
    used = sum(address in taken for address in device.sriov.functions)
    return f"card {card} has {count or 'no'} functions, {used or 'none'} of them kept for guests, and none is free"


def missing(
    wanted: Sequence[WantedDevice], claims: Sequence[DeviceClaim], plugged: Collection[str]
) -> list[WantedDevice]:
    """Return what a guest is to have and does not have.

    Args:
        wanted: what it is to have.
        claims: all of its own.
        plugged: ids of the devices that its process has.
    """
    has = {claim.wanted for claim in claims if claim.id in plugged}
    return [one for one in wanted if one.id not in has]
