"""Nested hosts with an IOMMU and network cards that make virtual functions: real SR-IOV, VFIO and KVM, emulated.

The cards are igb (QEMU from 8.0 on). Their ports are joined to nothing unless a wire is given for each. The first one's
wire has another card on it, virtio, for a bridge: one that makes functions and is in a bridge itself makes a storm of
broadcasts. Beside them a host can have devices that it does not need itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vmferry.core.pci import PciAddress
from vmferry.core.units import MIB
from vmferry.lab.nested.host import HostPlan, NestedHost, hub
from vmferry.lab.nested.image import HostImage
from vmferry.lab.toolchain import QemuBinary

#: From 2.75 GiB on the functions' memory lies above 4 GiB, where their mailbox fails under an emulated KVM.
MEMORY_MIB = 2600
MODULES = ("igb", "kvm-amd", "vfio-pci", "vhost_net", "nvme", "virtio_blk", "e1000e")
#: Of the agents' network: each packet costs an emulated host much, however long it is.
_MTU = 9000
#: QEMU's own, one for each card that needs one.
_FIRST_HUB = 7
#: Of guests' standbys, and the other card on the first wire in it.
BRIDGE = "br0"
_UPLINK = "for net in /sys/class/net/*; do [ $(cat $net/address) != {mac} ] || echo ${{net##*/}}; done"
_BRIDGE = """
modprobe -a bridge tun
ip link add {bridge} type bridge forward_delay 0 mcast_snooping 0
ip link set {uplink} master {bridge}
ip link set {uplink} up
ip addr add {address} dev {bridge}
ip link set {bridge} up
"""
#: What a host does not need itself: QEMU's arguments, the device last.
SPARES: Mapping[str, Sequence[str]] = {
    "nvme": (
        *("-blockdev", f"null-co,node-name=spare,size={64 * MIB},read-zeroes=on"),
        *("-device", "nvme,serial=spare,drive=spare"),
    ),
    "virtio-blk": (
        *("-blockdev", f"null-co,node-name=other,size={64 * MIB},read-zeroes=on"),
        *("-device", "virtio-blk-pci,drive=other"),
    ),
    "e1000e": ("-device", "e1000e,mac=52:54:00:ab:00:01,romfile="),
}


class SriovHost(NestedHost):
    """A nested host with an IOMMU and cards.

    Args:
        plan: as of every nested host.
        image: likewise.
        qemu: 8.0 or later.
        directory: likewise.
        env: likewise.
        wire: of its network card, likewise.
        cards: QEMU's network back-ends of each card's wire, without their ids: `hubport,hubid=0`.
        spares: which of `SPARES` it has.
    """

    def __init__(
        self,
        plan: HostPlan,
        image: HostImage,
        qemu: QemuBinary,
        directory: Path,
        env: Mapping[str, str],
        wire: Sequence[str],
        cards: Sequence[Sequence[str]] = (("hubport,hubid=0",),),
        spares: Sequence[str] = (),
    ) -> None:
        super().__init__(plan, image, qemu, directory, env, wire)
        self._cards = tuple(cards)
        self._spares = tuple(spares)

    @property
    def cards(self) -> tuple[PciAddress, ...]:
        """Where the cards are."""
        return tuple(PciAddress(0, 1 + number, 0, 0) for number in range(len(self._cards)))

    @property
    def spares(self) -> Mapping[str, PciAddress]:
        """Where the devices are that it does not need, by their names."""
        first = 1 + len(self._cards)
        return {name: PciAddress(0, first + number, 0, 0) for number, name in enumerate(self._spares)}

    async def make_bridge(self, address: str) -> None:
        """Make the bridge of guests' standbys, on the first card's network.

        Args:
            address: of the host there, with the length of the prefix.
        """
        uplink = (await self.shell(_UPLINK.format(mac=self._uplink_mac))).strip()
        await self.shell(_BRIDGE.format(bridge=BRIDGE, uplink=uplink, address=address))

    @property
    def _uplink_mac(self) -> str:
        return f"52:54:00:ab:01:{self.plan.mac[-2:]}"

    async def start(self) -> None:
        """Power on, load the drivers, and bring the cards up: without that their functions have no mailbox."""
        await super().start()
        await self.shell(f"modprobe -a {' '.join(MODULES)}", 120)
        await self.must("ip", "link", "set", "eth0", "mtu", str(_MTU))
        await self.shell("chmod 666 /dev/kvm")  # as udev does, which does not run here
        await self.shell("for card in /sys/bus/pci/drivers/igb/*/net/*; do ip link set ${card##*/} up; done")

    def _argv(self) -> list[str]:
        argv = super()._argv()
        changed = {"-machine": "q35,kernel-irqchip=split", "-cpu": "EPYC-v1,+svm,+npt"}
        for option, value in changed.items():
            argv[argv.index(option) + 1] = value
        first = argv.index("-device")  # the IOMMU comes before what is behind it
        behind: list[str] = []
        for number, arguments in enumerate([*map(self._card, range(len(self._cards))), *self._spare_arguments()], 1):
            behind += ["-device", f"pcie-root-port,id=port{number},slot={number},chassis={number}"]
            behind += [*arguments[:-1], f"{arguments[-1]},bus=port{number}"]
        uplink = ["-device", f"virtio-net-pci,netdev=uplink,mac={self._uplink_mac},romfile="] if self._cards else []
        return [*argv[:first], "-device", "intel-iommu,intremap=on", *behind, *argv[first:], *uplink]

    def _card(self, number: int) -> Sequence[str]:
        mac = f"52:54:00:aa:{number + 1:02x}:{self.plan.mac[-2:]}"
        device = f"igb,netdev=card{number},mac={mac},romfile="
        uplink = () if number else ("uplink",)
        return [*hub(f"card{number}", _FIRST_HUB + number, self._cards[number], uplink), "-device", device]

    def _spare_arguments(self) -> Iterable[Sequence[str]]:
        return (SPARES[name] for name in self._spares)

    def _cmdline(self) -> str:
        return f"{super()._cmdline()} intel_iommu=on iommu=pt"
