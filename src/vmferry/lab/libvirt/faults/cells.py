"""What each fault in each phase of a libvirt domain's move must end in: a table, stated before anything is run.

A cell is played like this: the move is held in the phase (a daemon stands at a function of its driver), the fault
strikes, the hold ends. A daemon that was killed is started again, a cut is healed, and then `vmferry recover` is asked
until it has nothing more to do. The domain is persistent and has a disk that both hosts see and QEMU locks; in cells
that are called *held* it has none, so that the move holds it at its arrival.

What libvirt itself does is libvirt's: where its outcome depends on which of two threads is faster, both are stated.

Source: libvirt 9.0, src/qemu/qemu_migration.c (qemuMigrationSrcPerformPeer2Peer3, qemuMigrationDstFinishFresh),
src/qemu/qemu_process.c (qemuProcessRecoverMigrationOut, -In, qemuProcessAutoDestroy).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class Phase(enum.StrEnum):
    """Where a move is when the fault strikes."""

    BEGIN = "begin"  #: the source's daemon has its job; nothing is at the destination
    PREPARE = "prepare"  #: the destination's QEMU waits; the source does not know yet
    PERFORM = "perform"  #: memory is sent
    FINISH = "finish"  #: all is there, the domain is defined there, and its vCPUs are about to run
    FINISHED = "finish-done"  #: its vCPUs run at the destination; the source does not know yet
    CONFIRM = "confirm"  #: the source knows, and is about to end its process
    POSTCOPY = "post-copy"  #: it runs at the destination, and pages are missing there


class Fault(enum.StrEnum):
    """What strikes; everything is killed with SIGKILL."""

    SOURCE_DAEMON = "source libvirtd"
    DESTINATION_DAEMON = "destination libvirtd"
    COMMAND = "vmferry"
    SOURCE_QEMU = "source QEMU"
    DESTINATION_QEMU = "destination QEMU"
    CUT = "link cut"


class Fate(enum.StrEnum):
    """Where the guest is after `recover`."""

    SOURCE = "source"  #: it runs there alone
    DESTINATION = "destination"
    OFF = "off"  #: the QEMU that had it died: it runs nowhere, nothing of it stands, and its definition is there once
    LOST = "lost"  #: a part of its memory died: what is left of it stands, and can only be ended
    HELD = "held"  #: nobody runs it, and `recover` says why and what a person has to do


@dataclass(frozen=True, slots=True)
class Expected:
    """How a cell must end."""

    fates: tuple[Fate, ...]
    why: str  #: for the reader of the page and of a failed cell

    @property
    def text(self) -> str:
        """Return the fates in words."""
        return " or ".join(self.fates)


@dataclass(frozen=True, slots=True)
class Cell:
    """A fault in a phase."""

    phase: Phase
    fault: Fault
    held: bool = False  #: the domain has no disk, and is held at its arrival

    @property
    def row(self) -> str:
        """Return how people call all cells of its phase."""
        return f"{self.phase}, held" if self.held else str(self.phase)

    @property
    def name(self) -> str:
        """Return how people call it."""
        return f"{self.row}: {self.fault}"


_P, _F = Phase, Fault
_S, _D, _O, _L, _H = Fate.SOURCE, Fate.DESTINATION, Fate.OFF, Fate.LOST, Fate.HELD


def _row(phase: Phase, *cells: tuple[Fault, Iterable[Fate] | Fate, str], held: bool = False) -> dict[Cell, Expected]:
    return {
        Cell(phase, fault, held): Expected((fates,) if isinstance(fates, Fate) else tuple(fates), why)
        for fault, fates, why in cells
    }


_ALONE = "the daemons do not need us; recover steers what still runs"
_GONE = "the guest died with its QEMU; the destination never ran it"
_RUNNING = "the guest had arrived; the source is cleaned up by libvirt, or by recover"
_LOCKED = (
    "it runs at the destination; the source takes no answer for a failure and would run it too, but its QEMU does not"
    " get the disk's lock: recover ends it there"
)
_MAYBE = (
    "the destination either finishes, or ends the domain since the connection of its maker is gone; which of the two"
    " cannot be told afterwards from a domain that is defined there and off"
)
_EITHER = (
    "the destination either finishes, and recover ends what stands at the source and lets it run there, or ends the"
    " domain, which has never run, and recover lets the source's run again"
)
_LET_RUN = "the daemons finish without us; recover lets it run"
_NEVER_RAN = (
    "the source takes no answer for a failure and lets its own run again; recover ends the one that was held at its"
    " arrival"
)
_CRASHED = "it ran at the destination and died there; the source's copy is never revived"

EXPECTED: Mapping[Cell, Expected] = {
    **_row(
        _P.BEGIN,
        (_F.SOURCE_DAEMON, _S, "a daemon that restarts forgets a job that had only begun"),
        (_F.DESTINATION_DAEMON, _S, "prepare fails"),
        (_F.COMMAND, _D, _ALONE),
        (_F.SOURCE_QEMU, _O, _GONE),
        (_F.CUT, _S, "prepare fails by keepalive"),
    ),
    **_row(
        _P.PREPARE,
        (_F.SOURCE_DAEMON, _S, "it restarts and forgets the job; the destination's half dies with the connection"),
        (_F.DESTINATION_DAEMON, _S, "prepare fails; a daemon that restarts kills a half that only waited"),
        (_F.COMMAND, _D, _ALONE),
        (_F.SOURCE_QEMU, _O, _GONE),
        (_F.DESTINATION_QEMU, _S, "there is nobody to send to"),
        (_F.CUT, _S, "prepare fails by keepalive, and the half at the destination with its connection"),
    ),
    **_row(
        _P.PERFORM,
        (_F.SOURCE_DAEMON, _S, "it restarts, cancels QEMU's migration and lets the guest run"),
        (_F.DESTINATION_DAEMON, _S, "the source gives up when the other daemon's connection ends"),
        (_F.COMMAND, _D, _ALONE),
        (_F.SOURCE_QEMU, _O, _GONE),
        (_F.DESTINATION_QEMU, _S, "QEMU's stream breaks"),
        (_F.CUT, _S, "the source gives up by keepalive"),
    ),
    **_row(
        _P.FINISH,
        (
            _F.SOURCE_DAEMON,
            (_D, _H),
            _MAYBE,
        ),
        (
            _F.DESTINATION_DAEMON,
            _S,
            "the source takes no answer for a failure, and a daemon that restarts kills the half",
        ),
        (_F.COMMAND, _D, _ALONE),
        (_F.SOURCE_QEMU, _D, "all of it had come"),
        (_F.DESTINATION_QEMU, _S, "finish fails, and the source's QEMU still has it"),
        (
            _F.CUT,
            _D,
            _LOCKED,
        ),
    ),
    **_row(
        _P.FINISHED,
        (
            _F.SOURCE_DAEMON,
            (_D, _H),
            "as in finish: the destination may end a domain that already runs, since its maker's connection is gone",
        ),
        (
            _F.DESTINATION_DAEMON,
            _D,
            _LOCKED,
        ),
        (_F.COMMAND, _D, _ALONE),
        (_F.SOURCE_QEMU, _D, _RUNNING),
        (_F.DESTINATION_QEMU, _O, _CRASHED),
        (_F.CUT, _D, "as in finish"),
    ),
    **_row(
        _P.CONFIRM,
        (_F.SOURCE_DAEMON, _D, "it restarts and ends its own process; recover removes the definition that stays"),
        (_F.DESTINATION_DAEMON, _D, _RUNNING),
        (_F.COMMAND, _D, _ALONE),
        (_F.SOURCE_QEMU, _D, _RUNNING),
        (_F.DESTINATION_QEMU, _O, _CRASHED),
        (_F.CUT, _D, _RUNNING),
    ),
    **_row(
        _P.POSTCOPY,
        (_F.SOURCE_DAEMON, _D, "QEMUs go on, and a daemon that restarts tidies up when the last page is there"),
        (_F.DESTINATION_DAEMON, _D, "QEMUs go on, and a daemon that restarts tidies up when the last page is there"),
        (_F.COMMAND, _D, _ALONE),
        (_F.SOURCE_QEMU, _L, "pages that only the source had are gone"),
        (_F.DESTINATION_QEMU, _L, "what it wrote at the destination is gone"),
        (_F.CUT, _D, "the QEMUs wait for each other, or recover has libvirt resume it"),
    ),
    **_row(
        _P.FINISH,
        (_F.SOURCE_DAEMON, (_S, _D), _EITHER),
        (_F.DESTINATION_DAEMON, _S, "as with a disk"),
        (_F.COMMAND, _D, _LET_RUN),
        (_F.SOURCE_QEMU, _D, "all of it had come"),
        (_F.DESTINATION_QEMU, _S, "finish fails, and the source's QEMU still has it"),
        (_F.CUT, _S, _NEVER_RAN),
        held=True,
    ),
    **_row(
        _P.FINISHED,
        (_F.SOURCE_DAEMON, (_S, _D), _EITHER),
        (_F.DESTINATION_DAEMON, _S, "a daemon that restarts kills a domain that stands, and the source's runs again"),
        (_F.COMMAND, _D, _LET_RUN),
        (_F.SOURCE_QEMU, _D, "all of it had come"),
        (_F.DESTINATION_QEMU, _O, "libvirt had taken it for moved, so the source ends its process"),
        (_F.CUT, _S, _NEVER_RAN),
        held=True,
    ),
    **_row(
        _P.CONFIRM,
        (_F.SOURCE_DAEMON, _D, "it restarts and ends its own process; recover lets it run at the destination"),
        (_F.DESTINATION_DAEMON, _D, "its QEMU goes on standing; recover lets it run"),
        (_F.COMMAND, _D, _LET_RUN),
        (_F.SOURCE_QEMU, _D, "all of it had come"),
        (_F.DESTINATION_QEMU, _O, "as in finish-done"),
        (_F.CUT, _D, "the source knows; it is let run when the destination's daemon can be asked"),
        held=True,
    ),
}

#: Where a daemon is held: (side, function of its driver, how many calls of it pass before). A domain that is held at
#: its arrival has no vCPUs started in finish; but the source's cookie is read as it begins, as it was in prepare.
_HELD_FINISH = ("destination", "qemuMigrationCookieParse", 1)
_HOLDS: Mapping[Phase, tuple[str, str, int]] = {
    _P.BEGIN: ("source", "qemuMigrationCookieFormat", 0),
    _P.PREPARE: ("destination", "qemuMigrationCookieFormat", 0),
    _P.FINISH: ("destination", "qemuProcessStartCPUs", 0),
    _P.FINISHED: ("destination", "qemuMigrationCookieFormat", 1),
    _P.CONFIRM: ("source", "qemuProcessStop", 0),
}


def hold_of(cell: Cell) -> tuple[str, str, int] | None:
    """Return where a daemon is held in a cell; None: in this phase none is."""
    return _HELD_FINISH if cell.held and cell.phase is Phase.FINISH else _HOLDS.get(cell.phase)


def cell_named(name: str) -> Cell:
    """Return the cell that people call so.

    Raises:
        KeyError: there is none.
    """
    return {cell.name: cell for cell in EXPECTED}[name]
