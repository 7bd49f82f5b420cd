"""What only the SQLite journal can get wrong: files, faults and crashes."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vmferry.core.errors import Broken
from vmferry.core.ids import Epoch, HandoverId, HostName
from vmferry.ports.store import Token
from vmferry.store import schema
from vmferry.store.sqlite import SqliteJournal
from vmferry.testing.conformance_store import WEB, make_guest_row, make_handover_row

H1 = HandoverId("h1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a journal will be."""
    return tmp_path / "state" / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[SqliteJournal]:
    """A journal with one guest and one open hand-over."""
    journal = SqliteJournal(path)
    journal.put_guest(make_guest_row())
    journal.open_handover(make_handover_row())
    yield journal
    journal.close()


def test_everything_is_private(journal: SqliteJournal, path: Path) -> None:
    """Directory and all files of the journal are for the agent's user only."""
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
    assert modes == {"journal.db": 0o600, "journal.db-wal": 0o600, "journal.db-shm": 0o600}


def test_reopened_is_the_same(journal: SqliteJournal, path: Path) -> None:
    """A journal that was closed and opened again holds the same."""
    journal.append(H1, "source", [({"event": "reserved"}, "RESERVED")])
    before = (journal.guests(), journal.handovers(), journal.events(H1, "source"))
    journal.close()
    again = SqliteJournal(path)
    assert (again.guests(), again.handovers(), again.events(H1, "source")) == before
    again.close()


def test_newer_schema_is_refused_untouched(journal: SqliteJournal, path: Path) -> None:
    """A journal of a newer agent is refused with both versions, and stays as it was."""
    journal.close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(Broken, match=f"version 99, this agent knows versions up to {schema.SCHEMA_VERSION}"):
        SqliteJournal(path)
    assert path.read_bytes() == before


def test_older_schema_is_migrated(journal: SqliteJournal, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal of an older agent is brought forward with its rows."""
    journal.close()
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE extra (x INTEGER) STRICT;\n"))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", len(schema.MIGRATIONS))
    again = SqliteJournal(path)
    assert again.guest(WEB) == make_guest_row()
    assert schema.read_version(again._db) == len(schema.MIGRATIONS)
    again.close()


def test_failed_migration_leaves_the_old_schema(
    journal: SqliteJournal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that fails halfway leaves the version that was there."""
    journal.close()
    bad = "CREATE TABLE extra (x INTEGER) STRICT;\nCREATE TABLE guests (x INTEGER) STRICT;\n"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, bad))
        patch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
        with pytest.raises(Broken):
            SqliteJournal(path)
    again = SqliteJournal(path)
    assert again._db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'extra'").fetchone()[0] == 0
    again.close()


def test_no_journal_is_said(path: Path) -> None:
    """A file that is something else is refused by name."""
    path.parent.mkdir()
    path.write_bytes(b"x" * 8192)
    with pytest.raises(Broken, match="is not a journal"):
        SqliteJournal(path)


def test_full_disk_writes_nothing(journal: SqliteJournal, path: Path) -> None:
    """On a full disk an append raises Broken with the path, and event, state and token are all unwritten."""
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    token = Token(Epoch(2), HostName("host-b"), running=True)
    with pytest.raises(Broken, match="disk is full") as caught:
        journal.append(H1, "source", [({"event": "x" * 100_000}, "COMMITTED")], token=(WEB, token))
    assert str(path) in caught.value.what
    assert caught.value.retry
    row = journal.handover(H1, "source")
    assert row is not None
    assert row.state == "CHECKING"
    assert journal.guest(WEB) == make_guest_row()
    journal._db.execute("PRAGMA max_page_count = 100000")
    journal.append(H1, "source", [({"event": "x" * 100_000}, "COMMITTED")], token=(WEB, token))


def test_read_only_is_said(journal: SqliteJournal) -> None:
    """A journal that cannot be written says so and what to do."""
    journal._db.execute("PRAGMA query_only = ON")
    with pytest.raises(Broken, match="read-only") as caught:
        journal.append(H1, "source", [({"event": "x"}, "S")])
    assert caught.value.fix is not None


def test_locked_is_said(journal: SqliteJournal, path: Path) -> None:
    """A lock that another process holds is named, and the write can be repeated."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Broken, match="another process holds a lock") as caught:
        journal.append(H1, "source", [({"event": "x"}, "S")])
    assert caught.value.retry
    other.execute("ROLLBACK")
    other.close()
    journal.append(H1, "source", [({"event": "x"}, "S")])


def test_unusable_directory_is_said(tmp_path: Path) -> None:
    """A directory that cannot be made is an error with the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(Broken, match=r"journal\.db cannot be opened"):
        SqliteJournal(tmp_path / "file" / "journal.db")


def test_damaged_row_is_said(journal: SqliteJournal) -> None:
    """A guest row with an unknown key is refused by name instead of being half read."""
    journal._db.execute("UPDATE guests SET guest = replace(guest, '\"uuid\"', '\"uuid2\"')")
    with pytest.raises(Broken, match="row of guest web-7"):
        journal.guests()


WRITER = textwrap.dedent("""
    import sys
    from vmferry.core.ids import Epoch, HandoverId, HostName
    from vmferry.ports.store import Token
    from vmferry.store.sqlite import SqliteJournal
    from vmferry.testing.conformance_store import WEB, make_guest_row, make_handover_row
    journal = SqliteJournal(sys.argv[1])
    journal.put_guest(make_guest_row())
    journal.open_handover(make_handover_row())
    number = 1
    while True:
        number += 1
        token = Token(Epoch(number), HostName("host-a"), running=True)
        journal.append(HandoverId("h1"), "source", [({"n": number}, f"S{number}")], token=(WEB, token))
        print(number, flush=True)
""")


def test_acknowledged_survives_kill(path: Path) -> None:
    """Whatever a writer that is killed had acknowledged is there, and event, state and token agree."""
    for wanted in (50, 77, 301):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        acknowledged = 0
        for line in process.stdout:
            acknowledged = int(line)
            if acknowledged == wanted:
                os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        journal = SqliteJournal(path)
        numbers = [row.event["n"] for row in journal.events(H1, "source")]
        row, guest = journal.handover(H1, "source"), journal.guest(WEB)
        journal.close()
        assert acknowledged >= wanted
        assert numbers == list(range(2, len(numbers) + 2))
        assert numbers[-1] in {acknowledged, acknowledged + 1}
        assert row is not None
        assert guest is not None
        assert (row.state, guest.token.epoch) == (f"S{numbers[-1]}", numbers[-1])


def test_opened_elsewhere_used_in_one_thread(path: Path) -> None:
    """A journal may be opened in another thread; a second thread that uses it is refused."""
    with ThreadPoolExecutor(1) as pool:
        journal = pool.submit(SqliteJournal, path).result()
        journal.put_guest(make_guest_row())
        with pytest.raises(RuntimeError, match="second thread"):
            pool.submit(journal.guests).result()
    journal.close()
