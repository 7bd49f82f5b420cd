"""A card of its own and a standby in a real guest, on real QEMUs: taken away, given back, whatever goes wrong.

No VFIO is needed for that: the function is an emulated card (e1000), which the guest joins with its standby as it does
a virtual function. What lends it is the fake; tests/nested/test_function_moves.py has the real thing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.conductor.fakes import HOST_A, HOST_B
from tests.conductor.functions import CARD, inventory
from tests.conductor.pair import GUEST, Host, running, wait_finished, wait_until
from tests.conductor.real import ask, end_of, home, make_pair, process_of, run_state_of, wait_booted

from vmferry.conductor import guest_devices
from vmferry.conductor.source import Source
from vmferry.core.capabilities import StreamWish
from vmferry.core.device_claims import DeviceClaim
from vmferry.core.errors import BadInput, Broken
from vmferry.core.guest import GuestSpec, IoPath, KernelBoot, NetworkKind, Nic
from vmferry.core.handover.states import SourceState
from vmferry.core.migratable import agreed
from vmferry.core.migration import RunState
from vmferry.core.units import MIB, Bytes, BytesPerSecond
from vmferry.lab.guests import GuestImage, build
from vmferry.lab.scenarios import wait_until as wait_for
from vmferry.lab.toolchain import cache_dir
from vmferry.qemu import guest_process
from vmferry.qemu.hot_plug import QemuPlugs
from vmferry.store.sqlite import SqliteJournal
from vmferry.testing.fake_plugs import FakeHostDevices
from vmferry.testing.fake_qemu import FakeLink

__all__ = ["home"]

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.timeout(300)]

MAC = "52:54:00:00:07:07"
PLAIN = StreamWish(encrypted=False)
SLOW = BytesPerSecond(4 * MIB)
#: The guest's cards, by driver, and what each belongs to; what the console echoes is no answer.
_LOOK = (
    "echo ca''rds $(for n in /sys/class/net/eth*; do d=$(readlink $n/device/driver); m=$(readlink $n/master);"
    " echo ${d##*/}:${m##*/}; done) end\n"
)


class EmulatedPlugs(QemuPlugs):
    """Plugs an emulated card in instead of a function."""

    broken = False  #: the next one cannot be had

    async def plug(self, claim: DeviceClaim) -> None:
        """Give the guest a card with the MAC that its function would have."""
        if EmulatedPlugs.broken:
            EmulatedPlugs.broken = False
            raise Broken("the card is broken")
        card = {"driver": "e1000", "id": claim.id, "bus": claim.port, "mac": MAC, "romfile": ""}
        await self._session.execute("device_add", card)


@pytest.fixture
def bridge() -> Iterator[str]:
    """A bridge on which nothing else is."""
    name = f"vft{os.getpid()}"[:15]
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    yield name
    subprocess.run(["ip", "link", "del", name], check=True)


@pytest.fixture(scope="module")
def linux() -> GuestImage:
    """The linux guest."""
    return build("linux", cache_dir())


@pytest.fixture
async def hosts(home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Host, Host]]:
    """Two hosts with a function each."""
    monkeypatch.setattr(guest_process, "QemuPlugs", EmulatedPlugs)
    made = make_pair(home)
    pair = made.hosts[HOST_A], made.hosts[HOST_B]
    link = FakeLink()
    for host in pair:
        host.devices, host.networks = FakeHostDevices(link, inventory(1), host.name), {"fabric": (CARD,)}
        host.build()
    for host in pair:
        host.devices.fabric = [other.devices for other in pair]
    async with running(*pair):
        yield pair
    for host in pair:
        assert isinstance(host.journal, SqliteJournal)
        host.journal.close()


def spec(linux: GuestImage, bridge: str, more: str = "") -> GuestSpec:
    """Return a guest that is to have a function, and a standby."""
    boot = KernelBoot(str(linux.kernel), str(linux.initrd), linux.append(mb=8, rate=1) + more)
    nic = Nic(IoPath.SRIOV_VF, NetworkKind.BRIDGE, bridge, MAC, physical_network="fabric")
    return GuestSpec(GUEST, Bytes(192 * MIB), boot, nics=(nic,), beat=True, control=True)


async def start(host: Host, guest: GuestSpec) -> None:
    """Run a guest, and wait until it has joined its function with its standby."""
    await host.guests.run(guest)
    await wait_booted(host)
    await wait_cards(host, 3)


async def cards(host: Host) -> list[str]:
    """Return the guest's cards, by driver and master; asked again, since a shell that begins hears nothing."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                return (await ask(host, _LOOK, "cards ")).split()[1:-1]


async def wait_cards(host: Host, count: int) -> None:
    """Wait until the guest has so many: the joined one, its standby, and perhaps its function."""
    expected = ["virtio_net:", "virtio_net:eth0", "e1000:eth0"][:count]

    async def has() -> bool:
        return await cards(host) == expected

    await wait_for(has, f"the guest on {host.name} has {expected}")


async def slowly(here: Host, there: Host) -> Source:
    """Begin a move that is in its first round, and stays there for seconds."""
    handover = await here.handovers.open(
        GUEST, there.name, downtime_limit_ms=None, bandwidth=SLOW, time_limit_s=None, stream=PLAIN
    )
    source = here.handovers.source(handover)
    assert source is not None
    await wait_until(lambda: source.state is SourceState.PRECOPY, "it is sending")
    return source


async def test_there_and_back(hosts: tuple[Host, Host], linux: GuestImage, bridge: str) -> None:
    """The guest joins each host's card with its standby, and runs on the standby alone on its way."""
    await start(hosts[0], spec(linux, bridge))
    for here, there in (hosts, hosts[::-1]):
        source = await slowly(here, there)
        assert await cards(here) == ["virtio_net:", "virtio_net:eth0"]
        await here.handovers.limit(source.request.handover, None)
        await wait_finished(here, there)
        assert source.state is SourceState.DONE
        await wait_cards(there, 3)
        assert here.journal.device_claims() == []


async def test_its_state_goes_along(hosts: tuple[Host, Host], linux: GuestImage, bridge: str) -> None:
    """As with a driver that knows a device's state: the guest has its card all the way, and never lets it go."""
    for host in hosts:
        host.devices.inventory = inventory(1, "mlx5_vfio_pci")
    await start(hosts[0], spec(linux, bridge))
    for here, there in (hosts, hosts[::-1]):
        row = here.journal.guest(GUEST)
        assert row is not None
        has = await here.given.migratable(await here.given.plugged(GUEST), ())
        here.migratable = agreed(has, await there.given.offers(row.guest), postcopy=False)
        assert [one.wanted for one in here.migratable] == ["nic0"]
        source = await slowly(here, there)
        assert await cards(here) == ["virtio_net:", "virtio_net:eth0", "e1000:eth0"]
        await here.handovers.limit(source.request.handover, None)
        await wait_finished(here, there)
        assert source.state is SourceState.DONE
        assert await cards(there) == ["virtio_net:", "virtio_net:eth0", "e1000:eth0"]
        assert here.journal.device_claims() == []


async def test_cancelled(hosts: tuple[Host, Host], linux: GuestImage, bridge: str) -> None:
    """The guest has its card again where it is."""
    here, there = hosts
    await start(here, spec(linux, bridge))
    source = await slowly(here, there)
    source.cancel()
    await end_of(here, source)
    await wait_cards(here, 3)
    assert there.journal.device_claims() == []


async def test_the_destination_dies(hosts: tuple[Host, Host], linux: GuestImage, bridge: str) -> None:
    """Likewise, when QEMU at the destination is killed in the first round."""
    here, there = hosts
    await start(here, spec(linux, bridge))
    source = await slowly(here, there)
    os.kill(process_of(there).record.pid, 9)
    await end_of(here, source)
    assert source.state is SourceState.ABORTED
    await wait_cards(here, 3)


async def test_the_agent_dies(hosts: tuple[Host, Host], linux: GuestImage, bridge: str) -> None:
    """The source's next agent steers on, and the guest has its card at the destination."""
    here, there = hosts
    await start(here, spec(linux, bridge))
    source = await slowly(here, there)
    await here.restart()
    await here.handovers.limit(source.request.handover, BytesPerSecond(1000 * MIB))
    await wait_finished(here, there)
    await wait_cards(there, 3)


async def test_a_guest_without_hot_plug(
    hosts: tuple[Host, Host], linux: GuestImage, bridge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never lets go: the move is given up in time, and it keeps its card, and runs."""
    monkeypatch.setattr(guest_devices, "LET_GO_WITHIN_S", 3.0)
    here, there = hosts
    await here.guests.run(spec(linux, bridge, " acpiphp.disable=1"))
    await wait_booted(here)
    await wait_until(lambda: bool(here.journal.device_claims()), "it has its card")
    source = await here.migrate(there)
    ended = await end_of(here, source)
    assert "has not let" in (ended.reason or "")
    assert await run_state_of(here) is RunState.RUNNING
    assert len(await process_of(here).plugs.plugged() & {here.journal.device_claims()[0].id}) == 1


async def test_a_paused_guest(hosts: tuple[Host, Host], linux: GuestImage, bridge: str) -> None:
    """Its system cannot let go; resumed, it moves."""
    here, there = hosts
    await start(here, spec(linux, bridge))
    await here.guests.pause(GUEST)
    with pytest.raises(BadInput, match="stands still"):
        await here.given.take_away(GUEST)
    await here.guests.resume(GUEST)
    await here.migrate(there)
    await wait_finished(here, there)
    await wait_cards(there, 3)


async def test_the_destinations_card_is_broken(hosts: tuple[Host, Host], linux: GuestImage, bridge: str) -> None:
    """The guest arrives all the same, degraded, and has its card when that can be had."""
    here, there = hosts
    await start(here, spec(linux, bridge))
    source = await slowly(here, there)
    EmulatedPlugs.broken = True
    await here.handovers.limit(source.request.handover, None)
    await wait_until(lambda: "the card is broken" in there.given.degraded(GUEST).get("nic0", ""), "it is degraded")
    await wait_finished(here, there)
    await wait_cards(there, 3)
    assert there.given.degraded(GUEST) == {}


async def test_a_guest_that_boots_moves(hosts: tuple[Host, Host], linux: GuestImage, bridge: str) -> None:
    """Before its system hears of cards: it lets go when it does, or the move is given up; it ends with its card."""
    here, there = hosts
    await here.guests.run(spec(linux, bridge))
    source = await here.migrate(there)
    await wait_finished(here, there)
    owner = there if source.state is SourceState.DONE else here
    await wait_booted(owner)
    await wait_cards(owner, 3)
