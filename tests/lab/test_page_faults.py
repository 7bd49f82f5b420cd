"""The device for page faults is open for as long as anybody in the lab needs it."""

from __future__ import annotations

from pathlib import Path

from vmferry.lab.page_faults import page_faults_for_all


def mode(path: Path) -> int:
    """Return a file's permissions."""
    return path.stat().st_mode & 0o777


def test_the_last_one_out_closes_it(tmp_path: Path) -> None:
    """Two at once: the first to leave, whichever entered first, leaves it open."""
    device, lock = tmp_path / "userfaultfd", tmp_path / "lock"
    device.touch(mode=0o600)
    first, second = page_faults_for_all(device, lock), page_faults_for_all(device, lock)
    first.__enter__()
    second.__enter__()
    assert mode(device) == 0o666
    first.__exit__(None, None, None)
    assert mode(device) == 0o666
    second.__exit__(None, None, None)
    assert mode(device) == 0o600


def test_who_was_killed_left_the_mode_for_the_next_one(tmp_path: Path) -> None:
    """The mode from before is remembered beyond a process's end."""
    device, lock = tmp_path / "userfaultfd", tmp_path / "lock"
    device.touch()
    device.chmod(0o666)
    lock.write_text("640")
    with page_faults_for_all(device, lock):
        assert mode(device) == 0o666
    assert mode(device) == 0o640


def test_without_a_device_nothing_is_done(tmp_path: Path) -> None:
    """A kernel without it is no error."""
    with page_faults_for_all(tmp_path / "none", tmp_path / "lock"):
        assert not (tmp_path / "lock").exists()
