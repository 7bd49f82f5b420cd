"""What the agent tells of its host's devices, and what it does to them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.hostdev.kit import CARD, PORT, SATA, at, cards, host

from vmferry.agent import devices
from vmferry.agent.devices import HostDevices
from vmferry.api import device_models as d
from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import BadInput, Refused
from vmferry.core.functions import NO_MAC, FunctionSettings
from vmferry.core.ids import GuestName
from vmferry.hostdev import DeviceLender
from vmferry.testing.fake_sysfs import FakeKernel


def devices_of(kernel: FakeKernel) -> HostDevices:
    """Return the agent's part for this kernel."""
    return HostDevices(kernel, cards(kernel), DeviceLender(kernel, cards(kernel)), list)


async def test_every_device_is_told_with_what_is_in_its_way(tmp_path: Path) -> None:
    """Addresses in all forms, groups, reasons."""
    found = {one.address["lspci"]: one for one in (await devices_of(host(tmp_path)).list()).devices}
    card, disk = found[CARD], found[SATA]
    assert card.address["nodedev"] == "pci_0000_01_00_0"
    assert (card.functions_most, card.functions, card.nets, card.blockers) == (7, (), ("ens1",), ())
    assert (disk.group, disk.disks) == (("0000:00:1f.3",), ("sda",))
    assert [one.code for one in disk.blockers] == ["pci.group-shared"]
    assert found[PORT].is_bridge


async def test_functions_are_made_and_who_has_one_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that holds a function's group is in the way of every other number."""
    here = devices_of(host(tmp_path))
    made = await here.set_functions(d.SetFunctions(card="pci_0000_01_00_0", count=2))
    assert made.functions == ("0000:01:10.0", "0000:01:10.2")
    group = next(one for one in (await here.list()).devices if one.address["lspci"] == "0000:01:10.2").iommu_group
    monkeypatch.setattr(devices, "holders", lambda: {str(group): "qemu-system-x86 (pid 4711)"})
    with pytest.raises(Refused, match=r"0000:01:10.2 belongs to qemu-system-x86 \(pid 4711\)"):
        await here.set_functions(d.SetFunctions(card=CARD, count=0))
    users = {one.address["lspci"]: one.user for one in (await here.list()).devices if one.physical == CARD}
    assert users == {"0000:01:10.0": None, "0000:01:10.2": "qemu-system-x86 (pid 4711)"}


@pytest.mark.parametrize("card", ["nonsense", str(at(SATA)), "0000:09:00.0", "../../etc"])
async def test_what_is_no_card_is_refused(tmp_path: Path, card: str) -> None:
    """Before anything is written."""
    kernel = host(tmp_path)
    with pytest.raises(BadInput):
        await devices_of(kernel).set_functions(d.SetFunctions(card=card, count=1))
    assert kernel.writes == []


async def test_a_function_is_told_of_and_shown(tmp_path: Path) -> None:
    """What its card was told is among what is told of it."""
    here = devices_of(host(tmp_path))
    await here.set_functions(d.SetFunctions(card=CARD, count=2))
    told = await here.set_function(d.SetFunction(function="01:10.0", mac="52:54:00:00:00:09", vlan=7))
    assert told.settings == FunctionSettings("52:54:00:00:00:09", 7, trust=False, spoofchk=True, max_rate_mbit=0)
    settings = [one.settings for one in (await here.list()).devices if one.physical == CARD]
    assert settings == [told.settings, FunctionSettings(NO_MAC, 0, trust=False, spoofchk=True, max_rate_mbit=0)]


async def test_what_a_guests_definition_says_is_not_set_by_hand(tmp_path: Path) -> None:
    """Its MAC and VLAN would be set back; the rest is the operator's."""
    kernel = host(tmp_path)
    told = cards(kernel)
    claims: list[DeviceClaim] = []
    here = HostDevices(kernel, told, DeviceLender(kernel, told), lambda: claims)
    await here.set_functions(d.SetFunctions(card=CARD, count=2))
    claims.append(DeviceClaim(at("0000:01:10.0"), GuestName("web-7"), 20, "rp0", wanted="nic0"))
    for asked in ({"mac": "52:54:00:00:00:09"}, {"vlan": 9}):
        with pytest.raises(Refused, match="is nic0 of guest web-7, which says its MAC and VLAN"):
            await here.set_function(d.SetFunction(function="01:10.0", **asked))
    assert (await here.set_function(d.SetFunction(function="01:10.0", trust=True))).settings == FunctionSettings(
        NO_MAC, 0, trust=True, spoofchk=True, max_rate_mbit=0
    )


async def test_a_card_that_is_kept_for_a_guest_is_left_alone(tmp_path: Path) -> None:
    """Before the guest has it open too: no functions are made of it, and it is told whose it is."""
    kernel = host(tmp_path)
    claim = DeviceClaim(at(CARD), GuestName("web-7"), 11, "rp0")
    here = HostDevices(kernel, cards(kernel), DeviceLender(kernel, cards(kernel)), lambda: [claim])
    with pytest.raises(Refused, match="0000:01:00.0 belongs to guest web-7"):
        await here.set_functions(d.SetFunctions(card=CARD, count=2))
    assert kernel.writes == []
    found = {one.address["lspci"]: one for one in (await here.list()).devices}
    assert found[CARD].user == "guest web-7"
    assert [one.code for one in found[CARD].blockers] == ["pci.in-use"]
