"""Drivers and virtual functions: what is asked for happens, or everything is as before."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.hostdev.kit import CARD, NVME, OLD, SOUND, at, cards, host

from vmferry.core.errors import BadInput, Broken, NotFound, Refused
from vmferry.hostdev import bind, give_back, read_inventory, set_functions
from vmferry.testing.fake_sysfs import FakeKernel

VF = at("0000:01:10.0")


def state(kernel: FakeKernel) -> dict[str, tuple[str | None, str | None, int]]:
    """Return each device's driver, override and number of functions."""
    found = read_inventory(kernel).devices.values()
    return {str(one.address): (one.driver, one.override, one.sriov.count if one.sriov else 0) for one in found}


def test_there_and_back(tmp_path: Path) -> None:
    """VFIO has it, then the host's own driver; each twice, which changes nothing."""
    kernel = host(tmp_path)
    before = state(kernel)
    for _ in range(2):
        bind(kernel, at(NVME))
        assert state(kernel)[NVME] == ("vfio-pci", "vfio-pci", 0)
    for _ in range(2):
        assert give_back(kernel, at(NVME)) == "nvme"
        assert state(kernel) == before


def test_a_device_of_the_host_is_left_where_it_is(tmp_path: Path) -> None:
    """Nothing is written for what is there already."""
    kernel = host(tmp_path)
    assert give_back(kernel, at(NVME)) == "nvme"
    assert kernel.writes == []


@pytest.mark.parametrize(
    ("case", "why", "fix"),
    [
        ("no iommu", "its driver is none", "it is in no IOMMU group, without which VFIO takes no device"),
        ("not loaded", "its driver is none", "`modprobe vfio-pci`"),
        ("refuses", "its driver is none", "see `dmesg`"),
    ],
)
def test_a_driver_that_does_not_take_it_leaves_all_as_before(tmp_path: Path, case: str, why: str, fix: str) -> None:
    """And says who has it."""
    kernel = host(tmp_path, iommu=case != "no iommu", vfio=case != "not loaded")
    if case == "refuses":
        kernel.refusing.add("vfio-pci")
    before = state(kernel)
    with pytest.raises(Broken) as caught:
        bind(kernel, at(NVME))
    assert caught.value.what == f"PCI device {NVME} does not go to vfio-pci: {why}; nvme has it now"
    assert caught.value.fix == fix
    assert state(kernel) == before


def test_a_driver_that_does_not_come_back_is_told(tmp_path: Path) -> None:
    """The truth, not what was wished for."""
    kernel = host(tmp_path)
    kernel.refusing |= {"vfio-pci", "nvme"}
    with pytest.raises(Broken, match="no driver has it now"):
        bind(kernel, at(NVME))


def test_no_such_device(tmp_path: Path) -> None:
    """Also one that was pulled out."""
    kernel = host(tmp_path)
    kernel.vanish(SOUND)
    for call in (bind, give_back):
        with pytest.raises(NotFound, match="no PCI device 0000:00:1b.0"):
            call(kernel, at(SOUND))
    with pytest.raises(NotFound):
        set_functions(kernel, cards(kernel), at(SOUND), 1)


def test_functions_are_made_changed_and_ended(tmp_path: Path) -> None:
    """From one number to another by way of none; no driver of the host takes them."""
    kernel = host(tmp_path)
    for count in (2, 2, 5, 0, 0, 7):
        made = set_functions(kernel, cards(kernel), at(CARD), count)
        assert (made.count, len(made.functions)) == (count, count)
    assert [one.driver for one in read_inventory(kernel).devices.values() if one.physical] == [None] * 7


@pytest.mark.parametrize("count", [0, 1, 3])
def test_functions_in_use_are_not_ripped_out(tmp_path: Path, count: int) -> None:
    """Whatever number they were to become, and who has them is told."""
    kernel = host(tmp_path)
    set_functions(kernel, cards(kernel), at(CARD), 2)
    before, kernel.writes = state(kernel), []
    with pytest.raises(Refused) as caught:
        set_functions(kernel, cards(kernel), at(CARD), count, {"101": "qemu-system-x86 (pid 4711)"})
    assert "all of which would end, and 0000:01:10.0 belongs to qemu-system-x86 (pid 4711)" in str(caught.value)
    assert (state(kernel), kernel.writes) == (before, [])


@pytest.mark.parametrize(("address", "count"), [(CARD, 8), (CARD, -1), (NVME, 1), (str(VF), 1), (OLD, 0)])
def test_what_cannot_be_asked_for(tmp_path: Path, address: str, count: int) -> None:
    """Too many, or of what makes none: nothing is written."""
    kernel = host(tmp_path)
    set_functions(kernel, cards(kernel), at(CARD), 2)
    kernel.writes = []
    with pytest.raises(BadInput):
        set_functions(kernel, cards(kernel), at(address), count)
    assert kernel.writes == []


def test_a_kernel_that_makes_no_more_leaves_the_number_told(tmp_path: Path) -> None:
    """Those there were are gone on the way, and it does not make them again: the error says how many there are."""
    kernel = host(tmp_path)
    set_functions(kernel, cards(kernel), at(CARD), 2)
    kernel.refusing.add("sriov")
    with pytest.raises(Broken, match=r"left no room for them, .*; it has none now, and had 2"):
        set_functions(kernel, cards(kernel), at(CARD), 3)


def test_a_card_whose_driver_is_gone(tmp_path: Path) -> None:
    """It makes none, and why is told."""
    kernel = host(tmp_path)
    bind(kernel, at(CARD))
    with pytest.raises(Broken, match="makes no virtual functions, or none has it"):
        set_functions(kernel, cards(kernel), at(CARD), 1)


def own(kernel: FakeKernel, address: str, driver: str = "igbvf") -> None:
    """Let the host's own driver have a function, which it would not take by itself."""
    bind(kernel, at(address), driver)
    kernel.write(f"bus/pci/devices/{address}/driver_override", "\n")


@pytest.mark.parametrize(
    ("up", "master", "used"),
    [
        (True, None, "is the host's ens9, which is up"),
        (False, "br0", "is the host's ens9, which is up or belongs to a bridge"),
        (None, None, "belongs to driver igbvf of the host, and shows no interface here"),
    ],
)
def test_functions_that_the_host_uses_stay(tmp_path: Path, up: bool | None, master: str | None, used: str) -> None:
    """Its own interface, also one in a bridge, and one that a container has taken out of sight."""
    kernel = host(tmp_path)
    set_functions(kernel, cards(kernel), at(CARD), 2)
    own(kernel, str(VF))
    if up is not None:
        kernel.add_net(str(VF), "ens9", up=up, master=master)
    with pytest.raises(Refused, match=used):
        set_functions(kernel, cards(kernel), at(CARD), 0)
    assert state(kernel)[CARD] == ("igb", None, 2)


def test_an_interface_of_a_function_that_nobody_uses_is_not_in_the_way(tmp_path: Path) -> None:
    """As a machine has it whose drivers take each function."""
    kernel = host(tmp_path)
    set_functions(kernel, cards(kernel), at(CARD), 1)
    own(kernel, str(VF))
    kernel.add_net(str(VF), "ens9")
    assert set_functions(kernel, cards(kernel), at(CARD), 0).count == 0


def test_a_driver_that_makes_fewer_than_it_is_asked_for_is_told(tmp_path: Path) -> None:
    """The kernel took the number; and those that there were are there again, with what their card was told."""
    kernel = host(tmp_path)
    told = cards(kernel)
    set_functions(kernel, told, at(CARD), 2)
    told.write("ens1", 1, "vlan", 7)
    kernel.most = 2
    with pytest.raises(Broken, match=r"does not make 5 virtual functions: .* made others; it has 2 now, and had 2"):
        set_functions(kernel, told, at(CARD), 5)
    assert [told.read("ens1", number).vlan for number in (0, 1)] == [0, 7]  # type: ignore[union-attr]


def test_after_a_failure_the_hosts_drivers_take_functions_as_before(tmp_path: Path) -> None:
    """What was switched off for new ones is as it was."""
    kernel = host(tmp_path)
    kernel.refusing.add("sriov")
    with pytest.raises(Broken):
        set_functions(kernel, cards(kernel), at(CARD), 2)
    assert kernel.read(f"bus/pci/devices/{CARD}/sriov_drivers_autoprobe") == "1"


def test_a_driver_that_has_its_device_by_name_is_not_sent_away(tmp_path: Path) -> None:
    """`driverctl set-override` leaves such devices: the disk goes on, and only the name goes."""
    kernel = host(tmp_path)
    kernel.write(f"bus/pci/devices/{NVME}/driver_override", "nvme\n")
    kernel.writes = []
    assert give_back(kernel, at(NVME)) == "nvme"
    assert [path.rpartition("/")[2] for path, _ in kernel.writes] == ["driver_override"]
    assert state(kernel)[NVME] == ("nvme", None, 0)


@pytest.mark.parametrize("call", [bind, give_back])
def test_a_device_that_a_program_has_stays_where_it_is(tmp_path: Path, call: Callable[..., object]) -> None:
    """Its driver would wait until that program lets go."""
    kernel = host(tmp_path)
    bind(kernel, at(NVME))
    kernel.writes = []
    words = {"driver": "nvme"} if call is bind else {}
    with pytest.raises(Refused, match="belongs to qemu"):
        call(kernel, at(NVME), holders={"6": "qemu-system-x86 (pid 4711)"}, **words)
    assert kernel.writes == []


def test_a_kernel_that_does_not_look_for_a_driver_leaves_the_device_with_vfio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses while a group has an owner: everything is as before."""
    kernel = host(tmp_path)
    bind(kernel, at(NVME))
    probe, refused = kernel._probe, [True]

    def refuse(address: str) -> None:
        if refused:
            refused.clear()
            raise OSError(errno.EBUSY, "busy")
        probe(address)

    monkeypatch.setattr(kernel, "_probe", refuse)
    with pytest.raises(Broken, match="busy; vfio-pci has it now"):
        give_back(kernel, at(NVME))
    assert state(kernel)[NVME] == ("vfio-pci", "vfio-pci", 0)
