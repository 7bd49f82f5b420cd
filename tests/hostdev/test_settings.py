"""What a card is told of a virtual function: all of it or nothing."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from tests.hostdev.kit import CARD, NVME, at, cards, host

from vmferry.core.errors import BadInput, Broken, NotFound, Refused
from vmferry.core.functions import FunctionSettings
from vmferry.core.pci_devices import Inventory
from vmferry.hostdev import Known, read_inventory, read_settings, set_function, set_functions
from vmferry.testing.fake_cards import FakeCards

VF = at("0000:01:10.2")
MAC = "52:54:00:00:00:09"


def there(root: Path, holders: dict[str, str] | None = None) -> tuple[FakeCards, Inventory]:
    """Return a card with two functions."""
    kernel = host(root)
    told = cards(kernel)
    set_functions(kernel, told, at(CARD), 2)
    return told, read_inventory(kernel, Known(holders=holders or {}))


def test_all_that_is_asked_for_is_set_and_the_rest_stays(tmp_path: Path) -> None:
    """By the function's number at its card's interface."""
    told, found = there(tmp_path)
    now = set_function(told, found, VF, FunctionSettings(mac=MAC, vlan=100, trust=True))
    assert now == FunctionSettings(MAC, 100, trust=True, spoofchk=True, max_rate_mbit=0)
    assert [(card, number, name) for card, number, name, _ in told.writes] == [
        ("ens1", 1, "mac"),
        ("ens1", 1, "vlan"),
        ("ens1", 1, "trust"),
    ]
    assert read_settings(told, found, at("0000:01:10.0")).vlan == 0


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (
            errno.EOPNOTSUPP,
            Refused,
            "Interface ens1 cannot set trust True of virtual function 0000:01:10.2: its driver",
        ),
        (
            errno.EIO,
            Broken,
            "Interface ens1 did not set trust True of virtual function 0000:01:10.2: Input/output error",
        ),
    ],
)
def test_a_card_that_does_not_take_one_has_what_it_had(
    tmp_path: Path, number: int, kind: type[Exception], text: str
) -> None:
    """And is told what was set already, backwards."""
    told, found = there(tmp_path)
    before = read_settings(told, found, VF)
    told.refusing["trust"] = number
    with pytest.raises(kind, match=text):
        set_function(told, found, VF, FunctionSettings(mac=MAC, vlan=100, trust=True, max_rate_mbit=5))
    assert read_settings(told, found, VF) == before
    assert [name for _, _, name, _ in told.writes] == ["mac", "vlan", "trust", "vlan", "mac"]


def test_a_function_in_use_keeps_its_mac(tmp_path: Path) -> None:
    """Its driver would not see another; other settings are the card's own."""
    told, found = there(tmp_path, {"102": "qemu-system-x86 (pid 4711)"})
    with pytest.raises(Refused, match=r"belongs to qemu-system-x86 \(pid 4711\)"):
        set_function(told, found, VF, FunctionSettings(mac=MAC, trust=True))
    assert told.writes == []
    assert set_function(told, found, VF, FunctionSettings(trust=True)).trust


@pytest.mark.parametrize(
    ("address", "error", "text"),
    [
        (CARD, BadInput, "is no virtual function"),
        (NVME, BadInput, "is no virtual function"),
        ("0000:01:10.4", NotFound, "no PCI device 0000:01:10.4"),
    ],
)
def test_what_is_no_function(tmp_path: Path, address: str, error: type[Exception], text: str) -> None:
    """Nothing is written."""
    told, found = there(tmp_path)
    with pytest.raises(error, match=text):
        set_function(told, found, at(address), FunctionSettings(vlan=1))
    with pytest.raises(BadInput, match="Nothing was asked for"):
        set_function(told, found, VF, FunctionSettings())
    assert told.writes == []


def test_a_card_without_an_interface(tmp_path: Path) -> None:
    """Its functions cannot be told anything."""
    kernel = host(tmp_path)
    set_functions(kernel, cards(kernel), at(CARD), 2)
    shutil.rmtree(tmp_path / "bus/pci/devices" / CARD / "net/ens1")
    with pytest.raises(Refused, match=r"Card 0000:01:00.0 of virtual function 0000:01:10.2 has no network interface"):
        read_settings(cards(kernel), read_inventory(kernel), VF)


def test_a_card_that_says_nothing(tmp_path: Path) -> None:
    """It vanished, or its driver does not tell."""
    _, found = there(tmp_path)
    nobody = FakeCards(host(tmp_path / "other"), {})
    with pytest.raises(Broken, match="Interface ens1 says nothing of virtual function"):
        read_settings(nobody, found, VF)


@pytest.mark.parametrize("mac", ["52:54:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "52-54-00-00-00-09", ""])
def test_what_is_no_mac(mac: str) -> None:
    """Also those of groups, which no card has."""
    with pytest.raises(BadInput, match="is none of a card"):
        FunctionSettings(mac=mac)


@pytest.mark.parametrize(("vlan", "rate"), [(-1, None), (4095, None), (None, -1), (None, 10**7)])
def test_what_is_no_vlan_or_rate(vlan: int | None, rate: int | None) -> None:
    """Within what the card can take."""
    with pytest.raises(BadInput, match="is none; it is 0 to"):
        FunctionSettings(vlan=vlan, max_rate_mbit=rate)
