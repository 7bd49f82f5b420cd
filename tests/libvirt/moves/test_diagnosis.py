"""What became of a move, by what both daemons say: every pair has one row, and no row can make a domain run twice."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from vmferry.core.ids import GuestUuid
from vmferry.libvirt.facts import DomainState
from vmferry.libvirt.moves.diagnosis import ROWS, Act, Deed, Diagnosis, Move, Side, Verdict, diagnose
from vmferry.libvirt.moves.standing import ABSENT, Job, Run, Standing, job_of, reason_of, run_of, silent

UUID = GuestUuid("6695eb01-f6a4-8304-79aa-97f2502e193f")
OTHER_UUID = GuestUuid("7795eb01-f6a4-8304-79aa-97f2502e193f")
OURS = Move(persists=True, undefines=True, was_defined_there=False, sides_known=True)
HELD = replace(OURS, held=True)


def standing(run: Run, job: Job = Job.NONE, *, defined: bool = True) -> Standing:
    """Return one as a daemon would say it."""
    if run is Run.SILENT:
        return silent("no answer")
    return ABSENT if run is Run.ABSENT else Standing(run, job, UUID, is_persistent=defined or run is Run.OFF)


#: Whatever a daemon can say: a domain without a process has no job.
STANDINGS = [
    standing(run, job, defined=defined)
    for run, job, defined in itertools.product(Run, Job, (False, True))
    if job is Job.NONE or run not in (Run.SILENT, Run.ABSENT, Run.OFF)
]
MOVES = [Move(*values) for values in itertools.product((False, True), repeat=5)]
EVERY = list(itertools.product(STANDINGS, STANDINGS, MOVES))


def acts(diagnosis: Diagnosis, deed: Deed) -> list[Side]:
    """Return the sides at which something is done."""
    return [act.side for act in diagnosis.acts if act.deed is deed]


def test_nothing_runs_unless_the_other_side_proves_that_it_never_did() -> None:
    """A domain is resumed at the source only where the destination has none or one that never ran."""
    for source, destination, move in EVERY:
        found = diagnose(source, destination, move)
        if Side.SOURCE not in acts(found, Deed.RESUME):
            continue
        assert move.sides_known  # of two that stand still only the source is known to be whole
        assert (source.run, source.job) == (Run.STANDS, Job.NONE)
        if destination.run is Run.STANDS:
            assert destination.job is Job.NONE
            assert found.acts == (Act(Deed.DESTROY, Side.DESTINATION), Act(Deed.RESUME, Side.SOURCE))
        elif move.held:
            assert destination.run in (Run.ABSENT, Run.OFF)
        else:
            assert destination.run is Run.ABSENT
            assert move.persists
            assert not move.was_defined_there


def test_what_is_held_at_its_arrival_runs_there_when_the_source_has_no_process_any_more() -> None:
    """It is let run by nobody else, and by no other move."""
    for source, destination, move in EVERY:
        found = diagnose(source, destination, move)
        if Side.DESTINATION not in acts(found, Deed.RESUME):
            continue
        assert move.held
        assert move.sides_known
        assert (destination.run, destination.job) == (Run.PAUSED, Job.NONE)
        if source.run is Run.STANDS:
            assert source.job is Job.NONE
            assert found.acts == (Act(Deed.DESTROY, Side.SOURCE), Act(Deed.RESUME, Side.DESTINATION))
        else:
            assert source.run in (Run.ABSENT, Run.OFF)


def test_no_process_ends_that_may_hold_the_guest() -> None:
    """The source's ends only when it runs, whole, at the destination; the destination's only when it never ran."""
    for source, destination, move in EVERY:
        for side in acts(diagnose(source, destination, move), Deed.DESTROY):
            if side is Side.SOURCE:
                assert source.run in (Run.STANDS, Run.LEFT, Run.SPLIT)
                held = move.held and source.run is Run.STANDS and destination.run is Run.PAUSED
                assert destination.run is Run.RUNS or held
                assert destination.job is Job.NONE
            else:
                held = move.held and source.run is Run.RUNS and destination.run is Run.PAUSED
                assert destination.run is Run.STANDS or held
                assert source.run in (Run.RUNS, Run.STANDS)
                assert source.job is not Job.OUT


def test_no_definition_goes_that_is_the_only_one() -> None:
    """It stays at the side that has the process, and goes only where the move was to take it, or has brought it."""
    for source, destination, move in EVERY:
        for side in acts(diagnose(source, destination, move), Deed.UNDEFINE):
            here, there = (source, destination) if side is Side.SOURCE else (destination, source)
            assert here.run is Run.OFF
            assert there.is_persistent
            assert there.run in (Run.RUNS, Run.PAUSED)
            assert move.undefines if side is Side.SOURCE else move.persists and not move.was_defined_there


def test_a_daemon_that_is_silent_stops_everything() -> None:
    """Nothing is done, and nobody is called the owner: what is not seen may be anything."""
    for source, destination, move in EVERY:
        if Run.SILENT in (source.run, destination.run):
            found = diagnose(source, destination, move)
            assert (found.verdict, found.acts, found.owner) == (Verdict.HELD, (), None)
            assert found.fix


def test_two_different_domains_are_not_touched() -> None:
    """The same name is not the same domain."""
    for source, destination, move in EVERY:
        if destination.uuid is None or source.uuid is None:
            continue
        found = diagnose(source, replace(destination, uuid=OTHER_UUID), move)
        assert (found.verdict, found.acts) == (Verdict.HELD, ())


def test_a_guest_that_runs_on_both_hosts_is_told_whatever_else_they_say() -> None:
    """Nobody but a person knows whose disks are right."""
    for source, destination, move in EVERY:
        if {source.run, destination.run} <= {Run.RUNS, Run.PARTIAL}:
            found = diagnose(source, destination, move)
            assert (found.verdict, found.acts, found.owner) == (Verdict.TWICE, (), None)


def test_what_is_held_says_what_to_do() -> None:
    """So does everything that is done by nobody and is not simply in order."""
    for source, destination, move in EVERY:
        found = diagnose(source, destination, move)
        if found.verdict in (Verdict.HELD, Verdict.TWICE, Verdict.LOST, Verdict.OFF):
            assert found.fix or found.acts, found


def test_every_row_is_reached() -> None:
    """A row that nothing reaches says nothing, or hides behind another."""
    pairs = [*EVERY, (standing(Run.RUNS), replace(standing(Run.RUNS), uuid=OTHER_UUID), Move())]
    reached = {id(diagnose(*case)) for case in pairs}
    assert [row.diagnosis.found for row in ROWS if id(row.diagnosis) not in reached] == []


S, T = Side.SOURCE, Side.DESTINATION
#: (source, destination, the move, verdict, what is done)
CASES: list[tuple[Standing, Standing, Move, Verdict, tuple[Act, ...]]] = [
    (standing(Run.RUNS, Job.OUT), standing(Run.STANDS, Job.IN), Move(), Verdict.MOVING, (Act(Deed.STEER, S),)),
    (standing(Run.RUNS), ABSENT, Move(), Verdict.STAYED, ()),
    (standing(Run.RUNS), standing(Run.OFF), Move(), Verdict.STAYED, ()),
    (standing(Run.RUNS), standing(Run.OFF), OURS, Verdict.STAYED, (Act(Deed.UNDEFINE, T),)),
    (standing(Run.STANDS), ABSENT, OURS, Verdict.STAYED, (Act(Deed.RESUME, S),)),
    (standing(Run.STANDS), ABSENT, Move(), Verdict.HELD, ()),
    (standing(Run.STANDS), standing(Run.OFF), OURS, Verdict.HELD, ()),
    (standing(Run.STANDS), standing(Run.STANDS), Move(), Verdict.HELD, ()),
    (standing(Run.STANDS), standing(Run.RUNS), OURS, Verdict.MOVED, (Act(Deed.DESTROY, S),)),
    (standing(Run.OFF), standing(Run.RUNS), OURS, Verdict.MOVED, (Act(Deed.UNDEFINE, S),)),
    (standing(Run.OFF), standing(Run.RUNS), Move(), Verdict.MOVED, ()),
    (standing(Run.OFF), standing(Run.STANDS), OURS, Verdict.HELD, ()),
    (standing(Run.LEFT, Job.OUT), standing(Run.RUNS, Job.IN), OURS, Verdict.MOVING, (Act(Deed.WAIT, S),)),
    (standing(Run.LEFT, Job.OUT), standing(Run.PARTIAL, Job.IN), OURS, Verdict.MOVING, (Act(Deed.WAIT, S),)),
    (standing(Run.LEFT), standing(Run.PARTIAL), OURS, Verdict.HELD, (Act(Deed.WAIT, S),)),
    (standing(Run.SPLIT, Job.OUT), standing(Run.PARTIAL), OURS, Verdict.HELD, (Act(Deed.WAIT, S),)),
    (standing(Run.STANDS), standing(Run.PARTIAL), OURS, Verdict.HELD, (Act(Deed.WAIT, S),)),
    (standing(Run.OFF), standing(Run.PARTIAL), OURS, Verdict.HELD, (Act(Deed.WAIT, T),)),
    (standing(Run.LEFT), standing(Run.RUNS), OURS, Verdict.MOVED, (Act(Deed.DESTROY, S),)),
    (standing(Run.SPLIT, Job.OUT), standing(Run.SPLIT, Job.IN), OURS, Verdict.HELD, (Act(Deed.REPAIR, S),)),
    (standing(Run.SPLIT, Job.OUT), standing(Run.OFF), OURS, Verdict.LOST, ()),
    (standing(Run.OFF), standing(Run.OFF), OURS, Verdict.OFF, ()),
    (ABSENT, standing(Run.RUNS), OURS, Verdict.MOVED, ()),
    (ABSENT, standing(Run.PAUSED), OURS, Verdict.MOVED, ()),
    (ABSENT, standing(Run.PAUSED), HELD, Verdict.MOVED, (Act(Deed.RESUME, T),)),
    (standing(Run.OFF), standing(Run.PAUSED), HELD, Verdict.MOVED, (Act(Deed.RESUME, T),)),
    (standing(Run.RUNS), standing(Run.PAUSED), HELD, Verdict.STAYED, (Act(Deed.DESTROY, T),)),
    (standing(Run.RUNS), standing(Run.PAUSED), OURS, Verdict.HELD, ()),
    (
        standing(Run.STANDS),
        standing(Run.PAUSED),
        HELD,
        Verdict.MOVED,
        (Act(Deed.DESTROY, S), Act(Deed.RESUME, T)),
    ),
    (standing(Run.STANDS), standing(Run.OFF), HELD, Verdict.STAYED, (Act(Deed.RESUME, S),)),
    (standing(Run.STANDS), standing(Run.PAUSED, Job.IN), HELD, Verdict.HELD, ()),
    (standing(Run.STANDS), standing(Run.RUNS), HELD, Verdict.MOVED, (Act(Deed.DESTROY, S),)),
    (standing(Run.STANDS), standing(Run.STANDS), HELD, Verdict.STAYED, (Act(Deed.DESTROY, T), Act(Deed.RESUME, S))),
]


@pytest.mark.parametrize(("source", "destination", "move", "verdict", "done"), CASES)
def test_what_is_found(
    source: Standing, destination: Standing, move: Move, verdict: Verdict, done: tuple[Act, ...]
) -> None:
    """The states that faults have left behind, and what ends each."""
    found = diagnose(source, destination, move)
    assert (found.verdict, found.acts) == (verdict, done)


@pytest.mark.parametrize(
    ("state", "number", "reason", "run"),
    [
        (DomainState.RUNNING, 2, "migrated", Run.RUNS),
        (DomainState.RUNNING, 10, "post-copy", Run.PARTIAL),
        (DomainState.RUNNING, 11, "post-copy-failed", Run.SPLIT),
        (DomainState.PAUSED, 1, "user", Run.PAUSED),
        (DomainState.PAUSED, 2, "migration", Run.STANDS),
        (DomainState.PAUSED, 0, "unknown", Run.PAUSED),
        (DomainState.PAUSED, 12, "post-copy", Run.LEFT),
        (DomainState.PAUSED, 13, "post-copy-failed", Run.SPLIT),
        (DomainState.SHUTOFF, 6, "failed", Run.OFF),
        (DomainState.CRASHED, 1, "1", Run.OFF),
        (DomainState.SUSPENDED, 0, "0", Run.RUNS),
        (DomainState.UNKNOWN, 77, "77", Run.RUNS),
    ],
)
def test_the_numbers_are_libvirts(state: DomainState, number: int, reason: str, run: Run) -> None:
    """What is not known to stand still counts as running."""
    assert reason_of(state, number) == reason
    assert run_of(state, reason) is run


def test_jobs() -> None:
    """A job that is over is none, and one of another kind is no move."""
    assert [job_of(kind, operation) for kind, operation in ((0, 5), (3, 5), (2, 5), (1, 4), (2, 8))] == [
        Job.NONE,
        Job.NONE,
        Job.OUT,
        Job.IN,
        Job.OTHER,
    ]
