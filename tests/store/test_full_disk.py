"""A really full disk under journal and identity files."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = textwrap.dedent("""
    import sys
    from pathlib import Path
    from vmferry.core.errors import Broken
    from vmferry.core.ids import Epoch, HandoverId, HostName
    from vmferry.pki.files import write_private
    from vmferry.ports.store import Token
    from vmferry.store.sqlite import SqliteJournal
    from vmferry.testing.conformance_store import WEB, make_guest_row, make_handover_row

    top = Path(sys.argv[1])
    (top / "kept").write_bytes(b"before")
    journal = SqliteJournal(top / "journal.sqlite")
    journal.put_guest(make_guest_row())
    journal.open_handover(make_handover_row())
    written = 0
    try:
        while True:
            token = Token(Epoch(written + 2), HostName("host-a"), running=True)
            event = {"n": written + 1, "filler": "x" * 2000}
            journal.append(HandoverId("h1"), "source", [(event, f"S{written + 1}")], token=(WEB, token))
            written += 1
    except Broken as error:
        assert "disk is full" in error.what and str(top) in error.what, error
    try:
        write_private(top / "kept", b"y" * 1_000_000)
    except Broken as error:
        assert "No space left" in error.what, error
    else:
        raise AssertionError("the disk was not full")
    assert (top / "kept").read_bytes() == b"before"
    names = sorted(path.name for path in top.iterdir())
    assert names == ["journal.sqlite", "journal.sqlite-shm", "journal.sqlite-wal", "kept"], names
    assert written > 10
    numbers = [row.event["n"] for row in journal.events(HandoverId("h1"), "source")]
    assert numbers == list(range(1, written + 1)), (numbers, written)
    assert journal.handover(HandoverId("h1"), "source").state == f"S{written}"
    assert journal.guest(WEB).token.epoch == written + 1
    journal.close()
    again = SqliteJournal(top / "journal.sqlite")
    assert len(again.events(HandoverId("h1"), "source")) == written
    again.close()
    print("held", written)
""")


@pytest.mark.root
def test_full_disk(tmp_path: Path) -> None:
    """On a file system that is full every failed write is said and leaves nothing, and all earlier ones stand."""
    mount = f'mount -t tmpfs -o size=512k none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    done = subprocess.run(["unshare", "-m", "sh", "-c", mount, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("held ")
