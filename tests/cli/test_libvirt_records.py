"""What was asked of libvirt is kept for whoever recovers, and says whether somebody steers the move."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vmferry.cli.libvirt_records import MoveRecord, find_record, forget, is_steered, records, steering
from vmferry.core.errors import BadInput, GuestBusy

RECORD = MoveRecord(
    "web-7",
    "host-a",
    "host-b",
    {"policy": "vmferry", "max_bandwidth": 100, "plain": True},
    ("LIVE", "PEER2PEER", "PERSIST_DEST"),
    {"bandwidth": 100, "migrate_uri": "tcp://host-b"},
    was_defined_there=False,
    begun_at=12.5,
)


def test_a_record_is_there_until_it_is_forgotten(tmp_path: Path) -> None:
    """It comes back as it was written, and nobody else can read it."""
    assert find_record("web-7", tmp_path) is None
    with steering(RECORD, tmp_path):
        assert find_record("web-7", tmp_path) == RECORD
        assert is_steered("web-7", tmp_path)
    assert find_record("web-7", tmp_path) == RECORD
    assert not is_steered("web-7", tmp_path)
    assert records(tmp_path) == ("web-7",)
    assert (tmp_path / "moves" / "web-7.json").stat().st_mode & 0o077 == 0
    forget("web-7", tmp_path)
    forget("web-7", tmp_path)
    assert (find_record("web-7", tmp_path), records(tmp_path)) == (None, ())


def test_one_process_steers(tmp_path: Path) -> None:
    """A second one is refused, and leaves the record as it is."""
    with steering(RECORD, tmp_path):
        with pytest.raises(GuestBusy, match="another vmferry steers the move of web-7"), steering(RECORD, tmp_path):
            pass
        assert find_record("web-7", tmp_path) == RECORD


def test_a_process_that_is_killed_steers_no_more(tmp_path: Path) -> None:
    """Its record is there, and its lock has gone with it."""
    text = (
        "import sys, time\nfrom pathlib import Path\nfrom vmferry.cli.libvirt_records import MoveRecord, steering\n"
        "with steering(MoveRecord('web-7', 'host-a', 'host-b'), Path(sys.argv[1])):\n"
        "    print('steers', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", text, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"steers\n"
        assert is_steered("web-7", tmp_path)
        process.kill()
    assert not is_steered("web-7", tmp_path)
    found = find_record("web-7", tmp_path)
    assert found is not None
    assert (found.source, found.destination) == ("host-a", "host-b")


@pytest.mark.parametrize("text", ["{", "[]", '{"guest": "web-8"}', '{"guest": "web-7", "source": 3}', "null"])
def test_a_record_that_is_spoilt_is_told(tmp_path: Path, text: str) -> None:
    """It is not taken for none: a move may be under way."""
    (tmp_path / "moves").mkdir()
    (tmp_path / "moves" / "web-7.json").write_text(text)
    with pytest.raises(BadInput, match="record of the last move of web-7"):
        find_record("web-7", tmp_path)


def test_a_process_that_died_before_it_asked_anything(tmp_path: Path) -> None:
    """There is no move: an empty record is none."""
    (tmp_path / "moves").mkdir()
    (tmp_path / "moves" / "web-7.json").write_text("")
    assert find_record("web-7", tmp_path) is None


@pytest.mark.parametrize("name", ["../web-7", "a/b", ".web-7"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    """A domain may have any name; none leads out of the folder."""
    with pytest.raises(BadInput, match="is none that is moved here"):
        find_record(name, tmp_path)
