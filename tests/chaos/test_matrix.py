"""Some cells of the fault matrix on real QEMU; all of them: ./run bench matrix (docs/fault-matrix.md)."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from vmferry.core.handover.states import POSTCOPY_STATES, Side
from vmferry.lab.chaos.beat_watch import BeatWatch
from vmferry.lab.chaos.cell import Verdict, all_cells, cell_named
from vmferry.lab.chaos.runner import Chaos
from vmferry.lab.chaos.scene import HOSTS
from vmferry.lab.inside import socket_in
from vmferry.lab.network import Network
from vmferry.lab.registry import claim, destroy
from vmferry.qemu import userfault
from vmferry.sim.matrix import CELLS, PLACES

#: Every fault, and every state in which it is decided who owns the guest.
SHORT = (
    "source.precopy: destination QEMU",
    "source.pre-switchover: destination agent and QEMU",
    "source.switchover: source QEMU",
    "source.source-completed: source agent",
    "source.loaded: source agent and QEMU",
    "source.loaded: link cut shortly",
    "source.committed: source agent",
    "source.committed: link cut",
    "source.returning: source agent",
    "destination.loaded: destination agent",
    "destination.acquired: destination QEMU",
    "destination.starting: destination agent and QEMU",
    "source.postcopy-crossing continued: destination agent and QEMU",
    "source.postcopy-committed: source agent",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab() -> AsyncIterator[Chaos]:
    """A lab that is broken again and again, and replaced by a new one now and then."""
    async with Chaos() as made:
        yield made


@pytest.mark.real
@pytest.mark.root
@pytest.mark.timeout(180)
@pytest.mark.xdist_group("chaos")
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", SHORT)
async def test_a_fault_ends_as_it_was_foretold(lab: Chaos, name: str) -> None:
    """The guest ends where the cell says, never runs twice, is whole, and journals, agents and processes agree."""
    cell = cell_named(name)
    if cell.place.state in POSTCOPY_STATES and not userfault.DEVICE.exists():
        pytest.skip(f"no {userfault.DEVICE} on this machine")
    result = await lab.run_one(cell)
    assert result.verdict is Verdict.PASS, "\n".join([*result.complaints, *result.history])


def test_the_short_cells_have_every_fault() -> None:
    """No fault is left out of the short list, and every cell in it exists in the matrix."""
    cells = {cell.name: cell for cell in all_cells()}
    assert {cells[name].fault for name in SHORT} == set(CELLS)


def test_every_cell_says_beforehand_how_it_shall_end() -> None:
    """Each state of each side has every fault, and each of them at least one outcome that can be told from others."""
    cells = list(all_cells())
    assert len(cells) == len(CELLS) * sum(map(len, PLACES.values()))
    places = {str(Side.SOURCE), str(Side.DESTINATION), "held", "lost"}
    for cell in cells:
        assert {place for outcome in cell.expected() for place in outcome.split(", then ")} <= places, cell.name


@pytest.mark.parametrize(
    ("here", "there", "twice"),
    [
        ([1, 2, 3], [], None),
        ([1, 2, 3], [4, 5], None),
        ([1, 2, 3, 6], [4, 5], 1),
        ([], [4, 5], None),
        ([7, 8], [4, 5], 2),
    ],
)
def test_the_watch_sees_a_guest_that_runs_twice(here: list[int], there: list[int], twice: int | None) -> None:
    """A beat of the source after the first one of the destination is found; one before it is none."""
    watch = BeatWatch({})
    watch._beats = {HOSTS[Side.SOURCE]: here, HOSTS[Side.DESTINATION]: there}
    found = watch.twice(HOSTS[Side.SOURCE], HOSTS[Side.DESTINATION])
    assert (None if found is None else found.beats_here_after) == twice


@pytest.fixture
def namespace() -> Iterator[str]:
    """The namespace of a host whose loopback is up."""
    made = claim()
    try:
        network = Network(made, ("host-a",))
        network.create()
        yield network.namespace("host-a")
    finally:
        destroy(made)


@pytest.mark.root
def test_the_watch_hears_every_beat_whoever_listens(namespace: str) -> None:
    """Datagrams of one byte on a host's loopback are counted, with nobody at their port; longer ones are not."""
    with (
        BeatWatch({"host-a": namespace}) as watch,
        socket_in(namespace, socket.AF_INET, socket.SOCK_DGRAM) as guest,
    ):
        for size in (1, 1, 2, 1, 300):
            guest.sendto(bytes(size), ("127.0.0.1", 9))
        assert watch.runs_on() == []  # it asks from now on, and waits until all of before was collected
        assert watch.beats("host-a") == 3
