"""Whether the network knows where a guest is: waited for, announced again, and given up."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from tests.agent_measures.doubles import guest

from vmferry.agent import network_place
from vmferry.agent.network_place import Moved, wait_moved
from vmferry.core.errors import Unreachable
from vmferry.core.guest import NetworkKind, Nic

BRIDGED = replace(
    guest(), spec=replace(guest().spec, nics=(Nic(network=NetworkKind.BRIDGE, bridge="br0"),)), macs=("m",)
)


@dataclass
class Fabric:
    """A bridge that hears of the new place after so many announcements."""

    after: int
    away: bool = False
    announced: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)

    def learned(self, bridge: str, mac: str) -> str | None:
        self.asked.append((bridge, mac))
        return "uplink0" if self.announced >= self.after else "vftap3" if len(self.asked) < 3 else None

    async def announce(self) -> None:
        self.announced += 1
        if self.away:
            raise Unreachable("host host-b does not answer")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be impatient."""
    monkeypatch.setattr(network_place, "PATIENCE_S", (0.05, 0.05, 0.05))


@pytest.mark.parametrize(("after", "expected"), [(0, (True, 0)), (1, (True, 1)), (2, (True, 2)), (3, (False, 2))])
async def test_it_is_announced_until_it_is_heard(after: int, expected: tuple[bool, int]) -> None:
    """Not oftener than needed, and not for ever."""
    fabric = Fabric(after)
    moved = await wait_moved(BRIDGED, fabric.announce, learned=fabric.learned)
    assert moved is not None
    assert (moved.seen_ns is not None, moved.announced) == expected
    assert fabric.announced == expected[1]
    assert set(fabric.asked) == {("br0", "m")}


async def test_a_destination_that_does_not_answer_is_no_fault_of_the_move() -> None:
    """The guest may be heard all the same."""
    fabric = Fabric(2, away=True)
    moved = await wait_moved(BRIDGED, fabric.announce, learned=fabric.learned)
    assert moved is not None
    assert moved.seen_ns is not None


async def test_a_guest_on_no_bridge_is_not_looked_for() -> None:
    """Its network cards end in QEMU."""
    fabric = Fabric(0)
    assert await wait_moved(replace(BRIDGED, spec=replace(BRIDGED.spec, nics=(Nic(),))), fabric.announce) is None
    assert fabric.asked == []


async def test_a_bridge_that_is_gone_has_heard_of_nobody() -> None:
    """Somebody removed it: told in the report, and no error."""

    def gone(bridge: str, mac: str) -> str | None:
        raise FileNotFoundError(bridge)

    assert await wait_moved(BRIDGED, Fabric(9).announce, learned=gone) == Moved(None, 2)
