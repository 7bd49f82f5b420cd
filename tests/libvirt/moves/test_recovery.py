"""A recovery does what the table says, in turn, and stops at whatever it does not know."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmferry.core.errors import Refused, Unreachable
from vmferry.core.ids import GuestUuid
from vmferry.libvirt.moves import recovery
from vmferry.libvirt.moves.diagnosis import Move, Verdict
from vmferry.libvirt.moves.recovery import Case, Recovered, recover
from vmferry.libvirt.moves.standing import ABSENT, Job, Run, Standing

UUID = GuestUuid("6695eb01-f6a4-8304-79aa-97f2502e193f")
OURS = Move(persists=True, undefines=True, was_defined_there=False, sides_known=True)
Looks = list[tuple[Standing, Standing]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for nothing."""
    monkeypatch.setattr(recovery, "_MOMENT_S", 0.0)
    monkeypatch.setattr(recovery, "_LOOK_EVERY_S", 0.0)


def at(run: Run, job: Job = Job.NONE, *, defined: bool = True) -> Standing:
    """Return one as a daemon would say it."""
    return Standing(run, job, UUID, is_persistent=defined)


class World:
    """Two daemons that allow no domain to run twice: whoever tries fails the test."""

    def __init__(self, source: Standing, destination: Standing) -> None:
        self.now = {"source": source, "destination": destination}
        self.calls: list[str] = []
        self.later: Looks = []  #: what comes by itself, one pair for each look at the source
        self.refuses: str | None = None
        self.silent: str | None = None

    def case(self, move: Move = OURS) -> Case:
        """Return the case as a recovery gets it."""
        return Case("web-7", Daemon(self, "source"), Daemon(self, "destination"), ("host-a", "host-b"), move)


class Daemon:
    """One of them."""

    def __init__(self, world: World, side: str) -> None:
        self.world, self.side = world, side

    async def standing(self, name: str) -> Standing:
        """Tell how it stands now."""
        assert name == "web-7"
        if self.side == self.world.silent:
            raise Unreachable("libvirt does not answer")
        if self.side == "source" and self.world.later:
            self.world.now["source"], self.world.now["destination"] = self.world.later.pop(0)
        return self.world.now[self.side]

    async def resume(self, name: str) -> None:
        """Run it: the other must not."""
        self._call("resume")
        other = "destination" if self.side == "source" else "source"
        assert self.world.now[other].run in (Run.ABSENT, Run.OFF)
        self._becomes(Run.RUNS)

    async def destroy(self, name: str) -> None:
        """End it: what runs is never ended."""
        self._call("destroy")
        assert self.world.now[self.side].run is not Run.RUNS
        self._becomes(Run.OFF)

    async def undefine(self, name: str) -> None:
        """Forget it."""
        self._call("undefine")
        assert self.world.now[self.side].run is Run.OFF
        self.world.now[self.side] = ABSENT

    def _call(self, what: str) -> None:
        self.world.calls.append(f"{what} {self.side}")
        if self.world.refuses == what:
            raise Refused(f"libvirt refused {what}")

    def _becomes(self, run: Run) -> None:
        before = self.world.now[self.side]
        after = Standing(run, Job.NONE, UUID, before.is_persistent)
        self.world.now[self.side] = after if run is not Run.OFF or before.is_persistent else ABSENT


async def test_an_old_copy_goes_and_then_its_definition() -> None:
    """The destination runs it: the source is cleaned up in two diagnoses, one after the other."""
    world = World(at(Run.STANDS), at(Run.RUNS))
    ended = await recover(world.case())
    assert world.calls == ["destroy source", "undefine source"]
    assert (ended.diagnosis.verdict, ended.failed) == (Verdict.MOVED, None)
    assert ended.done == ("its process on host-a ended", "its definition on host-a removed")


async def test_half_a_domain_goes_before_the_source_runs_again() -> None:
    """In this order: the other would be two."""
    world = World(at(Run.STANDS), at(Run.STANDS, defined=False))
    ended = await recover(world.case())
    assert world.calls == ["destroy destination", "resume source"]
    assert ended.diagnosis.verdict is Verdict.STAYED
    assert (await recover(world.case())).done == ()


async def test_what_is_held_at_its_arrival_runs_when_the_source_has_none() -> None:
    """Where the source's stands too, that one goes first, and its definition last."""
    world = World(at(Run.STANDS), at(Run.PAUSED))
    ended = await recover(world.case(replace(OURS, held=True)))
    assert world.calls == ["destroy source", "resume destination", "undefine source"]
    assert (ended.diagnosis.verdict, ended.failed) == (Verdict.MOVED, None)


async def test_what_fails_ends_it_there() -> None:
    """The source is not resumed when the half at the destination could not be ended."""
    world = World(at(Run.STANDS), at(Run.STANDS))
    world.refuses = "destroy"
    ended = await recover(world.case())
    assert world.calls == ["destroy destination"]
    assert (str(ended.failed), ended.done) == ("libvirt refused destroy", ())


async def test_two_looks_must_say_alike() -> None:
    """Nothing is done by what was true a moment ago."""
    world = World(at(Run.STANDS), at(Run.STANDS, defined=False))
    world.later = [(at(Run.STANDS), at(Run.STANDS, defined=False)), (at(Run.STANDS), at(Run.RUNS))]
    ended = await recover(world.case(Move(sides_known=True)))
    assert world.calls == ["destroy source"]
    assert ended.diagnosis.verdict is Verdict.MOVED


async def test_a_silent_daemon_is_waited_for_by_nobody() -> None:
    """It is told as held, by the side that is silent; the other is not touched."""
    world = World(at(Run.STANDS), ABSENT)
    world.silent = "destination"
    ended = await recover(world.case())
    assert (ended.diagnosis.verdict, world.calls) == (Verdict.HELD, [])
    assert ended.standings[1].says == "libvirt does not answer"


async def test_libvirt_gets_time_to_end_what_it_is_at() -> None:
    """It finishes by itself: nothing is done but to clean up after it."""
    arriving = at(Run.STANDS), at(Run.RUNS, Job.IN)
    world = World(*arriving)
    world.later = [arriving, arriving, arriving, (ABSENT, at(Run.RUNS))]
    ended = await recover(world.case())
    assert (ended.diagnosis.verdict, world.calls) == (Verdict.MOVED, [])


async def test_libvirt_gets_no_more_than_that() -> None:
    """What does not end is told, with what to do."""
    world = World(at(Run.STANDS), at(Run.STANDS, Job.IN))
    ended = await recover(world.case(), patience_s=0.05)
    assert (ended.diagnosis.verdict, world.calls) == (Verdict.HELD, [])
    assert ended.diagnosis.fix


async def steered(world: World, *, answers: bool) -> tuple[Recovered, list[str]]:
    """Recover a move that runs, with or without somebody who steers it."""
    calls: list[str] = []

    async def steer() -> None:
        calls.append("steer")
        world.now = {"source": ABSENT, "destination": at(Run.RUNS)}

    return await recover(world.case(), steer=steer if answers else None, patience_s=0.05), calls


@pytest.mark.parametrize("answers", [True, False])
async def test_a_job_that_runs_is_steered_or_left_to_libvirt(answers: bool) -> None:
    """The policy is applied to it until its end; without one it is told as moving."""
    ended, calls = await steered(World(at(Run.RUNS, Job.OUT), at(Run.STANDS, Job.IN)), answers=answers)
    assert calls == ["steer"] * answers
    assert ended.diagnosis.verdict is (Verdict.MOVED if answers else Verdict.MOVING)


@pytest.mark.parametrize("ended", [True, False])
async def test_steering_that_comes_too_late_is_no_failure(ended: bool) -> None:
    """A move that has just ended cannot be steered any more; one that goes on unsteered is told."""
    world = World(at(Run.RUNS, Job.OUT), at(Run.STANDS, Job.IN))

    async def steer() -> None:
        if ended:
            world.now = {"source": ABSENT, "destination": at(Run.RUNS)}
        raise Refused("no such job")

    found = await recover(world.case(), steer=steer)
    assert (found.failed is None) is ended
    assert found.diagnosis.verdict is (Verdict.MOVED if ended else Verdict.MOVING)
    assert found.done == ()


async def test_a_broken_postcopy_is_repaired_or_held() -> None:
    """Whoever can repairs it; else both halves stay as they are."""
    world = World(at(Run.SPLIT, Job.OUT), at(Run.SPLIT, Job.IN))
    assert (await recover(world.case())).diagnosis.verdict is Verdict.HELD

    async def repair() -> None:
        world.now = {"source": ABSENT, "destination": at(Run.RUNS)}

    ended = await recover(world.case(), repair=repair)
    assert (ended.diagnosis.verdict, world.calls) == (Verdict.MOVED, [])
    assert ended.done == ("post-copy from host-a resumed",)
