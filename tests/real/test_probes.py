"""Probes between two real agents, over links of a known rate, and beside a move."""

from __future__ import annotations

import asyncio
import statistics
from contextlib import AsyncExitStack

import pytest

from vmferry.api.models import LinkView
from vmferry.core.errors import Refused
from vmferry.core.progress import Outcome
from vmferry.core.units import MIB, BytesPerSecond
from vmferry.lab.guest_plans import GuestPlan, micro_guest
from vmferry.lab.hosts import Lab
from vmferry.lab.scenarios import empty, migrate, move, remove, started, wait_finished, wait_state, wait_until

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

MBIT = 125_000


async def probe(lab: Lab) -> LinkView:
    """Measure the way from host-a to host-b."""
    return LinkView.model_validate(await lab.hosts["host-a"].api.post("/v1/links/probe", {"destination": "host-b"}))


async def probed(lab: Lab) -> float:
    """Return what a probe saw, in bytes per second."""
    link = await probe(lab)
    assert link.measured is not None
    assert not link.measured.is_least
    return link.measured.bytes_per_second


@pytest.mark.parametrize("mbit", [100, 1000])
async def test_a_limited_link_is_measured_as_it_is(lab: Lab, mbit: int) -> None:
    """Within 10 % of what the link gives, whatever its device says and however full its bucket was."""
    assert lab.network is not None
    lab.network.limit(BytesPerSecond(mbit * MBIT))
    try:
        rates = []
        for _ in range(3):
            await asyncio.sleep(0.1)  # the bucket is full again
            rates.append(await probed(lab))
        assert statistics.median(rates) == pytest.approx(mbit * MBIT, rel=0.1)
        link = await probe(lab)
        assert (link.told_by, link.limited_by) == ("measured", "device")
        assert link.limit is not None
        assert link.bandwidth is not None
        assert link.limit > link.bandwidth
        told = await lab.must("host-a", "host", "probe", "host-a", "host-b")
        assert told.startswith("link from host-a to host-b: ")
        assert "MiB/s, measured 0 s ago, round trip " in told
    finally:
        lab.network.limit(None)


async def test_the_agents_answer_others_meanwhile(lab: Lab) -> None:
    """While a slow link is full of a probe both agents answer others, over the same link."""
    assert lab.network is not None
    lab.network.limit(BytesPerSecond(10 * MBIT))  # a probe takes a second there
    try:
        async with AsyncExitStack() as kept:
            for host in lab.hosts.values():  # what is asked is whether they answer, not how fast they shake hands
                await kept.enter_async_context(host.api.kept_open())
            probing = asyncio.create_task(probe(lab))
            answered = 0
            while not probing.done():
                for host in lab.hosts.values():
                    await host.api.get("/v1/handovers")
                answered += 1
            await probing
        assert answered > 3
    finally:
        lab.network.limit(None)


async def test_check_shows_it_and_auto_compresses_for_it(lab: Lab) -> None:
    """A fast device before a slow way: what was measured decides, is told with its age, and limits nothing."""
    assert lab.network is not None
    lab.network.limit(BytesPerSecond(100 * MBIT))
    try:
        await probe(lab)
        guest = await started(lab, GuestPlan("micro", memory_mib=64, working_set_mib=32, rate=1))
        told = await lab.must("host-a", "check", guest.name, "host-b")
        assert "link from host-a to host-b: 11." in told
        assert "MiB/s, measured " in told
        leg = await move(lab, guest, "host-b", {"compression": "auto"})
        assert leg.report.outcome == Outcome.MOVED
        assert leg.report.compression_why is not None
        assert "of memory instead of 11." in leg.report.compression_why
        await remove(lab, guest)
    finally:
        lab.network.limit(None)
        await empty(lab)


async def test_a_move_goes_first(lab: Lab) -> None:
    """While a guest moves both hosts refuse probes, in either direction; afterwards they serve them."""
    guest = await started(lab, micro_guest())
    hold = lab.hosts["host-a"].hold_dir / "source.precopy"
    hold.touch()
    try:
        handover = await migrate(lab, guest, "host-b")
        await wait_state(lab, "host-a", handover, "precopy")
        for source, destination in (("host-a", "host-b"), ("host-b", "host-a")):
            with pytest.raises(Refused, match=f"Guest {guest.name} is moving"):
                await lab.hosts[source].api.post("/v1/links/probe", {"destination": destination})
    finally:
        hold.unlink()
    view = await wait_finished(lab, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == Outcome.MOVED
    guest.moved_to("host-b")
    await probe(lab)
    await remove(lab, guest)


async def is_connected(lab: Lab) -> bool:
    """Tell whether host-a has a connection to a stream port."""
    ran = await lab.run([*lab.inside("host-a"), "ss", "-tnH", "state", "established", "dport", "=", ":7717"])
    return bool(ran.stdout.strip())


async def test_a_probe_gives_way_to_a_move(lab: Lab) -> None:
    """A move that is ordered in the middle of a probe cuts it, and arrives."""
    assert lab.network is not None
    guest = await started(lab, micro_guest())
    lab.network.limit(BytesPerSecond(MIB))  # a probe takes more than a second there
    try:
        probing = asyncio.create_task(probe(lab))
        await wait_until(lambda: is_connected(lab), "the probe's connection stands")
        handover = await migrate(lab, guest, "host-b")
        with pytest.raises(Refused, match="was cut: a guest begins to move"):
            await probing
    finally:
        lab.network.limit(None)
    view = await wait_finished(lab, "host-a", handover)
    assert view.report is not None
    assert view.report.outcome == Outcome.MOVED
    guest.moved_to("host-b")
    await remove(lab, guest)
