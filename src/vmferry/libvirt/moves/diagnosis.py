"""What became of a domain's move, by what both daemons say of it, and what may be done about it. A table; pure.

Theory of operation. libvirt commits a move in its Finish: there the destination's daemon first defines the domain
(where that was asked for) and then lets its vCPUs run; afterwards, in Confirm, the source's daemon ends the source's
process. A domain that is *paused by the move* has therefore, at the destination, never run; and at the source it holds
the whole guest until it is known to have run elsewhere. Nothing here makes a domain run unless the other daemon answers
and says what proves that it does not run there and never did, and nothing ends a process unless the domain runs, whole,
at the other host, or has never run in that process. Where the proof is missing the guest is *held*, with the reason and
the fix.

A domain that is *held at its arrival* is left paused by libvirt's Finish, whole. Only whoever asked for that lets it
run there, after libvirt's last word, when the source has no process of it any more: while there is one, it has not run.
Of two that stand the source's ends, and not the other: a daemon of the source that is just starting again may be about
to end it.

The first row that fits counts.

Source: libvirt src/qemu/qemu_migration.c (qemuMigrationDstFinishFresh, qemuMigrationSrcConfirmPhase),
src/qemu/qemu_process.c (qemuProcessRecoverMigrationOut and -In) of 9.0.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from vmferry.libvirt.moves.standing import Job, Run, Standing


class Side(enum.StrEnum):
    """One of the two hosts of a move."""

    SOURCE = "source"
    DESTINATION = "destination"


class Verdict(enum.StrEnum):
    """What became of the guest."""

    MOVED = "moved"  #: it is the destination's
    STAYED = "stayed"  #: it is the source's
    MOVING = "moving"  #: libvirt is at it
    OFF = "off"  #: it runs nowhere, and nobody holds it
    LOST = "lost"  #: its memory is gone: it can only be started anew
    HELD = "held"  #: whose it is is not known: nobody is to run it until it is
    TWICE = "twice"  #: it runs on both hosts


class Deed(enum.StrEnum):
    """What is done about it."""

    RESUME = "resume"
    DESTROY = "destroy"  #: end its process; its definition stays
    UNDEFINE = "undefine"  #: forget its definition; firmware variables and TPM stay
    STEER = "steer"  #: apply the policy to the job that runs
    WAIT = "wait"  #: libvirt ends this by itself
    REPAIR = "repair"  #: have libvirt resume a post-copy that broke


@dataclass(frozen=True, slots=True)
class Act:
    """One deed, at one side."""

    deed: Deed
    side: Side


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found, and what is to be done, in turn."""

    verdict: Verdict
    found: str  #: a sentence
    acts: tuple[Act, ...] = ()
    fix: str | None = None  #: what a person has to do where nothing is done

    @property
    def owner(self) -> Side | None:
        """Return whose the guest is; None: nobody's, or not known."""
        return {
            Verdict.MOVED: Side.DESTINATION,
            Verdict.STAYED: Side.SOURCE,
        }.get(self.verdict)


@dataclass(frozen=True, slots=True)
class Move:
    """What is known of a move beside what the daemons say; the defaults are a move of which nothing is known.

    Attributes:
        persists: the domain was to be defined at the destination.
        undefines: its definition was to go from the source.
        was_defined_there: the destination had a definition of it before.
        sides_known: which host is the source is known, not guessed.
        held: it is held at its arrival.
    """

    persists: bool = False
    undefines: bool = False
    was_defined_there: bool = True
    sides_known: bool = False
    held: bool = False


_Test = Callable[[Standing, Standing, Move], bool]


@dataclass(frozen=True, slots=True)
class Row:
    """One row: empty sets fit everything."""

    source: frozenset[Run]
    source_job: frozenset[Job]
    destination: frozenset[Run]
    destination_job: frozenset[Job]
    diagnosis: Diagnosis
    when: _Test | None = None

    def fits(self, source: Standing, destination: Standing, move: Move) -> bool:
        """Whether this row is about that."""
        return (
            (not self.source or source.run in self.source)
            and (not self.source_job or source.job in self.source_job)
            and (not self.destination or destination.run in self.destination)
            and (not self.destination_job or destination.job in self.destination_job)
            and (self.when is None or self.when(source, destination, move))
        )


_Condition = tuple[frozenset[Run], frozenset[Job]]


def _row(source: _Condition, destination: _Condition, diagnosis: Diagnosis, when: _Test | None = None) -> Row:
    return Row(*source, *destination, diagnosis, when)


def _at(*words: Run | Job) -> _Condition:
    """Return a side's condition: one of these runs, and one of these jobs."""
    runs = frozenset(word for word in words if isinstance(word, Run))
    return runs, frozenset(word for word in words if isinstance(word, Job))


def _other(source: Standing, destination: Standing, _: Move) -> bool:
    return None not in (source.uuid, destination.uuid) and source.uuid != destination.uuid


def _leftover_there(source: Standing, destination: Standing, move: Move) -> bool:
    return source.is_defined and destination.is_defined and move.persists and not move.was_defined_there


def _leftover_here(source: Standing, destination: Standing, move: Move) -> bool:
    return source.is_defined and destination.is_defined and move.undefines


def _both_defined(source: Standing, destination: Standing, _: Move) -> bool:
    return source.is_defined and destination.is_defined


def _unborn_there(_: Standing, destination: Standing, move: Move) -> bool:
    return move.sides_known and move.persists and not move.was_defined_there and not destination.is_defined


def _held(_: Standing, __: Standing, move: Move) -> bool:
    return move.sides_known and move.held


def _sides_known(_: Standing, __: Standing, move: Move) -> bool:
    return move.sides_known


_R, _J, _V, _D = Run, Job, Verdict, Deed
_HERE, _THERE = Side.SOURCE, Side.DESTINATION
_NOWHERE = _at(_R.ABSENT, _R.OFF)
_LOGS = "/var/log/libvirt/qemu/DOMAIN.log and libvirtd's own log on the destination"

ROWS: tuple[Row, ...] = (
    # -- what cannot be judged ------------------------------------------------------------------------------------
    _row(
        _at(),
        _at(_R.SILENT),
        Diagnosis(
            _V.HELD,
            "the destination's libvirt does not answer, so it may run there",
            fix="make libvirtd there answer, then recover again; start and resume it nowhere before",
        ),
    ),
    _row(
        _at(_R.SILENT),
        _at(),
        Diagnosis(
            _V.HELD,
            "the source's libvirt does not answer, so it may run there",
            fix="make libvirtd there answer, then recover again; start and resume it nowhere before",
        ),
    ),
    _row(
        _at(),
        _at(),
        Diagnosis(
            _V.HELD, "the two hosts have different domains of this name", fix="compare their UUIDs (virsh dominfo)"
        ),
        _other,
    ),
    _row(
        _at(_R.RUNS, _R.PARTIAL),
        _at(_R.RUNS, _R.PARTIAL),
        Diagnosis(
            _V.TWICE,
            "it runs on both hosts",
            fix="suspend one of them now (virsh suspend), keep the one whose disks are right, destroy the other",
        ),
    ),
    # -- a move under way -----------------------------------------------------------------------------------------
    _row(_at(_R.RUNS, _J.OUT), _at(), Diagnosis(_V.MOVING, "libvirt moves it", (Act(_D.STEER, _HERE),))),
    _row(
        _at(_R.LEFT, _J.OUT),
        _at(_R.RUNS, _R.PARTIAL, _R.STANDS, _R.PAUSED),
        Diagnosis(_V.MOVING, "its pages follow it (post-copy): both hosts are needed", (Act(_D.WAIT, _HERE),)),
    ),
    _row(
        _at(_R.STANDS, _R.PAUSED, _J.OUT),
        _at(),
        Diagnosis(_V.MOVING, "libvirt moves it, and it stands still meanwhile", (Act(_D.WAIT, _HERE),)),
    ),
    # -- a post-copy that broke -----------------------------------------------------------------------------------
    _row(
        _at(_R.LEFT, _R.SPLIT),
        _at(_R.SPLIT),
        Diagnosis(
            _V.HELD,
            "post-copy broke: each host has a part of its memory",
            (Act(_D.REPAIR, _HERE),),
            "make the hosts reach each other, then recover again; destroy it on neither of them",
        ),
    ),
    _row(
        _at(_R.LEFT, _R.SPLIT),
        _at(_R.RUNS, _J.NONE),
        Diagnosis(_V.MOVED, "all of its pages are there; the source's process is empty", (Act(_D.DESTROY, _HERE),)),
    ),
    _row(
        _at(_R.LEFT, _R.SPLIT, _R.STANDS, _R.PAUSED),
        _at(_R.PARTIAL),
        Diagnosis(
            _V.HELD,
            "it runs at the destination, and its libvirt does not say that all of its pages are there",
            (Act(_D.WAIT, _HERE),),
            "recover again in a minute; destroy it on neither host: what stands at the source may be all that has the"
            " rest of its memory",
        ),
    ),
    _row(
        _at(_R.LEFT, _R.SPLIT),
        _NOWHERE,
        Diagnosis(
            _V.LOST,
            "it died at the destination in post-copy, and what it wrote there went with it",
            fix="destroy what is left at the source and start it anew; never resume it there",
        ),
    ),
    _row(
        _NOWHERE,
        _at(_R.SPLIT),
        Diagnosis(
            _V.LOST,
            "the source died in post-copy with pages that never came",
            fix="destroy it at the destination and start it anew",
        ),
    ),
    _row(
        _at(_R.LEFT, _R.SPLIT),
        _at(),
        Diagnosis(
            _V.HELD,
            "its post-copy is not over, or it broke and only one host knows yet",
            (Act(_D.WAIT, _HERE),),
            "recover again in a minute; destroy it on neither host",
        ),
    ),
    # -- the source has it ----------------------------------------------------------------------------------------
    _row(
        _at(_R.RUNS),
        _at(_R.STANDS),
        Diagnosis(
            _V.STAYED,
            "it runs at the source, and half of one that never ran is at the destination",
            (Act(_D.DESTROY, _THERE),),
        ),
    ),
    _row(
        _at(_R.RUNS),
        _at(_R.OFF),
        Diagnosis(
            _V.STAYED,
            "it runs at the source, and the move has left its definition at the destination",
            (Act(_D.UNDEFINE, _THERE),),
        ),
        _leftover_there,
    ),
    _row(
        _at(_R.RUNS),
        _at(_R.PAUSED, _J.NONE),
        Diagnosis(
            _V.STAYED,
            "it runs at the source, and one that was held at its arrival, and never ran, is at the destination",
            (Act(_D.DESTROY, _THERE),),
        ),
        _held,
    ),
    _row(_at(_R.RUNS), _NOWHERE, Diagnosis(_V.STAYED, "it runs at the source, and has no process at the destination")),
    # -- the source is paused by the move -------------------------------------------------------------------------
    _row(
        _at(_R.STANDS, _J.NONE),
        _at(_R.RUNS, _J.NONE),
        Diagnosis(
            _V.MOVED,
            "it runs at the destination, and what stands at the source is an old copy",
            (Act(_D.DESTROY, _HERE),),
        ),
    ),
    _row(
        _at(_R.STANDS, _J.NONE),
        _at(_R.RUNS, _R.STANDS, _J.IN),
        Diagnosis(
            _V.HELD,
            "it stands at the source, and the destination has not finished with it",
            (Act(_D.WAIT, _THERE),),
            f"recover again in a minute; if it stays so, look into {_LOGS}",
        ),
    ),
    _row(
        _at(_R.STANDS, _J.NONE),
        _at(_R.STANDS, _J.NONE),
        Diagnosis(
            _V.STAYED,
            "it stands on both hosts, and at the destination it has never run",
            (Act(_D.DESTROY, _THERE), Act(_D.RESUME, _HERE)),
        ),
        _sides_known,
    ),
    _row(
        _at(_R.STANDS, _J.NONE),
        _at(_R.PAUSED, _J.NONE),
        Diagnosis(
            _V.MOVED,
            "it stands on both hosts, and all of it has come to the destination, which holds it at its arrival",
            (Act(_D.DESTROY, _HERE), Act(_D.RESUME, _THERE)),
        ),
        _held,
    ),
    _row(
        _at(_R.STANDS, _J.NONE),
        _NOWHERE,
        Diagnosis(
            _V.STAYED,
            "it stands at the source; at the destination it was to be held at its arrival, so it has never run there",
            (Act(_D.RESUME, _HERE),),
        ),
        _held,
    ),
    _row(
        _at(_R.STANDS, _J.NONE),
        _at(_R.ABSENT),
        Diagnosis(
            _V.STAYED,
            "it stands at the source; had it run at the destination, it would be defined there",
            (Act(_D.RESUME, _HERE),),
        ),
        _unborn_there,
    ),
    _row(
        _at(_R.STANDS, _J.NONE),
        _NOWHERE,
        Diagnosis(
            _V.HELD,
            "it stands at the source and has no process at the destination, where it may have run",
            fix=f"look into {_LOGS}: if it never ran there, `virsh resume` it at the source; if it did, `virsh destroy`"
            " it at the source and start it at the destination",
        ),
    ),
    # -- the destination has it -----------------------------------------------------------------------------------
    _row(
        _NOWHERE,
        _at(_R.PAUSED, _J.NONE),
        Diagnosis(
            _V.MOVED,
            "it is at the destination alone, held there at its arrival: all of it has come",
            (Act(_D.RESUME, _THERE),),
        ),
        _held,
    ),
    _row(
        _at(_R.OFF),
        _at(_R.RUNS, _R.PAUSED, _J.NONE),
        Diagnosis(
            _V.MOVED,
            "it is at the destination, and the move has left its definition at the source",
            (Act(_D.UNDEFINE, _HERE),),
        ),
        _leftover_here,
    ),
    _row(
        _at(_R.OFF),
        _at(_R.RUNS, _R.PAUSED, _J.NONE),
        Diagnosis(
            _V.MOVED,
            "it is at the destination, and both hosts have a definition of it",
            fix="undefine one of them, so that nobody starts it beside itself",
        ),
        _both_defined,
    ),
    _row(
        _at(_R.OFF),
        _at(_R.RUNS, _R.PAUSED, _J.NONE),
        Diagnosis(
            _V.MOVED,
            "it is at the destination, where it is not defined: only the source has its definition",
            fix="define it at the destination (virsh dumpxml --inactive at the source), then undefine it at the source",
        ),
    ),
    _row(_at(_R.ABSENT), _at(_R.RUNS, _J.NONE), Diagnosis(_V.MOVED, "it runs at the destination alone")),
    _row(
        _at(_R.ABSENT),
        _at(_R.PAUSED, _J.NONE),
        Diagnosis(
            _V.MOVED, "it is at the destination alone, paused there by somebody", fix="virsh resume, when it may run"
        ),
    ),
    _row(
        _NOWHERE,
        _at(_J.IN),
        Diagnosis(
            _V.HELD,
            "the source has no process of it any more, and the destination has not finished with it",
            (Act(_D.WAIT, _THERE),),
            f"recover again in a minute; if it stays so, look into {_LOGS}",
        ),
    ),
    _row(
        _NOWHERE,
        _at(_R.PARTIAL),
        Diagnosis(
            _V.HELD,
            "the source has no process of it any more, and the destination's libvirt does not say that all pages came",
            (Act(_D.WAIT, _THERE),),
            f"recover again in a minute; if it stays so, look whether the guest answers, and into {_LOGS}",
        ),
    ),
    _row(
        _NOWHERE,
        _at(_R.STANDS),
        Diagnosis(
            _V.HELD,
            "it stands at the destination, and the source, which alone knew whether all of it has come, has no process",
            fix="if the source's log of it says `migrated`, `virsh resume` it at the destination; else destroy it there"
            " and start it anew",
        ),
    ),
    # -- nobody has it --------------------------------------------------------------------------------------------
    _row(
        _NOWHERE,
        _NOWHERE,
        Diagnosis(_V.OFF, "it has a process on neither host", fix="start it where it is defined (virsh start)"),
    ),
    # -- paused by somebody ---------------------------------------------------------------------------------------
    _row(
        _at(_R.PAUSED, _J.NONE),
        _NOWHERE,
        Diagnosis(
            _V.STAYED, "it is at the source alone, paused there by somebody", fix="virsh resume, when it may run"
        ),
    ),
    _row(
        _at(),
        _at(),
        Diagnosis(
            _V.HELD,
            "the two hosts have it in states that no move leaves behind",
            fix="look at it on both hosts (virsh domstate --reason, virsh domjobinfo) and resume at most one",
        ),
    ),
)


_UNKNOWN = Move()


def diagnose(source: Standing, destination: Standing, move: Move = _UNKNOWN) -> Diagnosis:
    """Return what became of a move; total: every pair of standings has a row.

    Args:
        source: of the host that the domain left, or was to leave.
        destination: of the other.
        move: what is known of it.
    """
    return next(row.diagnosis for row in ROWS if row.fits(source, destination, move))
