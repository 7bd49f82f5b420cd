"""The agent's write throttle against helpers behind a socket that serves one client at a time, as QEMU's does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from vmferry.agent.write_throttle import GuestThrottle
from vmferry.conductor.guests import Guests, HostSettings
from vmferry.core.errors import BadInput, Broken
from vmferry.core.guest import BiosBoot, GuestSpec
from vmferry.core.ids import GuestName, HandoverId, HostName
from vmferry.core.migration import RunState
from vmferry.core.progress import Throttled
from vmferry.core.units import MIB, Bytes, BytesPerSecond, Milliseconds
from vmferry.ports.write_throttle import WriteBudget
from vmferry.testing.fake_hypervisor import FakeGuestProcess, FakeHypervisor
from vmferry.testing.fake_journal import FakeJournal
from vmferry.testing.fake_qemu import FakeLink

WEB = GuestName("web-7")
MOVE, LATER = HandoverId("move-1"), HandoverId("move-2")
#: 100 Mbit/s.
BUDGET = WriteBudget(BytesPerSecond(12_500_000), Milliseconds(300.0), 40)
FIGURES = "processes=1 uncovered=0 covered_kib=8 faults=0 holds=0 overruns=0 errors=0 slots=0 longest_hold_us=0"


class NoBeats:
    """Receives nothing."""

    async def open(self, guest: GuestName, port: int | None) -> int:
        return port or 9

    async def close(self, guest: GuestName) -> None:
        pass


@dataclass
class Helper:
    """A guest's helper: knows one order, lets it go when its port closes unless it is a guest that does not see that.

    Attributes:
        heard: every line.
        order: the one in force.
        silent: it does not answer.
        sees_close: the port's closing ends the order.
    """

    heard: list[str] = field(default_factory=list)
    order: str | None = None
    silent: bool = False
    sees_close: bool = True
    connected: asyncio.Lock = field(default_factory=asyncio.Lock)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self.connected:
            self.gone.clear()
            with suppress(ConnectionError):
                while line := await reader.readline():
                    self.heard.append(line.decode().strip())
                    if not self.silent:
                        writer.write(f"{self._answer(self.heard[-1].split()[1:])}\n".encode())
            if self.sees_close:
                self.order = None
            writer.close()
        self.gone.set()

    def _answer(self, words: list[str]) -> str:
        verb, name = words[0], words[-1]
        if verb == "status":
            return f"1 status {self.order or '-'} {FIGURES}"
        if verb == "begin" and self.order in (None, name):
            self.order = name
            return f"1 begun {name} {FIGURES}"
        if verb == "begin":
            return "1 error busy another order is in force"
        if self.order != name:
            return "1 error unknown no order of this id is in force"
        if verb == "end":
            self.order = None
        return f"1 {'ended' if verb == 'end' else 'kept'} {name} {FIGURES}"


@dataclass
class Scene:
    """One host with a guest, and the helper in it."""

    guests: Guests
    throttle: GuestThrottle
    helper: Helper


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """A guest with the port, running under a helper."""
    host = HostName("host-a")
    guests = Guests(
        HostSettings(host, tmp_path, None, tmp_path / "tpm"), FakeJournal(), FakeHypervisor(host, FakeLink()), NoBeats()
    )
    helper = Helper()
    server = await asyncio.start_unix_server(helper.serve, tmp_path / "throttle.sock")

    async def opened(_: FakeGuestProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(tmp_path / "throttle.sock")

    monkeypatch.setattr(FakeGuestProcess, "open_throttle", opened, raising=False)
    throttle = GuestThrottle(guests, short_s=0.2)
    await guests.run(GuestSpec(WEB, Bytes(64 * MIB), BiosBoot(), throttle=True))
    async with server:
        yield Scene(guests, throttle, helper)
        await throttle.close()
        await guests.kill(WEB)
        await guests.close()


async def test_begin_keep_and_end(scene: Scene) -> None:
    """The order is the hand-over's, fits the link, is changed in place, and is ended by its name."""
    assert await scene.throttle.blockers(WEB) == ()
    await scene.throttle.begin(WEB, MOVE, BUDGET)
    assert scene.helper.order == MOVE
    # 40 pages in 27 ms are half of 100 Mbit/s
    assert "1 begin 40 27 300 2000 move-1" in scene.helper.heard
    await scene.throttle.begin(WEB, MOVE, WriteBudget(BUDGET.bandwidth, BUDGET.max_gap_ms, 20))
    assert "1 begin 20 14 300 2000 move-1" in scene.helper.heard
    assert scene.throttle.seen(MOVE) == Throttled(20, 14, 1, 0, 0, Milliseconds(0.0))
    assert scene.throttle.seen(LATER) is None
    scene.throttle.hush(MOVE)
    await scene.throttle.end(MOVE)
    assert scene.helper.order is None
    assert scene.helper.heard[-1] == "1 end move-1"
    await scene.throttle.end(MOVE)


async def test_one_hand_over_does_not_end_anothers_order(scene: Scene) -> None:
    """The tail of a guest's last move leaves alone what its next one began."""
    await scene.throttle.begin(WEB, LATER, BUDGET)
    await scene.throttle.end(MOVE)
    scene.throttle.hush(MOVE)
    assert scene.helper.order == LATER


async def test_a_guest_without_the_port_is_told_how_to_get_it(scene: Scene) -> None:
    """The blocker says what to write into the guest file; nobody is asked anything."""
    row = scene.guests.row(WEB)
    scene.guests.put(row, guest=replace(row.guest, spec=replace(row.guest.spec, throttle=False)))
    (blocker,) = await scene.throttle.blockers(WEB)
    assert blocker.code == "throttle.no-port"
    assert "throttle = true into its guest file" in blocker.fix
    assert scene.helper.heard == []


async def test_a_silent_helper_blocks(scene: Scene) -> None:
    """A guest in which nobody answers is told how to change that; a paused one is not asked."""
    scene.helper.silent = True
    (blocker,) = await scene.throttle.blockers(WEB)
    assert blocker.code == "throttle.no-helper"
    assert "under vmferry-throttle" in blocker.fix
    await scene.guests.pause(WEB)
    assert await scene.throttle.blockers(WEB) == ()


async def test_a_failed_begin_leaves_nothing_open(scene: Scene) -> None:
    """After any failure the port is closed, and the next begin finds it free."""
    with pytest.raises(BadInput):
        await scene.throttle.begin(WEB, MOVE, WriteBudget(BUDGET.bandwidth, BUDGET.max_gap_ms, 5000))
    scene.helper.silent = True
    with pytest.raises(TimeoutError):  # whoever waits may give up at any moment
        async with asyncio.timeout(0.2):
            await scene.throttle.begin(WEB, MOVE, BUDGET)
    await scene.helper.gone.wait()
    scene.helper.silent = False
    await scene.throttle.begin(WEB, MOVE, BUDGET)
    assert scene.helper.order == MOVE


async def test_a_silent_guest_is_let_go_by_closing_the_port(scene: Scene) -> None:
    """A guest that does not answer the end is free all the same, within a moment."""
    await scene.throttle.begin(WEB, MOVE, BUDGET)
    scene.helper.silent = True
    await scene.throttle.end(MOVE)
    await scene.helper.gone.wait()
    assert scene.helper.order is None


async def test_what_a_guest_carried_over_is_ended(scene: Scene) -> None:
    """A guest that arrives with its source's order in force runs free without waiting for the lease."""
    scene.helper.order = MOVE
    scene.throttle.arrived(WEB, MOVE)
    await _wait(lambda: scene.helper.order is None)
    assert scene.helper.heard == ["1 end move-1"]


async def test_an_arrival_never_stands_in_the_way_of_the_next_move(scene: Scene) -> None:
    """A guest that moves on at once, in which nobody has answered yet, is slowed for the new move."""
    scene.helper.order, scene.helper.silent, scene.helper.sees_close = MOVE, True, False
    scene.throttle.arrived(WEB, MOVE)
    await _wait(lambda: scene.helper.heard == ["1 end move-1"])
    scene.helper.silent = False
    beginning = asyncio.create_task(scene.throttle.begin(WEB, LATER, BUDGET))
    await _wait(lambda: len(scene.helper.heard) > 2)  # busy, and asked again
    scene.helper.order = None  # the lease of the first one has run out
    await beginning
    assert scene.helper.order == LATER


async def test_a_guest_without_a_process_cannot_be_slowed(scene: Scene) -> None:
    """Nobody is there to be asked: said as it is."""
    await scene.guests.kill(WEB)
    with pytest.raises(Broken, match="no process"):
        await scene.throttle.begin(WEB, MOVE, BUDGET)
    scene.throttle.arrived(WEB, MOVE)
    await asyncio.sleep(0)
    await scene.guests.start(WEB)
    process = scene.guests.process(WEB)
    assert process is not None
    assert await process.query_run_state() is RunState.RUNNING


async def _wait(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  what is looked at has no event of its own
            await asyncio.sleep(0.002)
