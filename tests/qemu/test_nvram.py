"""Firmware variables have one guest at a time, whatever they are called and whoever starts it."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.qemu.conftest import Start
from tests.qemu.test_command_line import BIOS, make_frozen

from vmferry.agent.files import shared_variables
from vmferry.core.errors import Broken
from vmferry.core.guest import FrozenGuest, UefiBoot
from vmferry.core.ids import GuestName, GuestUuid
from vmferry.qemu import QemuHypervisor
from vmferry.qemu.descriptors import opened_for
from vmferry.testing.conformance_hypervisor import SPEC

CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


def uefi_guest(nvram: Path, number: int) -> FrozenGuest:
    """Return a guest with these variables."""
    code = nvram.parent / "code.fd"
    code.touch()
    guest = make_frozen(replace(BIOS, boot=UefiBoot(str(code), str(nvram))))
    return replace(guest, uuid=GuestUuid(f"00000000-0000-4000-8000-{number:012x}"))


@pytest.fixture
def nvram(tmp_path: Path) -> Path:
    """A file for variables."""
    path = tmp_path / "vars.fd"
    path.touch()
    return path


def test_another_guest_is_refused_however_the_path_is_spelt(nvram: Path, tmp_path: Path) -> None:
    """While a process has the variables, links and other spellings of their path are refused; afterwards they pass."""
    (tmp_path / "soft.fd").symlink_to(nvram)
    (tmp_path / "hard.fd").hardlink_to(nvram)
    with opened_for(uefi_guest(nvram, 7), None) as (descriptors, _):
        assert descriptors.uefi_nvram is not None
        in_qemu = os.dup(descriptors.uefi_nvram)  # as the process has it, which outlives the agent's own
    for spelling in ("vars.fd", "soft.fd", "hard.fd"):
        for number in (0, 6, 8):
            with pytest.raises(Broken, match=f"{spelling} are in use by another guest"):
                opened_for(uefi_guest(tmp_path / spelling, number), None).__enter__()
    os.close(in_qemu)
    with opened_for(uefi_guest(nvram, 8), None):
        pass


def test_a_guest_meets_itself(nvram: Path) -> None:
    """Source and destination of a hand-over have the variables open at the same time; a third guest has no place."""
    guest = uefi_guest(nvram, 7)
    with opened_for(guest, None), opened_for(guest, None), pytest.raises(Broken, match="another guest"):
        opened_for(uefi_guest(nvram, 8), None).__enter__()


def test_a_new_guest_is_told_whose_variables_it_names(nvram: Path, tmp_path: Path) -> None:
    """Before anything is touched a new guest hears whose variables it names, also of a guest that is stopped."""
    (tmp_path / "hard.fd").hardlink_to(nvram)
    first = uefi_guest(nvram, 7).spec
    second = replace(uefi_guest(tmp_path / "hard.fd", 8).spec, name=GuestName("web-8"))
    assert shared_variables(second, [first, BIOS]) == [
        f"firmware variables {tmp_path}/hard.fd are guest {first.name}'s"
    ]
    assert shared_variables(second, [BIOS]) == []
    assert shared_variables(BIOS, [first]) == []


@pytest.mark.real
@pytest.mark.skipif(not CODE.exists(), reason="no UEFI firmware: apt-get install ovmf")
async def test_qemu_holds_the_variables(hypervisor: QemuHypervisor, start: Start, nvram: Path) -> None:
    """A real process keeps its variables from other guests until it ends; its own arrival gets them."""
    await asyncio.to_thread(shutil.copyfile, VARS, nvram)
    spec = replace(SPEC, boot=UefiBoot(str(CODE), str(nvram)))
    first, second = await hypervisor.freeze(spec), await hypervisor.freeze(replace(spec, name=GuestName("web-8")))
    process = await start(hypervisor, first)
    await process.cont()
    with pytest.raises(Broken, match="in use by another guest"):
        await start(hypervisor, second)
    arrival = await start(hypervisor, first, incoming=True)
    await process.quit()
    with pytest.raises(Broken, match="in use by another guest"):
        await start(hypervisor, second)
    await arrival.quit()
    await start(hypervisor, second)
