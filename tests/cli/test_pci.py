"""`vmferry pci`, `pf` and `vf`: what is printed of a host's devices, as its agent tells them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import FakeFleet, Ran
from tests.cli.test_domains import check_golden
from tests.hostdev.kit import CARD, cards, host

from vmferry.agent import devices
from vmferry.agent.devices import HostDevices
from vmferry.api import device_models as d
from vmferry.hostdev import DeviceLender

Vmferry = Callable[..., Ran]


@pytest.fixture(autouse=True)
def here(fleet: FakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostDevices:
    """An agent whose card has two virtual functions, one of them with a guest; a mounted disk, and no list of names."""
    monkeypatch.setattr(devices, "disk_uses", lambda: {"8:1": "mounted at /"})
    monkeypatch.setattr(devices, "name_of", lambda vendor, device: "Emulated card" if device == 0x10C9 else "")
    kernel = host(tmp_path / "sys")
    kernel.set_up(CARD, "ens1", up=True)
    found = HostDevices(kernel, cards(kernel), DeviceLender(kernel, cards(kernel)), list)
    asyncio.run(found.set_functions(d.SetFunctions(card=CARD, count=2)))
    monkeypatch.setattr(devices, "holders", lambda: {"102": "qemu-system-x86 (pid 4711)"})
    answers = fleet.agents["host-a"].answers
    answers["GET", "/v1/pci"] = lambda _: (200, asyncio.run(found.list()).model_dump(mode="json"))
    answers["POST", "/v1/pci/functions"] = lambda body: (
        200,
        asyncio.run(found.set_functions(d.SetFunctions(**body))).model_dump(mode="json"),
    )
    answers["POST", "/v1/pci/function"] = lambda body: (
        200,
        asyncio.run(found.set_function(d.SetFunction(**body))).model_dump(mode="json"),
    )
    return found


@pytest.mark.parametrize(
    ("words", "golden"),
    [
        (("pci", "list", "host-a"), "pci-list.txt"),
        (("pci", "list", "host-a", "--groups"), "pci-groups.txt"),
        (("pci", "show", "host-a", "00:1f.2"), "pci-show.txt"),
        (("pci", "show", "host-a", "pci_0000_01_10_2"), "pci-show-function.txt"),
        (("pf", "list", "host-a"), "pf-list.txt"),
        (("pf", "show", "host-a", "01:00.0"), "pf-show.txt"),
    ],
)
def test_what_people_see(vmferry: Vmferry, words: tuple[str, ...], golden: str) -> None:
    """Tables and drawings."""
    ran = vmferry(*words)
    assert (ran.exit_code, ran.err) == (0, "")
    check_golden(golden, ran.out)


def test_what_programs_see(vmferry: Vmferry) -> None:
    """The same, with every form of the address."""
    listed = json.loads(vmferry("pci", "list", "host-a", "--json").out)
    shown = json.loads(vmferry("pci", "show", "host-a", "00:1f.2", "--json").out)
    assert {"host": "host-a", **next(one for one in listed["devices"] if one["disks"] == ["sda"])} == shown
    assert shown["address"]["xml"] == "<address domain='0x0000' bus='0x00' slot='0x1f' function='0x2'/>"
    cards = json.loads(vmferry("pf", "list", "host-a", "--json").out)["cards"]
    assert [one["functions_most"] for one in cards] == [7, 7]
    card = json.loads(vmferry("pf", "show", "host-a", CARD, "--json").out)
    assert [one["user"] for one in card["functions"]] == [None, "qemu-system-x86 (pid 4711)"]


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("pci", "show", "host-a", "0000:0a:00.0"), 2, "Host host-a has no PCI device 0000:0a:00.0"),
        (("pci", "show", "host-a", "card"), 2, "PCI address 'card' is none"),
        (("pf", "show", "host-a", "00:1f.2"), 2, "0000:00:1f.2 of host-a makes no virtual functions"),
        (("vf", "create", "host-a", "nowhere", "1"), 2, "PCI address 'nowhere' is none"),
        (("vf", "create", "host-a", CARD, "0"), 2, "Invalid value for 'N'"),
        (("pci", "list", "host-z"), 2, "host-z"),
        (("vf", "set", "host-a", "01:10.0", "--mac", "no"), 2, "MAC address 'no' is none of a card"),
        (("vf", "set", "host-a", "01:10.0", "--vlan", "4095"), 2, "Invalid value for '--vlan'"),
    ],
)
def test_bad_input_is_told(vmferry: Vmferry, words: tuple[str, ...], code: int, error: str) -> None:
    """What was wrong, and nothing on standard output."""
    ran = vmferry(*words)
    assert (ran.exit_code, ran.out) == (code, "")
    assert error in ran.err


def test_functions_are_made(vmferry: Vmferry, fleet: FakeFleet) -> None:
    """On a card that has none; the agent is asked for the plain address."""
    ran = vmferry("vf", "create", "host-a", "/sys/bus/pci/devices/0000:02:00.0", "1")
    assert ran.out == "0000:02:00.0 of host-a has virtual functions: 0000:02:10.0\n"
    asked = [body for method, _, body in fleet.agents["host-a"].requests if method == "POST"]
    assert asked == [{"card": "0000:02:00.0", "count": 1}]
    ran = vmferry("vf", "release", "host-a", "02:00.0", "--json")
    assert json.loads(ran.out)["functions"] == []


def test_a_function_is_told_of(vmferry: Vmferry, fleet: FakeFleet) -> None:
    """Only what is given is asked for."""
    ran = vmferry("vf", "set", "host-a", "01:10.0", "--mac", "52:54:00:00:00:09", "--vlan", "7", "--no-spoofchk")
    assert ran.out == "0000:01:10.0 of host-a: MAC 52:54:00:00:00:09, VLAN 7, not trusted, not checked\n"
    asked = [body for method, _, body in fleet.agents["host-a"].requests if method == "POST"]
    assert asked == [{"function": "0000:01:10.0", "mac": "52:54:00:00:00:09", "vlan": 7, "spoofchk": False}]
    ran = vmferry("vf", "set", "host-a", "01:10.0", "--rate", "100", "--trust")
    assert ran.out.endswith("VLAN 7, trusted, not checked, at most 100 Mbit/s\n")
