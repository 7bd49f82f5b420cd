"""What was asked of libvirt is kept for whoever recovers, and says whether somebody steers the move."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vmferry.cli import libvirt_records
from vmferry.cli.libvirt_records import MoveRecord, find_record, forget, holding, is_steered, records, steering
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


def test_passwords_are_not_written(tmp_path: Path) -> None:
    """The domain's XML has them: it is left out, however large; the rest comes back as it was."""
    given = {"migrate_disks": ("vda", "vdb"), "bandwidth": 100}
    secret = {"destination_xml": "<graphics passwd='hunter2'/>" * 40_000, "persistent_xml": "hunter2"}
    with steering(replace(RECORD, parameters={**given, **secret}), tmp_path):
        assert find_record("web-7", tmp_path) == replace(RECORD, parameters=given)
        assert "hunter2" not in (tmp_path / "moves" / "web-7.json").read_text()


def test_nobody_else_can_look_at_a_record(tmp_path: Path) -> None:
    """Whatever this process lets others do to its files."""
    before = os.umask(0)
    try:
        with steering(RECORD, tmp_path / "vmferry"):
            pass
    finally:
        os.umask(before)
    made = (tmp_path / "vmferry", tmp_path / "vmferry" / "moves", tmp_path / "vmferry" / "moves" / "web-7.json")
    assert [oct(path.stat().st_mode & 0o777) for path in made] == ["0o700", "0o700", "0o600"]


def test_a_record_that_goes_before_it_is_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process forgets the last move between open and lock: this one's record is to be seen all the same."""
    with steering(RECORD, tmp_path):
        pass
    lock = libvirt_records._lock
    went: list[str] = []

    def late(file: int, guest: str) -> None:
        if not went:
            went.append(guest)
            forget(guest, tmp_path)
        lock(file, guest)

    monkeypatch.setattr(libvirt_records, "_lock", late)
    with steering(RECORD, tmp_path):
        assert (find_record("web-7", tmp_path), is_steered("web-7", tmp_path)) == (RECORD, True)


def test_who_asks_keeps_nobody_from_steering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody begins just while another looks whether anybody does."""
    with steering(RECORD, tmp_path):
        pass
    close = os.close
    began: list[int] = []

    def steer_first(file: int) -> None:
        if not began:
            began.append(file)
            with steering(RECORD, tmp_path):
                pass
        close(file)

    monkeypatch.setattr("os.close", steer_first)
    assert not is_steered("web-7", tmp_path)
    assert began


def test_a_record_is_held_as_it_is(tmp_path: Path) -> None:
    """Nothing is made where there is none; nothing is written to one; and one that is steered is not held."""
    with holding("web-7", tmp_path) as is_kept:
        assert (is_kept, records(tmp_path)) == (False, ())
    with steering(RECORD, tmp_path), pytest.raises(GuestBusy), holding("web-7", tmp_path):
        pass
    with holding("web-7", tmp_path) as is_kept:
        assert (is_kept, is_steered("web-7", tmp_path), find_record("web-7", tmp_path)) == (True, True, RECORD)


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


NO_FLAGS = '{"guest": "web-7", "source": "host-a", "destination": "host-b", "flags": 3, "parameters": 4}'


@pytest.mark.parametrize("text", ["{", "[]", '{"guest": "web-8"}', '{"guest": "web-7", "source": 3}', "null", NO_FLAGS])
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
