"""Nested hosts with an IOMMU and network cards that make virtual functions: real SR-IOV, VFIO and KVM, emulated.

The cards are igb (QEMU from 8.0 on). Their ports are joined to nothing unless a wire is given for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vmferry.core.pci import PciAddress
from vmferry.lab.nested.host import HostPlan, NestedHost
from vmferry.lab.nested.image import HostImage
from vmferry.lab.toolchain import QemuBinary

#: From 2.75 GiB on the functions' memory lies above 4 GiB, where their mailbox fails under an emulated KVM.
MEMORY_MIB = 2600
MODULES = ("igb", "kvm-amd", "vfio-pci", "vhost_net")


class SriovHost(NestedHost):
    """A nested host with an IOMMU and cards.

    Args:
        plan: as of every nested host.
        image: likewise.
        qemu: 8.0 or later.
        directory: likewise.
        env: likewise.
        wire: of its network card, likewise.
        cards: QEMU's network back-end of each card, without its id: `hubport,hubid=0`.
    """

    def __init__(
        self,
        plan: HostPlan,
        image: HostImage,
        qemu: QemuBinary,
        directory: Path,
        env: Mapping[str, str],
        wire: Sequence[str],
        cards: Sequence[str] = ("hubport,hubid=0",),
    ) -> None:
        super().__init__(plan, image, qemu, directory, env, wire)
        self._cards = tuple(cards)

    @property
    def cards(self) -> tuple[PciAddress, ...]:
        """Where the cards are."""
        return tuple(PciAddress(0, 1 + number, 0, 0) for number in range(len(self._cards)))

    async def start(self) -> None:
        """Power on, load the drivers, and bring the cards up: without that their functions have no mailbox."""
        await super().start()
        await self.shell(f"modprobe -a {' '.join(MODULES)}", 120)
        await self.shell("for card in /sys/bus/pci/drivers/igb/*/net/*; do ip link set ${card##*/} up; done")

    def _argv(self) -> list[str]:
        argv = super()._argv()
        changed = {"-machine": "q35,kernel-irqchip=split", "-cpu": "EPYC-v1,+svm,+npt"}
        for option, value in changed.items():
            argv[argv.index(option) + 1] = value
        first = argv.index("-device")  # the IOMMU comes before what is behind it
        cards: list[str] = []
        for number, wire in enumerate(self._cards, 1):
            mac = f"52:54:00:aa:{number:02x}:{self.plan.mac[-2:]}"
            cards += ["-device", f"pcie-root-port,id=port{number},slot={number},chassis={number}"]
            cards += ["-netdev", f"{wire},id=card{number}"]
            cards += ["-device", f"igb,bus=port{number},netdev=card{number},mac={mac},romfile="]
        return [*argv[:first], "-device", "intel-iommu,intremap=on", *cards, *argv[first:]]

    def _cmdline(self) -> str:
        return f"{super()._cmdline()} intel_iommu=on iommu=pt"
