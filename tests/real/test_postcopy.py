"""Post-copy between two hosts of the lab: the link is cut, agents are killed, and the guest arrives by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from vmferry.api.models import CheckReply, HandoverView
from vmferry.core.errors import GuestBusy
from vmferry.core.progress import Outcome
from vmferry.core.units import MIB
from vmferry.lab.guest_plans import GuestPlan
from vmferry.lab.guest_runs import GuestRun
from vmferry.lab.hosts import Lab
from vmferry.lab.network import Cut
from vmferry.lab.page_faults import page_faults_for_all
from vmferry.lab.processes import identify, kill_all
from vmferry.lab.scenarios import empty, migrate, remove, started, wait_finished, wait_state, wait_until
from vmferry.ports.hypervisor import RunState
from vmferry.qemu import userfault

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

GUEST = GuestPlan("micro", memory_mib=64, working_set_mib=32, rate=8)
#: A post-copy of these 32 MiB that lasts for seconds, and no longer.
OPTIONS: dict[str, object] = {"postcopy_after": 1, "max_bandwidth": 3 * MIB}


@pytest.fixture(scope="module", autouse=True)
def access() -> Iterator[None]:
    """Let the guests' unprivileged QEMUs catch page faults, as the udev rule of docs would."""
    if not userfault.DEVICE.exists():
        pytest.skip(f"no {userfault.DEVICE} on this machine")
    with page_faults_for_all():
        yield


@pytest_asyncio.fixture(loop_scope="module")
async def calm_lab(lab: Lab) -> AsyncIterator[Lab]:
    """The lab; healed and empty again afterwards."""
    yield lab
    assert lab.network is not None
    lab.network.heal()
    await empty(lab)


async def begin(lab: Lab) -> tuple[GuestRun, str]:
    """Start a guest and move it by post-copy; it runs at host-b, and pages are missing."""
    guest = await started(lab, GUEST)
    handover = await migrate(lab, guest, "host-b", OPTIONS)
    await wait_state(lab, "host-a", handover, "postcopy-running")
    return guest, handover


def outcome(view: HandoverView) -> Outcome:
    """Return how a finished hand-over ended."""
    assert view.report is not None
    return view.report.outcome


async def assert_arrives(lab: Lab, guest: GuestRun, handover: str) -> None:
    """The guest runs at host-b with its memory whole, and nowhere else."""
    assert outcome(await wait_finished(lab, "host-a", handover)) == Outcome.MOVED
    guest.moved_to("host-b")
    assert (await guest.view()).run_state == RunState.RUNNING
    assert (await guest.oracle()).startswith("oracle clean")
    assert await guest.list_on("host-a") == []

    async def is_over() -> bool:
        return (await guest.view()).busy_with is None

    await wait_until(is_over, "the arrival's end")  # the source is done first; the destination asks its QEMU
    await remove(lab, guest)


async def test_the_risk_is_told_beforehand(calm_lab: Lab) -> None:
    """`check` with post-copy finds nothing in the way and says what it takes away from the promise."""
    guest = await started(calm_lab, GUEST)
    for postcopy in (False, True):
        answer = await calm_lab.hosts["host-a"].api.post(
            f"/v1/guests/{guest.name}/check", {"destination": "host-b", "options": {"postcopy": postcopy}}
        )
        reply = CheckReply.model_validate(answer)
        assert reply.blockers == ()
        assert reply.guarantee is not None
        assert ("both hosts are needed until the last page" in reply.guarantee.sentence) is postcopy
    await remove(calm_lab, guest)


@pytest.mark.parametrize("how", Cut, ids=lambda how: how.value)
async def test_a_cut_link_pauses_and_resumes_it(calm_lab: Lab, how: Cut) -> None:
    """A link that dies in mid-post-copy, silently or not, is found; when it is back everything goes on by itself."""
    guest, handover = await begin(calm_lab)
    assert calm_lab.network is not None
    calm_lab.network.cut(how=how)
    await wait_state(calm_lab, "host-a", handover, "postcopy-paused")
    calm_lab.network.heal()
    await assert_arrives(calm_lab, guest, handover)


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
@pytest.mark.parametrize("host", ["host-a", "host-b"])
async def test_an_agent_is_killed(calm_lab: Lab, host: str, paused: bool) -> None:
    """Kill -9 of either agent in post-copy, also while the stream is broken: the next one brings the guest there."""
    guest, handover = await begin(calm_lab)
    network = calm_lab.network
    assert network is not None
    if paused:
        network.cut(how=Cut.SILENT)
        await wait_state(calm_lab, "host-a", handover, "postcopy-paused")
    calm_lab.hosts[host].agent.kill_worker()
    await calm_lab.hosts[host].api.wait_answer()
    network.heal()
    await assert_arrives(calm_lab, guest, handover)


async def test_operators_are_told_why_not(calm_lab: Lab) -> None:
    """In the middle of post-copy a pause and a cancel are refused with the reason, and the guest arrives."""
    guest, handover = await begin(calm_lab)
    with pytest.raises(GuestBusy, match="middle of post-copy"):
        await calm_lab.hosts["host-b"].api.post(f"/v1/guests/{guest.name}/pause")
    with pytest.raises(GuestBusy, match="middle of post-copy"):
        await calm_lab.hosts["host-a"].api.post(f"/v1/handovers/{handover}/cancel")
    await assert_arrives(calm_lab, guest, handover)


async def test_a_killed_destination_is_a_lost_guest(calm_lab: Lab) -> None:
    """Kill -9 of the destination's QEMU with pages missing: both hosts say that the guest is lost, and none runs."""
    guest, handover = await begin(calm_lab)
    (there,) = await guest.list_on("host-b")
    assert there.pid is not None
    qemu = identify(there.pid)
    assert qemu is not None
    kill_all([qemu])
    assert outcome(await wait_finished(calm_lab, "host-a", handover)) == Outcome.LOST
    assert await guest.list_on("host-a") == []

    async def is_told() -> bool:
        return (await guest.view("host-b")).note is not None

    await wait_until(is_told, "its end is told there")  # the source hears first that it is lost
    (row,) = await guest.list_on("host-b")
    assert (row.pid, row.owner) == (None, "host-b")
    guest.moved_to("host-b")
