"""Which of a host's devices is whose: one device to one guest, one IOMMU group to one guest. Pure.

A claim is journalled before its device is touched, and forgotten after it was given back; what a guest has no more is
given back by its group, since all of a group are one guest's or nobody's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from vmferry.core.errors import BadInput, Blocked, Blocker, Broken, NotFound, Refused
from vmferry.core.functions import NOTHING_SAID, FunctionSettings
from vmferry.core.guest import FrozenGuest
from vmferry.core.ids import GuestName
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import Inventory, PciDevice

#: Into which a device can be plugged while the guest runs.
_PORT = "pcie-root-port"


@dataclass(frozen=True, slots=True)
class DeviceClaim:
    """A device of this host that is kept for a guest of this host."""

    address: PciAddress
    guest: GuestName
    iommu_group: int
    port: str  #: the guest's root port that it is plugged into
    was_kept: bool = False  #: VFIO had it before, and has it again when it is given back
    wanted: str | None = None  #: which of its own the guest has by its definition; None: it was given it by hand
    before: FunctionSettings = NOTHING_SAID  #: what its card was told of it before, and is told again in the end

    @property
    def id(self) -> str:
        """What the guest's process calls the device."""
        return self.address.nodedev


def find_devices(found: Inventory, addresses: Collection[PciAddress]) -> tuple[PciDevice, ...]:
    """Return the devices that a guest may have together; nothing that keeps one of them from it is left out.

    Raises:
        NotFound: there is no such device.
        BadInput: one is named twice, or none.
        Blocked: why each of them cannot be given to a guest.
    """
    if not addresses or len(set(addresses)) != len(addresses):
        raise BadInput("each device is named once, and at least one", fix="see `vmferry pci list`")
    for address in addresses:
        if address not in found.devices:
            raise NotFound(f"There is no PCI device {address} on this host", fix="see `vmferry pci list`")
    devices = tuple(found.devices[address] for address in addresses)
    together = frozenset(addresses)
    blockers = [blocker for device in devices for blocker in found.why_not(device, together)]
    if blockers:
        raise Blocked(f"{', '.join(map(str, addresses))} cannot be given to a guest", blockers=tuple(blockers))
    return devices


def plan_claims(
    guest: FrozenGuest, devices: Sequence[PciDevice], held: Sequence[DeviceClaim], reserved: Collection[str] = ()
) -> tuple[DeviceClaim, ...]:
    """Return claims of devices for a guest, each with a port that is free.

    Args:
        guest: whose they are to be.
        devices: what `find_devices` has found.
        held: all claims of this host.
        reserved: ports for what the guest is to have by its definition.

    Raises:
        Refused: the guest has no free port for each of them.
    """
    taken = {claim.port for claim in held if claim.guest == guest.spec.name} | {one.bus for one in guest.devices}
    taken |= set(reserved)
    ports = [one.id for one in guest.devices if one.driver == _PORT]
    free = [port for port in ports if port not in taken]
    if len(free) < len(devices):
        there = f"{len(free)} of its {len(ports)} ports free" if ports else "no port for devices that are plugged in"
        raise Refused(
            f"Guest {guest.spec.name} has {there}, and was to get {len(devices)} device(s)",
            fix="detach one of those that it has" if ports else "run it with a machine type q35",
        )
    return tuple(
        DeviceClaim(device.address, guest.spec.name, group, port, device.is_with_vfio)
        for device, port, group in zip(devices, free, map(_group, devices), strict=False)
    )


def claim_wanted(guest: GuestName, wanted: str, port: str, device: PciDevice, before: FunctionSettings) -> DeviceClaim:
    """Return the claim of a device that a guest is to have by its definition."""
    return DeviceClaim(device.address, guest, _group(device), port, device.is_with_vfio, wanted, before)


def _group(device: PciDevice) -> int:
    if device.iommu_group is None:  # `find_devices` blocks it
        raise Broken(f"PCI device {device.address} is in no IOMMU group any more")
    return device.iommu_group


def check_claims(new: Sequence[DeviceClaim], held: Sequence[DeviceClaim]) -> None:
    """Hold that no device, no group and no port has two owners.

    Raises:
        Refused: one is another's already, or the guest's own; says whose.
    """
    for claim in new:
        for other in held:
            if claim.address == other.address:
                raise _kept(other)
            if claim.iommu_group == other.iommu_group and claim.guest != other.guest:
                raise Refused(
                    f"PCI device {claim.address} is in IOMMU group {claim.iommu_group} with {other.address}, which is"
                    f" kept for guest {other.guest}",
                    fix=_take(other),
                )
            if (claim.guest, claim.port) == (other.guest, other.port):
                raise Refused(f"Port {claim.port} of guest {claim.guest} is kept for {other.address}", retry=True)


def check_unclaimed(addresses: Collection[PciAddress], held: Sequence[DeviceClaim]) -> None:
    """Hold that none of these is kept for a guest.

    Raises:
        Refused: one is; says for whom.
    """
    for claim in held:
        if claim.address in addresses:
            raise _kept(claim)


def _kept(claim: DeviceClaim) -> Refused:
    return Refused(f"PCI device {claim.address} is kept for guest {claim.guest}", fix=_take(claim))


def _take(claim: DeviceClaim) -> str:
    return f"`vmferry guest detach {claim.guest} {claim.address}`"


def given_back(claims: Sequence[DeviceClaim], plugged: Collection[str]) -> Iterator[DeviceClaim]:
    """Yield which of a guest's devices its host gets back: those of groups of which the guest has nothing.

    Args:
        claims: all of one guest.
        plugged: ids of the devices that its process has.
    """
    used = {claim.iommu_group for claim in claims if claim.id in plugged}
    yield from (claim for claim in claims if claim.iommu_group not in used)


def addresses_of(guest: GuestName, claims: Sequence[DeviceClaim]) -> tuple[str, ...]:
    """Return which devices are kept for a guest."""
    return tuple(str(claim.address) for claim in claims if claim.guest == guest)


def attached_blocker(guest: GuestName, host: str, addresses: Sequence[str]) -> Blocker:
    """Return why a guest with devices of its host stays on it."""
    which = ", ".join(addresses)
    return Blocker(
        "device.attached",
        f"guest {guest} has {which} of {host}: what is in a physical device cannot be moved",
        f"`vmferry guest detach {guest} {addresses[0]}`" + (", and the others" if len(addresses) > 1 else ""),
    )
