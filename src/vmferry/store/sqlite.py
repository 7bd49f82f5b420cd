"""`SqliteJournal`: the Journal on SQLite in WAL mode, durable with every call (synchronous=FULL).

One connection, used from one thread, the event loop's: a write takes about 0.3 ms, less than a hop to a thread would.
It may be opened in another one, since opening may wait for a disk. Every write is one transaction: it stands wholly, or
an error was raised and nothing of it does.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmferry.core.device_claims import DeviceClaim, check_claims
from vmferry.core.errors import BadInput, Broken, GuestBusy, NotFound, Refused
from vmferry.core.ids import GuestName, HandoverId
from vmferry.core.pci import PciAddress
from vmferry.core.units import Bytes, format_bytes
from vmferry.ports.store import EventRow, GuestRow, HandoverRow, JournalStep, Reservation, Saving, Token
from vmferry.store import codec, schema
from vmferry.store.faults import journal_fault

#: How long a write waits for a lock that a person's sqlite3 shell may hold; the event loop stands still meanwhile.
_LOCK_WAIT_S = 0.5

_PUT_GUEST = """
INSERT INTO guests (name, guest, epoch, owner, running, cont_intent, desired, process, beat_port, uid, note)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET
    guest = excluded.guest, epoch = excluded.epoch, owner = excluded.owner, running = excluded.running,
    cont_intent = excluded.cont_intent, desired = excluded.desired, process = excluded.process,
    beat_port = excluded.beat_port, uid = excluded.uid, note = excluded.note
"""
_APPEND = "INSERT INTO events (handover, side, event, state, at) VALUES (?, ?, ?, ?, ?)"
_ADVANCE = "UPDATE handovers SET state = ?, finished = max(finished, ?) WHERE id = ? AND side = ?"
_FINISH = "UPDATE handovers SET finished = 1 WHERE id = ? AND side = ?"
_OWN = "UPDATE guests SET epoch = ?, owner = ?, running = ?, cont_intent = ? WHERE name = ?"
_OPEN = "INSERT INTO handovers (id, guest, side, peer, state, request, report, finished, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: E501 - one statement


class SqliteJournal:
    """The agent's durable memory in one SQLite file.

    Args:
        path: the file; made with mode 0600, its directory (if missing) with 0700.
        now: returns Unix time, for the events' time stamps.

    Raises:
        Broken: the file cannot be opened, is no journal, or was written by a newer agent.
    """

    def __init__(self, path: Path | str, *, now: Callable[[], float] = time.time) -> None:
        self._path = str(path)
        self._now = now
        self._thread: int | None = None  #: the one that used it first
        _make_private(Path(path))
        with self._faults("opening it"):
            self._db = sqlite3.connect(self._path, isolation_level=None, timeout=_LOCK_WAIT_S, check_same_thread=False)
        try:
            with self._faults("opening it"):
                self._db.row_factory = sqlite3.Row
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute("PRAGMA foreign_keys = ON")
                schema.migrate(self._db, self._path)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file; everything that was acknowledged stands already. Idempotent."""
        self._db.close()

    def guests(self) -> Sequence[GuestRow]:
        """Return every guest row."""
        return [codec.load_guest_row(row) for row in self._read("SELECT * FROM guests ORDER BY name")]

    def guest(self, name: GuestName) -> GuestRow | None:
        """Return one guest row."""
        rows = self._read("SELECT * FROM guests WHERE name = ?", name)
        return codec.load_guest_row(rows[0]) if rows else None

    def put_guest(self, row: GuestRow) -> None:
        """Insert or replace a guest row."""
        token = row.token
        values = (
            *(row.guest.spec.name, codec.dump_guest(row.guest)),
            *(token.epoch, token.owner, token.running, token.cont_intent),
            *(row.desired.value, codec.dump_process(row.process), row.beat_port, row.uid, row.note),
        )
        with self._transaction(f"storing guest {row.guest.spec.name}"):
            self._db.execute(_PUT_GUEST, values)

    def remove_guest(self, name: GuestName) -> None:
        """Forget a guest; unknown names are no error."""
        with self._transaction(f"removing guest {name}"):
            self._db.execute("DELETE FROM guests WHERE name = ?", (name,))

    def open_handover(self, row: HandoverRow) -> None:
        """Insert a hand-over.

        Raises:
            GuestBusy: the guest has an unfinished one here.
            BadInput: this side of this hand-over stands here already.
        """
        report = None if row.report is None else codec.dump_object(row.report)
        values = (
            *(row.id, row.guest, row.side, row.peer, row.state),
            *(codec.dump_object(row.request), report, row.finished, row.created_at),
        )
        with self._transaction(f"opening hand-over {row.id}"):
            if self.handover(row.id, row.side) is not None:
                raise BadInput(f"Hand-over {row.id} stands in the journal already as {row.side}")
            try:
                self._db.execute(_OPEN, values)
            except sqlite3.IntegrityError as error:
                self._raise_busy(row.guest, error)

    def append(
        self,
        handover: HandoverId,
        side: str,
        steps: Sequence[JournalStep],
        *,
        token: tuple[GuestName, Token] | None = None,
        finished: bool = False,
    ) -> None:
        """Write events in order, the last one's state and, if given, the guest's new token in one transaction.

        Raises:
            NotFound: no such hand-over, or no row of the guest whose token it is; nothing was written.
        """
        now = self._now()
        rows = [(handover, side, codec.dump_object(event), state, now) for event, state in steps]
        with self._transaction(f"appending to hand-over {handover}"):
            if self._db.execute(_ADVANCE, (steps[-1][1], finished, handover, side)).rowcount != 1:
                raise NotFound(f"Hand-over {handover} ({side}) is not in the journal")
            self._db.executemany(_APPEND, rows)
            if token is not None:
                self._own(*token)

    def finish(self, handover: HandoverId, side: str) -> None:
        """Note that a hand-over's last effect was carried out. Idempotent.

        Raises:
            NotFound: no such hand-over.
        """
        with self._transaction(f"finishing hand-over {handover}"):
            if self._db.execute(_FINISH, (handover, side)).rowcount != 1:
                raise NotFound(f"Hand-over {handover} ({side}) is not in the journal")

    def handovers(self, *, unfinished_only: bool = False) -> Sequence[HandoverRow]:
        """Return hand-overs, newest first."""
        where = "WHERE finished = 0" if unfinished_only else ""
        rows = self._read(f"SELECT * FROM handovers {where} ORDER BY opened DESC")  # noqa: S608 - our own two texts
        return [codec.load_handover_row(row) for row in rows]

    def handover(self, handover: HandoverId, side: str) -> HandoverRow | None:
        """Return one hand-over."""
        rows = self._read("SELECT * FROM handovers WHERE id = ? AND side = ?", handover, side)
        return codec.load_handover_row(rows[0]) if rows else None

    def events(self, handover: HandoverId, side: str) -> Sequence[EventRow]:
        """Return the events of one hand-over in order."""
        rows = self._read("SELECT * FROM events WHERE handover = ? AND side = ? ORDER BY seq", handover, side)
        return [codec.load_event_row(row) for row in rows]

    def put_report(self, handover: HandoverId, side: str, report: dict[str, object]) -> None:
        """Store a hand-over's report.

        Raises:
            NotFound: no such hand-over.
        """
        self._put(handover, side, "report", report)

    def put_request(self, handover: HandoverId, side: str, request: dict[str, object]) -> None:
        """Store what is asked for now, where it was changed on the way.

        Raises:
            NotFound: no such hand-over.
        """
        self._put(handover, side, "request", request)

    def _put(self, handover: HandoverId, side: str, column: str, value: dict[str, object]) -> None:
        text = codec.dump_object(value)
        with self._transaction(f"storing the {column} of hand-over {handover}"):
            done = self._db.execute(
                f"UPDATE handovers SET {column} = ? WHERE id = ? AND side = ?",  # noqa: S608 - a column of ours
                (text, handover, side),
            )
            if done.rowcount != 1:
                raise NotFound(f"Hand-over {handover} ({side}) is not in the journal")

    def begin_saving(self, saving: Saving) -> None:
        """Note that a guest goes into a file, or out of one.

        Raises:
            GuestBusy: it does already.
        """
        values = (saving.id, saving.guest, str(saving.kind), saving.path)
        with self._transaction(f"noting the {saving.kind} of guest {saving.guest}"):
            found = self._db.execute("SELECT kind, path FROM savings WHERE guest = ?", (saving.guest,)).fetchone()
            if found is not None:
                raise GuestBusy(f"Guest {saving.guest} has an unfinished {found['kind']}, file {found['path']}")
            self._db.execute("INSERT INTO savings (id, guest, kind, path, committed) VALUES (?, ?, ?, ?, 0)", values)

    def commit_saving(self, saving: str, guest: GuestName, token: Token, digest: str | None = None) -> None:
        """Note that it is committed, and the guest's new token, in one transaction.

        Raises:
            NotFound: there is no such saving, or no such guest.
        """
        values = (token.epoch, token.owner, token.running, token.cont_intent, guest)
        with self._transaction(f"committing {saving}"):
            noted = self._db.execute("UPDATE savings SET committed = 1, digest = ? WHERE id = ?", (digest, saving))
            if noted.rowcount != 1 or self._db.execute(_OWN, values).rowcount != 1:
                raise NotFound(f"Guest {guest} or what was begun with it ({saving}) is not in the journal")

    def end_saving(self, saving: str) -> None:
        """Forget it; unknown ones are no error."""
        with self._transaction(f"ending {saving}"):
            self._db.execute("DELETE FROM savings WHERE id = ?", (saving,))

    def savings(self) -> Sequence[Saving]:
        """Return what has begun and not ended."""
        rows = self._read("SELECT * FROM savings ORDER BY guest")
        return [codec.load_saving(row) for row in rows]

    def claim_devices(self, claims: Sequence[DeviceClaim]) -> None:
        """Note which devices are kept for a guest, all or none.

        Raises:
            Refused: one, its group or its port is kept already; says for whom.
        """
        rows = [codec.dump_claim(claim) for claim in claims]
        with self._transaction(f"keeping devices for {claims[0].guest if claims else 'nobody'}"):
            check_claims(claims, self.device_claims())
            self._db.executemany("INSERT INTO devices VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def release_device(self, address: PciAddress) -> None:
        """Note that a device was given back; unknown ones are no error."""
        with self._transaction(f"giving {address} back"):
            self._db.execute("DELETE FROM devices WHERE address = ?", (str(address),))

    def device_claims(self) -> Sequence[DeviceClaim]:
        """Return which devices are kept for guests."""
        return [codec.load_claim(row) for row in self._read("SELECT * FROM devices ORDER BY address")]

    def reserve(self, reservation: Reservation, memory_free_bytes: Bytes) -> None:
        """Hold memory, port and name, all or nothing; the same reservation again changes nothing.

        Raises:
            Refused: memory, port or name is gone.
        """
        with self._transaction(f"reserving for hand-over {reservation.handover}"):
            held = self.reservations()
            if reservation in held:
                return
            check_reservation(reservation, held, memory_free_bytes)
            values = (reservation.handover, reservation.guest, reservation.memory_bytes, reservation.port)
            self._db.execute("INSERT INTO reservations VALUES (?, ?, ?, ?)", values)

    def release(self, handover: HandoverId) -> None:
        """Give a reservation back; unknown ones are no error."""
        with self._transaction(f"releasing hand-over {handover}"):
            self._db.execute("DELETE FROM reservations WHERE handover = ?", (handover,))

    def reservations(self) -> Sequence[Reservation]:
        """Return what is held now."""
        return [codec.load_reservation(row) for row in self._read("SELECT * FROM reservations ORDER BY handover")]

    def _own(self, name: GuestName, token: Token) -> None:
        """Write a guest's token inside the open transaction."""
        values = (token.epoch, token.owner, token.running, token.cont_intent, name)
        if self._db.execute(_OWN, values).rowcount != 1:
            raise NotFound(f"Guest {name} is not in the journal, its token cannot be written")

    def _raise_busy(self, guest: GuestName, error: sqlite3.IntegrityError) -> None:
        """Tell which hand-over holds the guest; anything else SQLite complained about is passed on."""
        rows = self._read("SELECT id, peer FROM handovers WHERE guest = ? AND finished = 0", guest)
        if not rows:
            raise error
        raise GuestBusy(
            f"Guest {guest} is held by hand-over {rows[0]['id']} with {rows[0]['peer']}",
            fix=f"wait for it (vmferry watch {rows[0]['id']}) or cancel it",
            retry=True,
        ) from error

    def _read(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """Return all rows of a query."""
        self._check_thread()
        with self._faults("reading it"):
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self, doing: str) -> Iterator[None]:
        """Commit what the body writes when it ends well; leave nothing of it otherwise."""
        self._check_thread()
        with self._faults(doing):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # A full disk makes SQLite roll back on its own; a second ROLLBACK would hide the cause.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _faults(self, doing: str) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.Error as error:
            raise journal_fault(self._path, doing, error) from error

    def _check_thread(self) -> None:
        """Hold that one thread uses the connection: another one would write into its transactions."""
        current = threading.get_ident()
        if self._thread is None:
            self._thread = current
        if self._thread != current:
            raise RuntimeError(f"journal {self._path} is used from a second thread")


def check_reservation(new: Reservation, held: Sequence[Reservation], memory_free_bytes: Bytes) -> None:
    """Say whether a reservation fits beside those that are held.

    Raises:
        Refused: memory, port, name or hand-over is taken; says which, and by whom.
    """
    for other in held:
        if other.handover == new.handover:
            raise Refused(f"Hand-over {new.handover} holds another reservation here already")
        if other.guest == new.guest:
            raise Refused(f"Guest name {new.guest} is held here by hand-over {other.handover}", retry=True)
        if other.port == new.port:
            raise Refused(f"Migration port {new.port} is held here by hand-over {other.handover}", retry=True)
    reserved = sum(other.memory_bytes for other in held)
    if reserved + new.memory_bytes > memory_free_bytes:
        raise Refused(
            f"Guest {new.guest} needs {format_bytes(new.memory_bytes)} of memory here, "
            f"{format_bytes(max(0, memory_free_bytes - reserved))} is free "
            f"({format_bytes(reserved)} is held for other arrivals)",
            fix="choose another host, or wait for the other arrivals",
            retry=True,
        )


def _make_private(path: Path) -> None:
    """Make the file with mode 0600 (SQLite's -wal and -shm take the mode over) and its directory with 0700."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise Broken(
            f"Journal {path} cannot be opened: {error.strerror}",
            fix="make its directory writable for the agent's user, free space, or set another state_dir",
        ) from error
