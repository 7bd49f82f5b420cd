"""The host's devices in a fake process, and a host that lends them; stricter than QEMU and the kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import Broken, NotFound, Refused, VmferryError
from vmferry.core.functions import NO_MAC, QUIET, FunctionSettings
from vmferry.core.migration import RunState
from vmferry.core.pci import PciAddress
from vmferry.core.pci_devices import VFIO, Inventory
from vmferry.ports.host_devices import Carrier
from vmferry.ports.hypervisor import GuestEventKind
from vmferry.testing.fake_qemu import FakeLink, FakeQemu


class FakePlugs:
    """Devices of one process.

    Args:
        qemu: the process.
        link: with what is lent to whom.
        call: records a call; raises when the process does not answer.
    """

    def __init__(self, qemu: FakeQemu, link: FakeLink, call: Callable[[str], None]) -> None:
        self._qemu = qemu
        self._link = link
        self._call = call

    async def plug(self, claim: DeviceClaim) -> None:
        """Take a device that was lent to its user, into a port of its own that is free."""
        self._call("plug")
        ports = [one.id for one in self._qemu.guest.devices if one.driver == "pcie-root-port"]
        self._require(claim.port in ports, "plug", f"Bus '{claim.port}' not found")
        self._require(claim.id not in self._qemu.plugged, "plug", f"Duplicate device ID '{claim.id}'")
        taken = {one.port for one in self._qemu.plugged.values()}
        self._require(claim.port not in taken, "plug", "slot 0 already in use")
        may = (self._host, claim, self._qemu.resources.uid) in self._link.lent
        self._require(may, "plug", f"vfio {claim.address}: failed to open /dev/vfio/{claim.iommu_group}")
        self._qemu.plugged[claim.id] = claim

    async def unplug(self, device: str) -> None:
        """Ask the guest; one that runs obeys unless the test made it deaf."""
        self._call("unplug")
        self._require(device in self._qemu.plugged, "unplug", f"Device '{device}' not found")
        if self._qemu.refuses_unplug:
            self._qemu.emit(GuestEventKind.UNPLUG_REFUSED, detail=device)
        elif self._qemu.state is RunState.RUNNING and self._qemu.obeys_unplug:
            self.guest_lets_go(device)

    def guest_lets_go(self, device: str) -> None:
        """Have the guest let a device go, asked or not."""
        del self._qemu.plugged[device]
        self._qemu.emit(GuestEventKind.UNPLUGGED, detail=device)

    async def plugged(self) -> frozenset[str]:
        """Return the ids of all devices that the process has."""
        self._call("plugged")
        return frozenset(self._qemu.plugged) | {one.id for one in self._qemu.guest.devices}

    @property
    def _host(self) -> str:
        return self._qemu.record.boot_id.partition(":")[0]

    def _require(self, holds: object, name: str, why: str) -> None:
        if not holds:
            raise Broken(f"QEMU of guest {self._qemu.guest.spec.name} refused {name}: {why}")


@dataclass(eq=False)
class FakeHostDevices:
    """A host's devices, and whom they are lent to; survives the agent as the kernel does.

    A device is given back only when no living process has one of its group.
    """

    link: FakeLink
    inventory: Inventory
    host: str = "host-a"
    lent: dict[PciAddress, DeviceClaim] = field(default_factory=dict)
    gone: set[PciAddress] = field(default_factory=set)  #: taken out of the host
    told: dict[PciAddress, FunctionSettings] = field(default_factory=dict)  #: of each function, what its card was told
    fabric: list[FakeHostDevices] = field(default_factory=list)  #: the hosts whose cards are on the same network
    fail_next: VmferryError | None = None  #: of the next change

    async def look(self) -> Inventory:
        """Return what there is."""
        return Inventory.of(one for address, one in self.inventory.devices.items() if address not in self.gone)

    async def read(self, address: PciAddress) -> FunctionSettings:
        """Return what a function's card was told of it."""
        if address in self.gone or self.inventory.devices[address].physical is None:
            raise NotFound(f"There is no virtual function {address} on this host")
        return self.told.get(address, QUIET)

    async def tell(self, claim: DeviceClaim, wanted: FunctionSettings) -> None:
        """Tell a card of a function; nobody else on its network has the MAC, and no process has the function."""
        new = wanted.without(await self.read(claim.address))
        if new.mac is not None and any(one.address == claim.address for one in self._plugged()):
            raise Refused(f"PCI device {claim.address} belongs to guest {claim.guest}")
        if new.given():
            self._tell(claim, new)

    async def tell_again(self, claim: DeviceClaim, wanted: FunctionSettings) -> FunctionSettings:
        """Tell a card of a function that its guest has."""
        told = (await self.read(claim.address)).given()
        if claim not in self._plugged():
            raise AssertionError(f"{claim.guest} has no {claim.address}, and its card is told again")
        new = wanted.without(FunctionSettings(**told))  # type: ignore[arg-type]
        if new.given():
            self._tell(claim, new)
        return FunctionSettings(**{name: told[name] for name in new.given()})  # type: ignore[arg-type]

    def _tell(self, claim: DeviceClaim, new: FunctionSettings) -> None:
        self._change(claim)
        if self.lent.get(claim.address) != claim:
            raise AssertionError(f"{claim.address} is not lent to {claim.guest}, and its card is told {new}")
        for host in self.fabric:
            others = [at for at in host.told if (host, at) != (self, claim.address) and not host._leaves(claim, at)]  # noqa: SLF001
            if new.mac not in {None, NO_MAC} and any(host.told[at].mac == new.mac for at in others):
                raise AssertionError(f"two functions of one network have {new.mac}")
        self.told[claim.address] = self.told.get(claim.address, QUIET).changed(new)

    async def lend(self, claim: DeviceClaim, uid: int | None, together: frozenset[PciAddress]) -> None:
        """Lend a device."""
        self._change(claim)
        if claim.address not in together:
            raise AssertionError(f"{claim.address} is none of {together}")
        if self.lent.get(claim.address, claim) != claim:
            raise AssertionError(f"{claim.address} is lent already, to {self.lent[claim.address].guest}")
        self.lent[claim.address] = claim
        device = self.inventory.devices[claim.address]
        self.link.kinds[self.host, claim.address] = (device.ids, (device.is_with_vfio and device.driver) or VFIO)
        self.link.lent.add((self.host, claim, uid))

    async def give_back(self, claim: DeviceClaim) -> None:
        """Take a device back."""
        self._change(claim)
        if used := [one for one in self._plugged() if one.iommu_group == claim.iommu_group]:
            raise Refused(f"PCI device {claim.address} is not given back: guest {used[0].guest} has {used[0].address}")
        if claim.address in self.lent and claim.before.given():
            await self.tell(claim, claim.before)
        self.lent.pop(claim.address, None)
        self.link.lent -= {one for one in self.link.lent if one[:2] == (self.host, claim)}

    def _leaves(self, claim: DeviceClaim, address: PciAddress) -> bool:
        """Return whether a function's guest stands still and will be ended: its state has gone into the other one."""
        lent = self.lent.get(address)
        if lent is None or (lent.guest, lent.wanted) != (claim.guest, claim.wanted):
            return False
        has = [qemu for qemu in self.link.processes.values() if qemu.alive and lent in qemu.plugged.values()]
        return all(qemu.state is RunState.POSTMIGRATE for qemu in has)

    def _plugged(self) -> list[DeviceClaim]:
        here = [qemu for qemu in self.link.processes.values() if qemu.record.boot_id.startswith(f"{self.host}:")]
        return [claim for qemu in here if qemu.alive for claim in qemu.plugged.values()]

    def _change(self, claim: DeviceClaim) -> None:
        error, self.fail_next = self.fail_next, None
        if error is not None:
            raise error
        if claim.address in self.gone or claim.address not in self.inventory.devices:
            raise NotFound(f"There is no PCI device {claim.address} on this host")


class FakeStandbys:
    """Bridges that hear what a test says."""

    def __init__(self) -> None:
        self.carrier: Carrier | None = Carrier.FUNCTION
        self.unheard: set[tuple[str, str]] = set()
        self.forgotten: list[tuple[str, str]] = []

    def heard(self, bridge: str, mac: str) -> Carrier | None:
        """Return what the test said."""
        return None if (bridge, mac) in self.unheard else self.carrier

    def forget(self, bridge: str, mac: str) -> None:
        """Note it."""
        self.forgotten.append((bridge, mac))
