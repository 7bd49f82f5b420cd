"""A host with every sort of device that the rules tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmferry.core.pci import PciAddress
from vmferry.testing.fake_cards import FakeCards
from vmferry.testing.fake_sysfs import FakeDevice, FakeKernel

CARD, SECOND = "0000:01:00.0", "0000:02:00.0"
SATA, NVME, VGA, SOUND, OLD, OLD_TOO = (
    *("0000:00:1f.2", "0000:03:00.0", "0000:00:02.0", "0000:00:1b.0"),
    *("0000:05:01.0", "0000:05:02.0"),
)
PORT, BRIDGE = "0000:00:01.0", "0000:04:00.0"


def at(text: str) -> PciAddress:
    """Return an address."""
    return PciAddress.parse(text)


def host(root: Path, *, iommu: bool = True, vfio: bool = True) -> FakeKernel:
    """Return a kernel with two network cards that make virtual functions, two disk controllers, and old devices."""
    kernel = FakeKernel(root, vfio=vfio)

    def add(*what: Any, **more: Any) -> None:
        kernel.add(FakeDevice(*what, **more))

    def group(number: int) -> int | None:
        return number if iommu else None

    for number, (port, card) in enumerate(((PORT, CARD), ("0000:00:01.1", SECOND))):
        add(port, 0x8086, 0x3420, 0x060400, group=group(1 + number), driver="pcieport")
        add(card, 0x8086, 0x10C9, 0x020000, group=group(11 + number), driver="igb", under=port, functions=7)
        kernel.add_net(card, f"ens{1 + number}")
    add(VGA, 0x1234, 0x1111, 0x030000, group=group(3), driver="bochs-drm", boot_vga=True, reset="")
    add(SOUND, 0x8086, 0x293E, 0x040300, group=group(4), driver="snd_hda_intel", reset="pm")
    add(SATA, 0x8086, 0x2922, 0x010601, group=group(5), driver="ahci", reset="pm")
    add("0000:00:1f.3", 0x8086, 0x2930, 0x0C0500, group=group(5), driver="i801_smbus", reset="")
    add(NVME, 0x1B36, 0x0010, 0x010802, group=group(6), driver="nvme")
    add(BRIDGE, 0x1B36, 0x000E, 0x060400, group=group(7))
    add(OLD, 0x10EC, 0x8139, 0x020000, group=group(7), driver="8139cp", under=BRIDGE, express=False)
    add(OLD_TOO, 0x1274, 0x5000, 0x040100, group=group(7), driver="snd_ens1370", under=BRIDGE, express=False)
    kernel.add_disk(SATA, "sda", {"sda": "8:0", "sda1": "8:1"}, {})
    kernel.add_disk(NVME, "nvme0n1", {"nvme0n1": "259:0", "nvme0n1p1": "259:1"}, {"nvme0n1p1": "dm-0"})
    return kernel


def cards(kernel: FakeKernel) -> FakeCards:
    """Return its network side."""
    return FakeCards(kernel, {"ens1": CARD, "ens2": SECOND})
