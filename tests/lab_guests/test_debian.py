"""The debian guest on a real QEMU: a disk, UEFI, systemd."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmferry.core.errors import Broken
from vmferry.lab.guests import GuestImage, GuestKind
from vmferry.lab.guests.debian import personal_disk
from vmferry.lab.toolchain import QemuBinary

if TYPE_CHECKING:
    Bench = Any  # conftest's `Bench`

pytestmark = [pytest.mark.real, pytest.mark.slow]

Image = Callable[[GuestKind], GuestImage]
TWO_SECONDS = 2000
MEMORY = 512


@pytest.fixture
def debian(image: Image) -> GuestImage:
    """The built guest; the first build of a cache takes a minute and needs root."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("the debian guest is built by debootstrap as root: apt-get install debootstrap")
    return image("debian")


@pytest.mark.timeout(600)
async def test_it_boots_moves_and_powers_off(
    debian: GuestImage, newest_qemu: QemuBinary, bench: Bench, tmp_path: Path
) -> None:
    """A stock Debian boots by UEFI from its disk, moves under load with a clean oracle, and shuts down in order."""
    disk, nvram = tmp_path / "web-7.qcow2", tmp_path / "web-7.fd"
    personal_disk(debian, disk, nvram, mb=32, rate=20, ip="10.0.2.15/24")
    devices = [
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={debian.firmware}"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={nvram}"),
        *("-drive", f"if=none,id=disk0,format=qcow2,file={disk}"),
        *("-device", "virtio-blk-pci,drive=disk0,bootindex=0"),
    ]
    source = await bench.start(newest_qemu, debian, *devices, memory=MEMORY)
    await source.line("vmferry-guest ready mb=32 rate=20 ")
    await source.wait_echo(100)
    destination = await bench.start(newest_qemu, debian, *devices, memory=MEMORY, incoming=True)
    await bench.migrate(source, destination)
    await destination.receiver.wait_for_beats(TWO_SECONDS)
    await destination.wait_echo(100)
    async with destination.control() as control:
        assert (await control.line()).startswith("ready mb=32 rate=20 ")
        assert (await control.ask("oracle")).startswith("oracle clean pages=8192 ")
        control.writer.write(b"poweroff\n")
        assert (await destination.event("SHUTDOWN"))["reason"] == "guest-shutdown"
        assert await destination.process.wait() == 0


async def test_settings_that_do_not_fit_are_refused(debian: GuestImage, tmp_path: Path) -> None:
    """Too much text for the settings partition is an error with its size and limit."""
    with pytest.raises(Broken, match="4105 bytes, at most 4096"):
        personal_disk(debian, tmp_path / "disk", tmp_path / "nvram", pattern="x" * 4096)
