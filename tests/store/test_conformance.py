"""Every Journal passes the kit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.ports.store import Journal
from vmferry.store.sqlite import SqliteJournal
from vmferry.testing.conformance_store import JournalConformance
from vmferry.testing.fake_journal import FakeJournal


class TestSqlite(JournalConformance):
    @pytest.fixture
    def journal(self, tmp_path: Path) -> Iterator[Journal]:
        """A new file."""
        journal = SqliteJournal(tmp_path / "state" / "journal.db")
        yield journal
        journal.close()


class TestFake(JournalConformance):
    @pytest.fixture
    def journal(self) -> Journal:
        """A new fake."""
        return FakeJournal()
