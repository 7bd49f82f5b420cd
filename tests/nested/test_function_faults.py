"""What can go wrong with a guest's virtual functions, on real kernels: told, and mended when it can be."""

from __future__ import annotations

import json

import pytest
from tests.nested.functions import COUNT, GUEST, MACS, fleet, functions_of, view, wait_carried, wait_seen

from vmferry.core.pci import PciAddress
from vmferry.lab.guest_plans import GUEST_ADDRESS
from vmferry.lab.nested import NestedFleet
from vmferry.lab.nested.sriov import SriovHost
from vmferry.lab.scenarios import wait_until

__all__ = ["fleet"]
pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.nested,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.xdist_group("nested"),
    pytest.mark.asyncio(loop_scope="session"),
]
#: In the guest's shell: its driver has the functions no more, and again.
_NO_DRIVER = (
    "for d in /sys/bus/pci/drivers/igbvf/0*; do echo ${d##*/} >/sys/bus/pci/drivers/igbvf/unbind; done; echo unbound"
)
_DRIVER = (
    'for d in /sys/bus/pci/devices/*; do [ "$(cat $d/device)" != 0x10ca ] || echo ${d##*/}'
    " >/sys/bus/pci/drivers/igbvf/bind; done; echo bound"
)
#: It turns the power of the first one's slot off.
_EJECT = (
    "for s in /sys/bus/pci/slots/*; do d=/sys/bus/pci/devices/$(cat $s/address).0;"
    ' if [ -e $d ] && [ "$(cat $d/device)" = 0x10ca ]; then echo 0 >$s/power; break; fi; done; echo ejected'
)


def card_of(fleet: NestedFleet, host: str = "host-a") -> PciAddress:
    """Return where the card is on a host."""
    found = fleet.hosts[host]
    assert isinstance(found, SriovHost)
    return found.cards[0]


async def interface(fleet: NestedFleet) -> str:
    """Return the name of the card's interface."""
    return (await fleet.hosts["host-a"].must("ls", f"{card_of(fleet).sysfs}/net")).strip()


async def answers(fleet: NestedFleet) -> bool:
    """Return whether the guest answers the other host."""
    ran = await fleet.hosts["host-b"].run("busybox", "ping", "-c", "5", "-W", "2", GUEST_ADDRESS)
    return ran.exit_code == 0


async def wait_degraded(fleet: NestedFleet, word: str) -> None:
    """Wait until the guest is told as degraded, in such words; it is pinged, so that it speaks."""

    async def is_told() -> bool:
        await answers(fleet)
        return any(word in why for why in (await view(fleet))["degraded"].values())

    await wait_until(is_told, f"the guest is degraded: {word}", timeout_s=240)


async def whole(fleet: NestedFleet) -> None:
    """Wait until the guest's functions carry its traffic; its memory is right."""
    await wait_carried(fleet, fleet.hosts["host-b"])
    await wait_seen(fleet, GUEST, "host-a", MACS)
    assert await answers(fleet)
    assert (await fleet.oracle(GUEST, "host-a", 120)).startswith("oracle clean")


async def test_another_address_is_set_by_somebody(fleet: NestedFleet) -> None:
    """The card is told the guest's own again, within the time of one look."""
    await whole(fleet)
    users = [user for user, _ in await functions_of(fleet, "host-a")]
    number, name = users.index(f"guest {GUEST}"), await interface(fleet)
    before = await functions_of(fleet, "host-a")
    await fleet.hosts["host-a"].must("ip", "link", "set", name, "vf", str(number), "mac", "52:54:00:00:00:99")

    async def is_told_again() -> bool:
        return await functions_of(fleet, "host-a") == before

    await wait_until(is_told_again, "the card has the guest's address", timeout_s=60)
    assert "was set otherwise by others" in await fleet.log("host-a")
    await whole(fleet)


async def test_the_guest_loses_its_driver(fleet: NestedFleet) -> None:
    """It goes on through its standbys and is told as degraded; not any more when the driver is there again."""
    await whole(fleet)
    await fleet.ask_shell(GUEST, "host-a", _NO_DRIVER, "unbound")
    await wait_degraded(fleet, "its system has no driver")
    assert await answers(fleet)
    assert (await view(fleet))["carriers"]["nic0"] == "standby"
    await fleet.ask_shell(GUEST, "host-a", _DRIVER, "bound")
    await whole(fleet)


async def test_the_guest_ejects_one_by_itself(fleet: NestedFleet) -> None:
    """Nobody asked it to: it is given one again."""
    await whole(fleet)
    given = (await fleet.log("host-a")).count("guest has its device")
    await fleet.ask_shell(GUEST, "host-a", _EJECT, "ejected")

    async def is_given() -> bool:
        return (await fleet.log("host-a")).count("guest has its device") == given + 1

    await wait_until(is_given, "the guest has a function again", timeout_s=240)
    await whole(fleet)


async def test_their_number_is_changed_by_somebody(fleet: NestedFleet) -> None:
    """All are gone: the guest goes on through its standbys, degraded, and has functions again when there are some."""
    await whole(fleet)
    await fleet.hosts["host-a"].shell(f"echo 0 >{card_of(fleet).sysfs}/sriov_numvfs", 120)
    await wait_degraded(fleet, "has no functions")
    assert await answers(fleet)
    assert (await view(fleet))["devices"] == []
    await fleet.must("vf", "create", "host-a", str(card_of(fleet)), str(COUNT))
    await whole(fleet)


async def test_none_are_free_at_the_destination(fleet: NestedFleet) -> None:
    """The check says so, the move is refused, and the guest keeps its own."""
    await whole(fleet)
    had = (await view(fleet))["devices"]
    card = str(card_of(fleet, "host-b"))
    await fleet.must("vf", "release", "host-b", card)
    checked = await fleet.cli("check", GUEST, "host-b", "--json")
    assert [row["code"] for row in json.loads(checked.stdout)["blockers"]] == ["device.no-function"] * 2
    assert (await fleet.cli("migrate", GUEST, "host-b", "--plain")).exit_code == 3
    assert (await view(fleet))["devices"] == had
    await fleet.must("vf", "create", "host-b", card, str(COUNT))
    await whole(fleet)
