"""Files of images that arrive: never another's, gone after a failure, whatever crashed in between."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from vmferry.agent.files import file_facts
from vmferry.core.disks import Image, ImageCopy
from vmferry.core.errors import Refused
from vmferry.core.guest import DiskFormat
from vmferry.core.ids import HandoverId
from vmferry.core.units import MIB, Bytes
from vmferry.disks.files import LocalDiskFiles
from vmferry.qemu.image_dirs import image_dirs
from vmferry.qemu.image_locks import why_locked

MOVE, OTHER = HandoverId("00000000000000aa"), HandoverId("00000000000000bb")


def copy_of(path: Path, kind: DiskFormat = DiskFormat.RAW, size: int = 4 * MIB) -> ImageCopy:
    """Return a copy that is to be made."""
    return ImageCopy(Image("image0", str(path), kind), Bytes(size))


@pytest.fixture
def files() -> LocalDiskFiles:
    """Files anywhere."""
    return LocalDiskFiles(lambda _: None, why_locked)


def names(folder: Path) -> list[str]:
    """Return what is in a directory."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", list(DiskFormat))
def test_an_image_is_made_and_kept(files: LocalDiskFiles, tmp_path: Path, kind: DiskFormat) -> None:
    """Empty, of the guest's size, readable by its owner only; one name is left when the guest is here."""
    path = tmp_path / "web-7.img"
    files.make(MOVE, [copy_of(path, kind)])
    told = subprocess.run(["qemu-img", "info", "--output=json", str(path)], capture_output=True, check=True)
    found = json.loads(told.stdout)
    assert (found["format"], found["virtual-size"]) == (str(kind), 4 * MIB)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks * 512 < MIB
    for _ in range(2):
        files.keep(MOVE, [str(path)])
    assert names(tmp_path) == ["web-7.img"]
    files.drop(MOVE, [str(path)])  # late, or repeated: it is the guest's now
    assert names(tmp_path) == ["web-7.img"]


def test_a_copy_that_is_not_needed_is_removed(files: LocalDiskFiles, tmp_path: Path) -> None:
    """All of it, and as often as it is asked for."""
    copies = [copy_of(tmp_path / "a"), copy_of(tmp_path / "b", DiskFormat.QCOW2)]
    files.make(MOVE, copies)
    for _ in range(2):
        files.drop(MOVE, [copy.image.path for copy in copies])
    assert names(tmp_path) == []


def test_nothing_is_written_over_or_removed_that_was_there(files: LocalDiskFiles, tmp_path: Path) -> None:
    """A file that came after the check; what was made before it is left for `drop`, which takes only that."""
    (tmp_path / "b").write_text("somebody's")
    copies = [copy_of(tmp_path / "a"), copy_of(tmp_path / "b")]
    with pytest.raises(Refused, match="a file is there already"):
        files.make(MOVE, copies)
    files.drop(MOVE, [copy.image.path for copy in copies])
    assert names(tmp_path) == ["b"]
    assert (tmp_path / "b").read_text() == "somebody's"


def test_another_hand_over_removes_nothing(files: LocalDiskFiles, tmp_path: Path) -> None:
    """Whose an image is, its second name says."""
    files.make(MOVE, [copy_of(tmp_path / "a")])
    files.drop(OTHER, [str(tmp_path / "a")])
    assert names(tmp_path) == ["a", f"a.arriving-{MOVE}"]


def test_a_file_that_took_the_images_place_is_not_removed(files: LocalDiskFiles, tmp_path: Path) -> None:
    """Somebody removed the half copy and put a file of his there."""
    path = tmp_path / "a"
    files.make(MOVE, [copy_of(path)])
    path.unlink()
    path.write_text("somebody's")
    files.drop(MOVE, [str(path)])
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("crash", ["made", "linked"])
def test_a_crash_in_between_leaves_nothing(files: LocalDiskFiles, tmp_path: Path, crash: str) -> None:
    """Each half-way is cleaned up by the agent that comes back."""
    path, arriving = tmp_path / "a", tmp_path / f"a.arriving-{MOVE}"
    files.make(MOVE, [copy_of(path)])
    if crash == "made":  # or half dropped
        path.unlink()
    assert arriving.exists()
    files.drop(MOVE, [str(path)])
    assert names(tmp_path) == []


def test_a_copy_whose_source_is_gone_is_left(files: LocalDiskFiles, tmp_path: Path) -> None:
    """Under the name that no guest has: it may be all that is left of the disk."""
    path = tmp_path / "a"
    files.make(MOVE, [copy_of(path)])
    for _ in range(2):
        files.leave(MOVE, [str(path)])
    assert names(tmp_path) == [f"a.arriving-{MOVE}"]


def test_a_directory_that_was_swapped_leads_nowhere(tmp_path: Path) -> None:
    """Its owner put a link in its place while the guest moved: nothing is renamed or removed behind it."""
    allowed, private = tmp_path / "images", tmp_path / "private"
    for folder in (allowed / "one", private):
        folder.mkdir(parents=True)
    files = LocalDiskFiles(image_dirs([allowed], []).why_not, why_locked)
    path = allowed / "one" / "secret"
    path.write_text("an image")
    (private / "secret").write_text("not his")
    (private / f"secret.arriving-{MOVE}").hardlink_to(private / "secret")
    (allowed / "one").rename(allowed / "moved")
    (allowed / "one").symlink_to(private)
    files.put_aside(MOVE, [str(path)])
    files.drop(MOVE, [str(path)])
    files.keep(MOVE, [str(path)])
    assert names(private) == ["secret", f"secret.arriving-{MOVE}"]
    with pytest.raises(Refused, match="not below a directory"):
        files.make(OTHER, [copy_of(path)])


def test_an_image_outside_of_the_guests_directories_is_refused(tmp_path: Path) -> None:
    """Whatever a source asks for."""
    files = LocalDiskFiles(lambda path: "it is not below a directory that guests may use", why_locked)
    with pytest.raises(Refused, match="not below a directory"):
        files.make(MOVE, [copy_of(tmp_path / "a")])
    assert names(tmp_path) == []


def test_no_file_is_made_among_devices(files: LocalDiskFiles, tmp_path: Path) -> None:
    """It would be memory, and gone with the next start; also by way of a link."""
    (tmp_path / "volumes").symlink_to("/dev")
    for path in (Path("/dev/vmferry-test"), tmp_path / "volumes" / "vmferry-test"):
        with pytest.raises(Refused, match="among devices"):
            files.make(MOVE, [copy_of(path)])
        assert file_facts(str(path), lambda _: None).room_bytes is None
        assert not Path("/dev/vmferry-test").exists()


def test_a_link_is_not_followed(files: LocalDiskFiles, tmp_path: Path) -> None:
    """Neither at the path nor at the second name."""
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="already"):
        files.make(MOVE, [copy_of(tmp_path / "a")])
    (tmp_path / f"b.arriving-{MOVE}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="cannot be made"):
        files.make(MOVE, [copy_of(tmp_path / "b")])
    assert not (tmp_path / "elsewhere").exists()


def test_an_image_that_is_too_large_says_why(files: LocalDiskFiles, tmp_path: Path) -> None:
    """The file system's own words."""
    with pytest.raises(Refused, match="cannot be made: File too large"):
        files.make(MOVE, [copy_of(tmp_path / "a", size=1 << 60)])
    files.drop(MOVE, [str(tmp_path / "a")])
    assert names(tmp_path) == []


def test_a_directory_that_is_gone_is_no_reason_to_give_up(files: LocalDiskFiles, tmp_path: Path) -> None:
    """Cleaning up goes on with the rest."""
    files.drop(MOVE, [str(tmp_path / "gone" / "a")])
    files.keep(MOVE, [str(tmp_path / "gone" / "a")])
    files.put_aside(MOVE, [str(tmp_path / "gone" / "a")])


def test_an_image_is_put_aside_once(files: LocalDiskFiles, tmp_path: Path) -> None:
    """A repeat touches nothing, also when another guest has the path by now."""
    path = tmp_path / "a"
    path.write_text("old")
    files.put_aside(MOVE, [str(path)])
    assert names(tmp_path) == [f"a.left-{MOVE}"]
    files.put_aside(MOVE, [str(path)])
    path.write_text("another guest's")
    files.put_aside(MOVE, [str(path)])
    assert path.read_text() == "another guest's"
    assert (tmp_path / f"a.left-{MOVE}").read_text() == "old"
