"""What a header says against what the guest file says, on images that qemu-img made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vmferry.core.errors import BadInput
from vmferry.core.guest import Backing, DiskFormat
from vmferry.qemu.descriptors import ANYWHERE
from vmferry.qemu.image_dirs import ImageDirs
from vmferry.qemu.qcow2 import check_header


def make(path: Path, *words: str) -> Path:
    """Make a qcow2 image."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words, str(path), "1M"], check=True)
    return path


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, Path]:
    """Return an image and the one that it stands on."""
    base = make(tmp_path / "base.qcow2")
    return make(tmp_path / "top.qcow2", "-b", str(base), "-F", "qcow2"), base


def test_what_both_say_is_taken(chain: tuple[Path, Path]) -> None:
    """The image on top, and the one below that stands on none."""
    top, base = chain
    check_header(str(top), [Backing(str(base))], ANYWHERE)
    check_header(str(base), [], ANYWHERE)


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_a_relative_name_is_beside_the_image(tmp_path: Path, compat: str) -> None:
    """As qemu-img reads it; also in an image of the older version, whose header is shorter."""
    base = make(tmp_path / "base.qcow2")
    top = make(tmp_path / "top.qcow2", "-o", f"compat={compat}", "-b", "base.qcow2", "-F", "qcow2")
    check_header(str(top), [Backing(str(base))], ANYWHERE)
    with pytest.raises(BadInput, match=f'image = "{base}", format = "qcow2"') as told:
        check_header(str(top), [], ANYWHERE)
    assert "qemu-img rebase" in str(told.value.fix)


def test_what_they_do_not_agree_on_is_refused(chain: tuple[Path, Path], tmp_path: Path) -> None:
    """The guest's disk would be read wrongly, or out of somebody else's image."""
    top, base = chain
    other = make(tmp_path / "other.qcow2")
    for image, under, words in (
        (base, [Backing(str(other))], "stands on no other image"),
        (top, [Backing(str(other))], f"stands on '{base}', and the guest file says {other}"),
        (top, [Backing(str(base), DiskFormat.RAW)], "format 'qcow2', and the guest file says raw"),
    ):
        with pytest.raises(BadInput, match=words):
            check_header(str(image), under, ANYWHERE)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (16, b"\xff\xff\xff\xff", "damaged"),  # the name's length
        (8, (1 << 63).to_bytes(8, "big"), "damaged"),  # where it stands
        (8, (1 << 62).to_bytes(8, "big"), "damaged"),
        (0, b"OTTO", "not qcow2"),
        (72, (4).to_bytes(8, "big"), "keeps its data in another file"),
    ],
)
def test_a_damaged_header_is_told(chain: tuple[Path, Path], at: int, value: bytes, words: str) -> None:
    """As bad input, whatever stands there."""
    top, base = chain
    with pytest.raises(BadInput, match=words):
        check_header(str(spoilt(top, at, value)), [Backing(str(base))], ANYWHERE)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (100, b"\xff\xff\xff\xff"),  # extensions begin behind the end
        (104, b"\x12\x34\x56\x78\x00\x00\x00\x00" * 40),  # more of them than anybody has
    ],
)
def test_extensions_without_an_end_say_nothing(chain: tuple[Path, Path], at: int, value: bytes) -> None:
    """The name is there; of the format nothing is known, so that either is taken."""
    top, _ = chain
    image = spoilt(top, at, value)
    given = spoilt(top, at, value).read_bytes()
    where, length = int.from_bytes(given[8:16], "big"), int.from_bytes(given[16:20], "big")
    named = given[where : where + length].decode("latin-1")
    check_header(str(image), [Backing(str(image.parent / named), DiskFormat.RAW)], ANYWHERE)


def test_a_short_file_is_no_image(chain: tuple[Path, Path]) -> None:
    """It ends in its header."""
    short = chain[0].with_suffix(".short")
    short.write_bytes(chain[0].read_bytes()[:50])
    with pytest.raises(BadInput, match="not qcow2"):
        check_header(str(short), [], ANYWHERE)


def spoilt(image: Path, at: int, value: bytes) -> Path:
    """Return a copy of an image with other bytes somewhere."""
    data = bytearray(image.read_bytes())
    data[at : at + len(value)] = value
    copy = image.with_suffix(".spoilt")
    copy.write_bytes(data)
    return copy


def test_nothing_of_a_header_is_to_be_pasted_blindly(chain: tuple[Path, Path]) -> None:
    """A guest that has broken out wrote the name: another guest's disk, as a line of a guest file with an escape."""
    top, _ = chain
    name = '/srv/payroll.raw", format = "raw" }]\n\x1b[2K'
    subprocess.run(["qemu-img", "rebase", "-u", "-b", name, "-F", "raw", str(top)], check=True)
    with pytest.raises(BadInput, match="which the guest file does not name") as told:
        check_header(str(top), [], ANYWHERE)
    assert "\x1b" not in str(told.value)
    assert "payroll" not in str(told.value.fix)


def test_a_header_opens_no_file(chain: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it names outside of the guests' directories is not even looked at."""
    top, base = chain
    inside = ImageDirs((tmp_path,))
    subprocess.run(["qemu-img", "rebase", "-u", "-b", "/etc/hostname", "-F", "raw", str(top)], check=True)
    looked: list[object] = []
    monkeypatch.setattr(Path, "samefile", lambda *paths: looked.append(paths))
    with pytest.raises(BadInput, match="stands on '/etc/hostname', and the guest file says"):
        check_header(str(top), [Backing(str(base))], inside)
    assert looked == []
