"""`vmferry device`: what is printed of a libvirt host's devices; on libvirt's own imitation of a host."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Ran
from tests.cli.test_domains import check_golden

from vmferry.cli.libvirt_hosts import LibvirtHost

Vmferry = Callable[..., Ran]
HOST = Path(__file__).parents[1] / "libvirt/devices/host.xml"


@pytest.fixture(autouse=True)
def host_a(monkeypatch: pytest.MonkeyPatch) -> None:
    """One libvirt host."""
    uri = f"test://{HOST}"
    monkeypatch.setattr("vmferry.cli.devices.load_hosts", lambda: {"host-a": LibvirtHost("host-a", uri, uri)})


def test_devices_are_listed(vmferry: Vmferry) -> None:
    """One line each; as JSON with every form of the address."""
    ran = vmferry("device", "list", "host-a")
    assert (ran.exit_code, ran.err) == (0, "")
    check_golden("device-list.txt", ran.out)
    rows = json.loads(vmferry("device", "list", "host-a", "--json").out)["devices"]
    assert [row["address"]["nodedev"] for row in rows][:2] == ["pci_0000_00_02_0", "pci_0000_03_00_0"]
    assert rows[1]["functions"] == ["0000:03:10.0", "0000:03:10.2"]
    assert rows[2]["physical"] == "0000:03:00.0"


@pytest.mark.parametrize(
    ("address", "golden"),
    [
        ("pci_0000_03_10_0", "device-show.txt"),
        ("<address domain='0' bus='3' slot='0' function='0'/>", "device-show-card.txt"),
    ],
)
def test_one_device_in_all_forms(vmferry: Vmferry, address: str, golden: str) -> None:
    """Whichever form was given; what keeps it from a guest is told."""
    ran = vmferry("device", "show", "host-a", address)
    assert ran.exit_code == 0
    check_golden(golden, ran.out)


def test_a_blocked_device_stays_with_its_host(vmferry: Vmferry) -> None:
    """Every reason, and what to do; the daemon is not even asked to detach it."""
    ran = vmferry("device", "detach", "host-a", "03:00.0")
    assert ran.exit_code == 3
    assert "0000:03:00.0 cannot be taken from host-a" in ran.err
    assert "device.has-functions: 0000:03:00.0 of host-a has 2 virtual functions" in ran.err
    shown = json.loads(vmferry("device", "show", "host-a", "03:10.2", "--json").out)
    assert [blocker["code"] for blocker in shown["blockers"]] == ["device.no-iommu"]


@pytest.mark.parametrize("command", ["detach", "reattach"])
def test_what_libvirt_cannot_do_is_told(vmferry: Vmferry, command: str) -> None:
    """The imitation has devices and does not move them."""
    ran = vmferry("device", command, "host-a", "0000:03:10.0")
    assert ran.exit_code == 6
    assert "0000:03:10.0" in ran.err
    assert "not supported" in ran.err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("list", "host-z"), 2, "host-z is no libvirt host; `vmferry host add host-z --libvirt URI`"),
        (("show", "host-a", "nowhere"), 2, "PCI address 'nowhere' is none"),
        (("show", "host-a", "0000:09:00.0"), 2, "host-a has no PCI device 0000:09:00.0"),
        (("plug", "host-a", "web-7", "03:10.0", "--teaming", "ua-standby"), 2, "with --mac"),
        (("plug", "host-a", "web-7", "03:10.0", "--mac", "52:54"), 2, "MAC address '52:54'"),
        (("plug", "host-a", "db-1", "03:10.0"), 2, "domain db-1"),
        (("plug", "host-a", "web-7", "03:10.2"), 3, "device.no-iommu"),
        (("unplug", "host-a", "web-7", "03:10.0"), 2, "web-7 does not have 0000:03:10.0"),
        (("unplug", "host-a", "web-7", "03:10.0", "--within", "soon"), 2, "--within"),
    ],
)
def test_what_cannot_be(vmferry: Vmferry, words: tuple[str, ...], code: int, told: str) -> None:
    """The error says what there is instead."""
    ran = vmferry("device", *words)
    assert (ran.exit_code, told in ran.err) == (code, True), ran
