"""A kernel's PCI devices in a folder: real files to read, and the kernel's rules for what is written.

    kernel = FakeKernel(tmp_path)
    kernel.add(FakeDevice("0000:01:00.0", 0x8086, 0x10C9, 0x020000, group=14, driver="igb", functions=7))
    kernel.write("bus/pci/devices/0000:01:00.0/sriov_numvfs", "2")

A write is answered as by Linux 6.1, with the same error numbers.

Source: Linux 6.1, drivers/pci/pci-driver.c, pci-sysfs.c, iov.c, drivers/base/bus.c; seen on igb in a nested host.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmferry.core.pci import PciAddress
from vmferry.hostdev.sysfs import Sysfs

_DEVICES, _DRIVERS, _PROBE = "bus/pci/devices", "bus/pci/drivers", "bus/pci/drivers_probe"
#: Where a driver's interface is while the driver is not there.
_AWAY = ".net"
#: Of igb: the first virtual function's routing id, and how far apart they are.
_OFFSET, _STRIDE = 128, 2


@dataclass(frozen=True, slots=True)
class FakeDevice:
    """A device as the kernel finds it."""

    address: str  #: as lspci -D writes it
    vendor: int
    device: int
    class_code: int  #: 24 bits
    group: int | None = None  #: its IOMMU group
    driver: str | None = None  #: the one that knows it
    under: str | None = None  #: the bridge it is behind
    express: bool = True
    reset: str = "flr"  #: ways to reset it
    functions: int = 0  #: virtual ones that it can make
    boot_vga: bool = False

    def attributes(self) -> dict[str, str]:
        """Return its files, with what they say."""
        values = {
            "vendor": f"0x{self.vendor:04x}",
            "device": f"0x{self.device:04x}",
            "class": f"0x{self.class_code:06x}",
        }
        values |= {
            "driver_override": "(null)",
            "numa_node": "-1",
            "config": "\0" * ((4096 if self.express else 256) - 1),
        }
        values |= {"reset_method": self.reset} if self.reset else {}
        values |= {"boot_vga": "1"} if self.boot_vga else {}
        if self.functions:
            values |= {"sriov_totalvfs": str(self.functions), "sriov_numvfs": "0", "sriov_drivers_autoprobe": "1"}
        return values


class FakeKernel(Sysfs):
    """What reads and writes as the real one does.

    Args:
        root: an empty folder.
        vfio: whether the module vfio-pci is loaded.
    """

    def __init__(self, root: Path, *, vfio: bool = True) -> None:
        super().__init__(root)
        self._native: dict[str, str] = {}  #: by address: the driver that knows such a device
        self._groups = 100
        self.refusing: set[str] = set()  #: drivers whose probe fails
        self.writes: list[tuple[str, str]] = []
        self.made: dict[
            str, int
        ] = {}  #: how often a card's functions were made anew: it has forgotten what it was told
        self.most: int | None = None  #: functions that a driver makes, whatever it is asked for
        for path in (_DEVICES, _DRIVERS, "block"):
            (root / path).mkdir(parents=True)
        (root / _PROBE).touch()
        if vfio:
            self._load("vfio-pci")

    def add(self, added: FakeDevice) -> None:
        """Add a device, and let its driver have it."""
        under = self.root / "devices/pci0000:00"
        here = (under if added.under is None else (self.root / _DEVICES / added.under).resolve()) / added.address
        here.mkdir(parents=True)
        for name, text in added.attributes().items():
            (here / name).write_text(f"{text}\n", "ascii")
        if added.group is not None:
            folder = self.root / f"kernel/iommu_groups/{added.group}"
            folder.mkdir(parents=True, exist_ok=True)
            (here / "iommu_group").symlink_to(folder)
        (self.root / _DEVICES / added.address).symlink_to(here)
        if added.driver is not None:
            self._native[added.address] = added.driver
            self._load(added.driver)
            self._bind(added.address, added.driver)

    def add_net(self, address: str, name: str, *, up: bool = False, master: str | None = None) -> None:
        """Give a device a network interface."""
        card = self.root / _DEVICES / address / "net" / name
        card.mkdir(parents=True)
        self.set_up(address, name, up=up)
        if master is not None:
            (card / "master").symlink_to(self.root / "devices/virtual/net" / master)

    def set_up(self, address: str, name: str, *, up: bool) -> None:
        """Bring a network interface up, or down."""
        net = self.root / _DEVICES / address / "net" / name
        (net / "flags").write_text("0x1003\n" if up else "0x1002\n", "ascii")
        (net / "carrier").write_text("1\n" if up else "0\n", "ascii")

    def add_disk(self, address: str, name: str, numbers: Mapping[str, str], holders: Mapping[str, str]) -> None:
        """Give a device a disk.

        Args:
            address: of its controller.
            name: of the disk, as sda.
            numbers: of it and its parts: {"sda": "8:0", "sda1": "8:1"}.
            holders: what is made of them: {"sda1": "dm-0"}.
        """
        disk = (self.root / _DEVICES / address).resolve() / "host0/target0:0:0/block" / name
        for part, number in numbers.items():
            folder = disk if part == name else disk / part
            (folder / "holders").mkdir(parents=True)
            (folder / "dev").write_text(f"{number}\n", "ascii")
            if part in holders:
                (folder / "holders" / holders[part]).mkdir()
        (self.root / "block" / name).symlink_to(disk)

    def add_shared_disk(self, addresses: Sequence[str], name: str, number: str) -> None:
        """Give several NVMe controllers one disk: it is below none of them, and each has a hidden way to it."""
        subsystem = self.root / "devices/virtual/nvme-subsystem/nvme-subsys0"
        (subsystem / name).mkdir(parents=True)
        (subsystem / name / "dev").write_text(f"{number}\n", "ascii")
        (self.root / "block" / name).symlink_to(subsystem / name)
        for index, address in enumerate(addresses):
            way = (self.root / _DEVICES / address).resolve() / f"nvme/nvme{index}"
            hidden = way / f"nvme0c{index}n1"
            hidden.mkdir(parents=True)
            (hidden / "hidden").write_text("1\n", "ascii")
            (subsystem / way.name).symlink_to(way)
            (self.root / "block" / hidden.name).symlink_to(hidden)

    def vanish(self, address: str) -> None:
        """Pull a device out: surprise removal."""
        link = self.root / _DEVICES / address
        self._unbind(address)
        shutil.rmtree(link.resolve())
        link.unlink()

    def write(self, path: str, text: str) -> None:
        """Do what the kernel does."""
        self.writes.append((path, text))
        if not (self.root / path).exists():
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        folder, _, name = path.rpartition("/")
        word = text.removesuffix("\n")
        if path == _PROBE:
            self._probe(self._known(word))
        elif name == "unbind":
            self._let_go(folder, word)
        elif name == "driver_override":
            (self.root / path).write_text(f"{word or '(null)'}\n", "ascii")
        elif name == "sriov_drivers_autoprobe":
            if word not in {"0", "1"}:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
            (self.root / path).write_text(f"{word}\n", "ascii")
        elif name == "sriov_numvfs":
            self._set_functions(folder.rpartition("/")[2], word)
        else:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    def _known(self, address: str) -> str:
        if not (self.root / _DEVICES / address).is_dir():
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), address)
        return address

    def _probe(self, address: str) -> None:
        """Let the driver that may have it take it; whether it did is not said."""
        here = f"{_DEVICES}/{address}"
        if self.link(f"{here}/driver") is not None:
            return
        override = self.read(f"{here}/driver_override")
        physical = self.link(f"{here}/physfn")
        wanted = self._native.get(address) if override == "(null)" else override
        if override == "(null)" and physical is not None and self._autoprobe(physical) == 0:
            return
        if wanted is None or not (self.root / _DRIVERS / wanted).is_dir() or wanted in self.refusing:
            return
        if wanted == "vfio-pci" and self.link(f"{here}/iommu_group") is None:
            return
        self._bind(address, wanted)

    def _autoprobe(self, physical: str) -> int | None:
        return self.number(f"{_DEVICES}/{physical}/sriov_drivers_autoprobe")

    def _load(self, driver: str) -> None:
        folder = self.root / _DRIVERS / driver
        folder.mkdir(exist_ok=True)
        for name in ("bind", "unbind", "new_id"):
            (folder / name).touch()

    def _bind(self, address: str, driver: str) -> None:
        here, there = (self.root / _DEVICES / address).resolve(), self.root / _DRIVERS / driver
        (here / "driver").symlink_to(there)
        (there / address).symlink_to(here)
        if driver == self._native.get(address) and (here / _AWAY).exists():
            (here / _AWAY).rename(here / "net")
            for name in self.names(f"{_DEVICES}/{address}/net"):
                self.set_up(address, name, up=False)

    def _unbind(self, address: str) -> None:
        driver = self.link(f"{_DEVICES}/{address}/driver")
        if driver is not None:
            (self.root / _DRIVERS / driver / address).unlink()
            here = self.root / _DEVICES / address
            (here / "driver").unlink()
            if (here / "net").exists():  # a driver takes its interface with it
                (here / "net").rename(here / _AWAY)

    def _let_go(self, driver: str, address: str) -> None:
        if not (self.root / driver / address).is_symlink():
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), address)
        self._unbind(address)

    def _set_functions(self, address: str, word: str) -> None:
        here = f"{_DEVICES}/{address}"
        total, there = self.number(f"{here}/sriov_totalvfs") or 0, self.number(f"{here}/sriov_numvfs") or 0
        if not word.isdecimal():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), here)
        count = int(word)
        if count > total:
            raise OSError(errno.ERANGE, os.strerror(errno.ERANGE), here)
        if count == there:
            return
        if self.link(f"{here}/driver") in {None, "vfio-pci"}:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), here)
        if count and there:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), here)
        if count and "sriov" in self.refusing:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), here)
        count = count if self.most is None else min(count, self.most)
        self.made[address] = self.made.get(address, 0) + 1
        for number in range(there):
            self._end_function(address, number)
        for number in range(count):
            self._make_function(address, number)
        (self.root / here / "sriov_numvfs").write_text(f"{count}\n", "ascii")

    def _make_function(self, physical: str, number: int) -> None:
        address = str(function_address(PciAddress.parse(physical), number))
        above = (self.root / _DEVICES / physical).resolve().parent
        self._groups += 1
        group = self._groups if self.link(f"{_DEVICES}/{physical}/iommu_group") is not None else None
        under = above.name if (self.root / _DEVICES / above.name).exists() else None
        self.add(FakeDevice(address, 0x8086, 0x10CA, 0x020000, group, under=under))
        (self.root / _DEVICES / address / "physfn").symlink_to((self.root / _DEVICES / physical).resolve())
        (self.root / _DEVICES / physical / f"virtfn{number}").symlink_to((self.root / _DEVICES / address).resolve())
        self._native[address] = "igbvf"
        self._load("igbvf")
        self._probe(address)

    def _end_function(self, physical: str, number: int) -> None:
        (self.root / _DEVICES / physical / f"virtfn{number}").unlink()
        self.vanish(str(function_address(PciAddress.parse(physical), number)))


def function_address(physical: PciAddress, number: int) -> PciAddress:
    """Return where a card as igb puts a virtual function."""
    routing = (physical.bus << 8 | physical.slot << 3 | physical.function) + _OFFSET + number * _STRIDE
    return PciAddress(physical.domain, routing >> 8, routing >> 3 & 0x1F, routing & 7)
