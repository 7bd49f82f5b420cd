"""Devices that go to guests and come back: on files with the kernel's rules, and a /proc and a /dev of our own."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.hostdev.kit import CARD, NVME, SECOND, at, cards, host

from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import Blocked, Broken, NotFound, Refused
from vmferry.core.functions import NO_MAC, QUIET, FunctionSettings
from vmferry.core.ids import GuestName
from vmferry.hostdev import lending
from vmferry.hostdev.inventory import DEVICES, read_inventory
from vmferry.hostdev.lending import DeviceLender
from vmferry.testing.fake_sysfs import FakeKernel

UID = 12345


class Place:
    """A kernel, with /proc and /dev beside it.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.kernel: FakeKernel = host(root / "sys")
        self.root = root
        (root / "proc").mkdir()
        (root / "dev/vfio").mkdir(parents=True)
        self.cards = cards(self.kernel)
        self.lender = DeviceLender(self.kernel, self.cards, root)

    def claim(self, address: str, *, was_kept: bool = False) -> DeviceClaim:
        """Return a claim of a device, whose group has a file."""
        group = int(self.kernel.link(f"{DEVICES}/{address}/iommu_group") or "0")
        (self.root / f"dev/vfio/{group}").touch(0o644)
        return DeviceClaim(at(address), GuestName("web-7"), group, "rp0", was_kept)

    def driver(self, address: str) -> str | None:
        """Return which driver has a device."""
        return self.kernel.link(f"{DEVICES}/{address}/driver")

    def open(self, claim: DeviceClaim, pid: int = 4711) -> Path:
        """Have a program that has the group open; returns its descriptor."""
        folder = self.root / f"proc/{pid}/fd"
        folder.mkdir(parents=True)
        (folder.parent / "comm").write_text("qemu-system-x86\n", "ascii")
        (folder / "21").symlink_to(f"/dev/vfio/{claim.iommu_group}")
        return folder / "21"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place where a program that does not let go is not waited for."""
    monkeypatch.setattr(lending, "_CLOSED_WITHIN_S", 0.2)
    return Place(tmp_path)


async def test_there_and_back(place: Place) -> None:
    """VFIO has it, and the guest's user its file; then the host's driver again, and no override."""
    claim = place.claim(CARD)
    await place.lender.lend(claim, UID, frozenset())
    file = (place.root / f"dev/vfio/{claim.iommu_group}").stat()
    assert (place.driver(CARD), file.st_uid, stat.S_IMODE(file.st_mode)) == ("vfio-pci", UID, 0o600)
    await place.lender.give_back(claim)
    await place.lender.give_back(claim)
    assert place.driver(CARD) == "igb"
    assert place.kernel.read(f"{DEVICES}/{CARD}/driver_override") == "(null)"


async def test_what_vfio_had_before_stays_there(place: Place) -> None:
    """Somebody keeps it for guests: it is not given to the host's driver, and its file is root's again."""
    place.kernel.write(f"{DEVICES}/{CARD}/driver_override", "vfio-pci\n")
    place.kernel.write("bus/pci/drivers/igb/unbind", CARD)
    place.kernel.write("bus/pci/drivers_probe", CARD)
    claim, before = place.claim(CARD, was_kept=True), list(place.kernel.writes)
    await place.lender.lend(claim, UID, frozenset())
    await place.lender.give_back(claim)
    assert place.kernel.writes == before
    assert place.driver(CARD) == "vfio-pci"
    assert (place.root / f"dev/vfio/{claim.iommu_group}").stat().st_uid == os.geteuid()


async def test_a_program_that_has_it_is_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that closes its file soon, and one that does not: then the device stays where it is."""
    claim = place.claim(CARD)
    await place.lender.lend(claim, UID, frozenset())
    held = place.open(claim)
    with pytest.raises(Refused, match=r"qemu-system-x86 \(pid 4711\) has its IOMMU group 11"):
        await place.lender.give_back(claim)
    assert place.driver(CARD) == "vfio-pci"
    monkeypatch.setattr("time.sleep", lambda _: held.unlink(missing_ok=True))
    await place.lender.give_back(claim)
    assert place.driver(CARD) == "igb"


async def test_what_another_program_has_is_not_lent(place: Place) -> None:
    """Nothing is written."""
    claim = place.claim(SECOND)
    place.open(claim)
    before = list(place.kernel.writes)
    with pytest.raises(Blocked) as told:
        await place.lender.lend(claim, UID, frozenset())
    assert [blocker.code for blocker in told.value.blockers] == ["pci.in-use"]
    assert place.kernel.writes == before


async def test_a_file_that_is_not_there(place: Place) -> None:
    """The host's driver has the device again."""
    claim = place.claim(CARD)
    (place.root / f"dev/vfio/{claim.iommu_group}").unlink()
    with pytest.raises(Broken, match="its group's file cannot be given to user 12345"):
        await place.lender.lend(claim, UID, frozenset())
    assert place.driver(CARD) == "igb"


async def test_a_device_that_vanishes(place: Place) -> None:
    """It is neither lent nor given back."""
    claim = place.claim(CARD)
    place.kernel.vanish(CARD)
    with pytest.raises(NotFound):
        await place.lender.lend(claim, UID, frozenset())
    with pytest.raises(NotFound):
        await place.lender.give_back(claim)


async def test_what_there_is_is_told_with_its_uses(place: Place) -> None:
    """Disks that are mounted, and groups that somebody has."""
    (place.root / "proc/self").mkdir()
    (place.root / "proc/self/mountinfo").write_text("22 1 259:1 / /srv rw - ext4 none rw\n", "ascii")
    (place.root / "proc/swaps").write_text("Filename\n", "ascii")
    place.open(place.claim(CARD))
    found = (await place.lender.look()).devices
    assert found[at(NVME)].disks_in_use == {"nvme0n1": "mounted at /srv"}
    assert found[at(CARD)].user == "qemu-system-x86 (pid 4711)"


async def test_what_was_changed_meanwhile_is_not_taken(place: Place) -> None:
    """An interface that came up, a driver that let go: what was seen before the order's turn does not count."""
    claim = place.claim(CARD)
    place.kernel.set_up(CARD, "ens1", up=True)
    with pytest.raises(Blocked):
        await place.lender.lend(claim, UID, frozenset())
    place.kernel.set_up(CARD, "ens1", up=False)
    with pytest.raises(Refused, match="was changed meanwhile: it is in group 11, with driver igb"):
        await place.lender.lend(place.claim(CARD, was_kept=True), UID, frozenset())
    assert place.driver(CARD) == "igb"


async def test_who_is_cancelled_does_not_end_a_change(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device goes on to where it was going, and the next change waits for that."""
    claim, entered, goes_on = place.claim(CARD), threading.Event(), threading.Event()
    judge = place.lender._judge_again

    def slow(*arguments: Any) -> None:
        judge(*arguments)
        entered.set()
        goes_on.wait(20)

    monkeypatch.setattr(place.lender, "_judge_again", slow)
    lends = asyncio.create_task(place.lender.lend(claim, UID, frozenset()))
    await asyncio.to_thread(entered.wait, 20)
    lends.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lends
    back = asyncio.create_task(place.lender.give_back(claim))
    await asyncio.sleep(0.05)
    assert not back.done()
    goes_on.set()
    await back
    assert place.driver(CARD) == "igb"
    await place.lender.close()


async def test_a_function_is_told_what_its_guest_is_to_have(place: Place) -> None:
    """Before the guest has it, not while a program has it; silent at once; and told again what it was told before."""
    place.kernel.write(f"{DEVICES}/{CARD}/sriov_drivers_autoprobe", "0")
    place.kernel.write(f"{DEVICES}/{CARD}/sriov_numvfs", "2")
    address = str(read_inventory(place.kernel).devices[at(CARD)].sriov.functions[1])  # type: ignore[union-attr]
    await place.lender.tell(place.claim(address), FunctionSettings(mac=NO_MAC, vlan=9))
    before = (await place.lender.read(at(address))).of_a_guest
    claim = replace(place.claim(address), wanted="nic0", before=before)
    wanted = FunctionSettings(mac="52:54:00:00:00:07", vlan=7)
    await place.lender.lend(claim, UID, frozenset({claim.address}))
    await place.lender.lend(claim, UID, frozenset({claim.address}))
    await place.lender.tell(claim, wanted)
    assert (await place.lender.read(claim.address)).of_a_guest == wanted
    told = len(place.cards.writes)
    await place.lender.tell(claim, wanted)
    assert len(place.cards.writes) == told
    held = place.open(claim)
    with pytest.raises(Refused, match="has its IOMMU group"):
        await place.lender.tell(claim, FunctionSettings(mac="52:54:00:00:00:08"))
    assert await place.lender.tell_again(claim, wanted) == FunctionSettings()
    place.cards.write("ens1", 1, "mac", "52:54:00:00:00:08")  # somebody else does
    assert await place.lender.tell_again(claim, wanted) == FunctionSettings(mac="52:54:00:00:00:08")
    assert (await place.lender.read(claim.address)).of_a_guest == wanted
    await place.lender.tell(claim, QUIET)
    assert (await place.lender.read(claim.address)).of_a_guest == QUIET
    held.unlink()
    await place.lender.give_back(claim)
    assert (await place.lender.read(claim.address)).of_a_guest == before


async def test_a_card_that_knows_no_vlans(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has none is not told that it has none."""
    place.kernel.write(f"{DEVICES}/{CARD}/sriov_drivers_autoprobe", "0")
    place.kernel.write(f"{DEVICES}/{CARD}/sriov_numvfs", "1")
    address = str(read_inventory(place.kernel).devices[at(CARD)].sriov.functions[0])  # type: ignore[union-attr]
    monkeypatch.setattr(place.cards, "read", lambda *_: FunctionSettings(mac=NO_MAC))
    await place.lender.tell(place.claim(address), FunctionSettings(mac="52:54:00:00:00:07", vlan=0))
    assert place.cards.writes == [("ens1", 0, "mac", "52:54:00:00:00:07")]
