"""Moves of libvirt domains under our policies, with a libvirt that plays rounds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace

import pytest

from vmferry.conductor import domain_move
from vmferry.conductor.domain_move import DomainMove, Ended, Event, unattended_brake
from vmferry.conductor.plan import Asked, Choice
from vmferry.core.errors import Broken, InDoubt, Refused, VmferryError
from vmferry.core.migration import MigrationSample, MigrationStatus
from vmferry.core.progress import PolicyOrdered
from vmferry.core.rounds.following import QUIET
from vmferry.core.units import MIB, Bytes, BytesPerSecond, Milliseconds

LINK = BytesPerSecond(100 * MIB)
RAM = Bytes(256 * MIB)
PAGE = 4096


class FakeDomain:
    """A domain whose rest shrinks with each reading, or does not; libvirt switches over when it fits the limit.

    Args:
        rests: MiB that are left at each reading, the last one for ever.
        refuses: calls that libvirt refuses.
    """

    name = "web-7"

    def __init__(self, rests: Sequence[int], refuses: Sequence[str] = ()) -> None:
        self.calls: list[str] = []
        self._rests = list(rests)
        self._refuses = tuple(refuses)
        self._limit_ms = Milliseconds(300.0)
        self._round = 0
        self._sent = 0
        self._over = asyncio.get_running_loop().create_future()
        self.news = asyncio.Event()

    async def move(self) -> None:
        """End when the rest fits, or somebody gives up."""
        await self._over

    async def sample(self) -> MigrationSample:
        """Tell of another round."""
        self._round += 1
        left = self._rests[min(self._round, len(self._rests)) - 1] * MIB
        self._sent += 64 * MIB
        if left * 1000 / LINK <= self._limit_ms and not self._over.done():
            self._over.set_result(None)
        return MigrationSample(
            MigrationStatus.ACTIVE,
            rounds=self._round,
            transferred_bytes=Bytes(self._sent),
            remaining_bytes=Bytes(left),
            total_bytes=RAM,
            normal_pages=self._sent // PAGE,
            bandwidth=LINK,
        )

    async def wait_news(self, most_s: float) -> None:
        """Tell of nothing, unless a test says so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                await self.news.wait()
        self.news.clear()

    async def abort(self) -> None:
        """End it without success."""
        self._call("abort")
        if not self._over.done():
            self._over.set_exception(Broken("operation aborted: migration out job: canceled by client"))

    async def set_downtime_limit(self, limit_ms: Milliseconds) -> None:
        """Take the limit."""
        self._call("set_downtime_limit")
        self._limit_ms = limit_ms

    async def set_bandwidth(self, bandwidth: BytesPerSecond | None) -> None:
        """Take it."""
        self._call(f"set_bandwidth {bandwidth}")

    async def set_following(self, bandwidth: BytesPerSecond | None) -> None:
        """Take it."""
        self._call(f"set_following {bandwidth}")

    async def start_postcopy(self) -> None:
        """Leave at once."""
        self._call("start_postcopy")
        self._over.set_result(None)

    async def suspend(self) -> None:
        """Write nothing more."""
        self._call("suspend")
        self._rests = [0]

    async def resume(self) -> None:
        """Go on."""
        self._call("resume")

    def die(self, error: VmferryError) -> None:
        """Have libvirt fail."""
        self._over.set_exception(error)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name.partition(" ")[0] in self._refuses:
            raise Refused(f"libvirt refused {name}")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read without a pause; time is what the readings take."""
    monkeypatch.setattr(domain_move, "_READ_EVERY_S", 0.02)


async def moved(
    domain: FakeDomain,
    policy: str,
    *,
    postcopy: bool = False,
    bandwidth: BytesPerSecond | None = LINK,
    bounded: bool = False,
) -> tuple[Ended, list[Event]]:
    """Move it under a policy; returns how that ended and what watchers were told."""
    told: list[Event] = []

    async def tell(event: Event) -> None:
        told.append(event)

    asked = Asked(Choice(policy), RAM, bandwidth, None, postcopy=postcopy)
    async with asyncio.timeout(20):
        return await DomainMove(domain, asked, tell, bounded=bounded).run(), told


async def test_a_domain_that_writes_little_arrives() -> None:
    """The policy's own limit is in force, the trace is there, and watchers have seen the order and the rounds."""
    domain = FakeDomain([128, 64, 40, 20, 2, 0])
    ended, told = await moved(domain, "vmferry")
    assert ended.failure is None
    assert ended.reason is None
    assert ended.trace is not None
    assert "set_downtime_limit" in domain.calls
    assert [event for event in told if isinstance(event, PolicyOrdered) and event.refused is None]


async def test_a_round_that_is_told_is_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libvirt's word comes before the next reading would: between them nothing else is waited for."""
    monkeypatch.setattr(domain_move, "_READ_EVERY_S", 60.0)
    domain = FakeDomain([200, 200, 0])
    telling = asyncio.create_task(tell_rounds(domain, 3))
    ended, _ = await moved(domain, "qemu")
    assert ended.failure is None
    await telling


async def tell_rounds(domain: FakeDomain, number: int) -> None:
    """Have libvirt tell of rounds."""
    for _ in range(number):
        await asyncio.sleep(0.05)
        domain.news.set()


async def test_postcopy_is_begun_where_nothing_else_helps() -> None:
    """The same rest, round after round: what a policy of ours does with QEMU it does with libvirt."""
    domain = FakeDomain([200])
    ended, _ = await moved(domain, "vmferry", postcopy=True)
    assert ended.failure is None
    assert "start_postcopy" in domain.calls


class BrakedDomain(FakeDomain):
    """One that QEMU slows down, more and more."""

    percent = 88

    async def sample(self) -> MigrationSample:
        """Tell how hard QEMU brakes."""
        self.percent += 1
        return replace(await super().sample(), throttle_percent=self.percent)


@pytest.mark.parametrize("bounded", [True, False])
async def test_a_brake_that_holds_the_guest_for_longer_than_its_goal_ends_the_move(bounded: bool) -> None:
    """At 90 % a vCPU sleeps for 90 ms at a time, which is the goal; an operator may let QEMU brake as it likes."""
    domain = BrakedDomain([200, 200, 200, 200, 200, 0])
    ended, _ = await moved(domain, "vmferry", bounded=bounded)
    assert (ended.failure is not None) is bounded
    if bounded:
        assert domain.calls.count("abort") == 1
        assert "QEMU's brake is at 91 %: it would hold the guest for more than 90.0 ms" in str(ended.reason)


@pytest.mark.parametrize(("gap_ms", "percent"), [(90.0, 44), (300.0, 83), (51.0, 1), (2000.0, 97)])
def test_the_brake_that_nobody_steers_fits_into_what_the_limit_keeps_back(gap_ms: float, percent: int) -> None:
    """A fifth of the gap without its fixed cost; only without post-copy, and of a policy that has a goal."""
    asked = Asked(Choice(max_gap_ms=Milliseconds(gap_ms)), RAM, LINK, None)
    assert unattended_brake(asked) == percent
    assert unattended_brake(replace(asked, postcopy=True)) == 0
    assert unattended_brake(replace(asked, choice=Choice("article"))) == 0


class LeavingDomain(FakeDomain):
    """One that leaves when it is told to, and is there when nothing holds its pages back any more."""

    left = False

    async def start_postcopy(self) -> None:
        """Leave; its pages follow."""
        self._call("start_postcopy")
        self.left = True

    async def sample(self) -> MigrationSample:
        """Tell that it has left."""
        sample = await super().sample()
        return replace(sample, status=MigrationStatus.POSTCOPY_ACTIVE) if self.left else sample

    async def set_following(self, bandwidth: BytesPerSecond | None) -> None:
        """Arrive with the last order."""
        await super().set_following(bandwidth)
        if bandwidth is None:
            self._over.set_result(None)


async def test_pages_follow_slowly_at_first() -> None:
    """Next to nothing is sent unasked in the first moments, and then more and more."""
    domain = LeavingDomain([200])
    ended, _ = await moved(domain, "vmferry", postcopy=True)
    assert ended.failure is None
    orders = [call.split()[1] for call in domain.calls if call.startswith("set_following")]
    assert domain.calls.index(f"set_following {QUIET}") == domain.calls.index("start_postcopy") - 1
    assert (orders[0], orders[-1]) == (str(QUIET), "None")
    steps = [int(order) for order in orders[:-1]]
    assert steps == sorted(steps)


async def test_a_libvirt_that_cannot_hold_pages_back_sends_them_as_they_come() -> None:
    """It is no reason to give a guest up."""
    domain = FakeDomain([200], refuses=["set_following"])
    ended, _ = await moved(domain, "vmferry", postcopy=True)
    assert ended.failure is None
    assert "start_postcopy" in domain.calls


async def test_a_policy_that_forces_the_switchover() -> None:
    """The article's rules end with a pause, however long: the limit becomes the longest that QEMU takes."""
    domain = FakeDomain([200])
    ended, _ = await moved(domain, "article")
    assert ended.failure is None
    assert domain.calls[-1] == "set_downtime_limit"


async def test_an_order_that_libvirt_refuses_ends_the_move() -> None:
    """The domain stays, and the order and libvirt's words are told."""
    domain = FakeDomain([200], refuses=["start_postcopy"])
    ended, told = await moved(domain, "vmferry", postcopy=True)
    assert ended.failure is not None
    assert "and it was refused: libvirt refused start_postcopy" in str(ended.reason)
    assert [event.refused for event in told if isinstance(event, PolicyOrdered)][-1] == "libvirt refused start_postcopy"


async def test_libvirts_own_failure_is_the_reason() -> None:
    """Nobody gave up: its words are what is told."""
    domain = FakeDomain([200])
    asyncio.get_running_loop().call_later(0.2, domain.die, Broken("unexpected end of the stream"))
    ended, _ = await moved(domain, "qemu")
    assert ended.reason == "unexpected end of the stream"
    assert "abort" not in domain.calls


@pytest.mark.parametrize("ends", [True, False], ids=["libvirt ends it", "libvirt goes on"])
async def test_a_daemon_that_falls_silent(monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    """Nobody steers the move any more: it is given up, and when libvirt goes on all the same, that is told."""
    monkeypatch.setattr(domain_move, "_SILENCE_S", 0.1)
    monkeypatch.setattr(domain_move, "_ENDS_WITHIN_S", 0.1)
    domain = FakeDomain([200], refuses=() if ends else ["abort"])

    async def silent() -> MigrationSample:
        raise Broken("the connection is closed or lost")

    monkeypatch.setattr(domain, "sample", silent)
    if ends:
        ended, _ = await moved(domain, "qemu")
        assert "steering failed" in str(ended.reason)
        return
    with pytest.raises(InDoubt, match=r"not steered any more \(the connection is closed or lost\)"):
        await moved(domain, "qemu")


async def test_a_caller_that_is_cancelled_has_the_move_given_up() -> None:
    """Ctrl-C: libvirt is told, and its end is waited for."""
    domain = FakeDomain([200])
    running = asyncio.create_task(moved(domain, "qemu"))
    await asyncio.sleep(0.2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert domain.calls[-1] == "abort"


async def test_a_move_that_is_given_up_before_it_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libvirt has no job yet and refuses: it is told again until the move has ended."""
    monkeypatch.setattr(domain_move, "_GIVE_UP_EVERY_S", 0.02)
    domain = FakeDomain([200])
    calls: list[str] = []
    end = domain.abort

    async def abort() -> None:
        calls.append("abort")
        if len(calls) < 3:
            raise Refused("no job is active on the domain")
        await end()

    monkeypatch.setattr(domain, "abort", abort)
    running = asyncio.create_task(moved(domain, "qemu"))
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(calls) == 3
