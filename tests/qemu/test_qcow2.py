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
        (top, [Backing(str(other))], f"stands on {base}, and the guest file says {other}"),
        (top, [Backing(str(base), DiskFormat.RAW)], "format qcow2, and the guest file says raw"),
    ):
        with pytest.raises(BadInput, match=words):
            check_header(str(image), under, ANYWHERE)


def test_a_damaged_header_is_told(chain: tuple[Path, Path]) -> None:
    """A name of no length, extensions without an end, a file that ends early."""
    top, base = chain
    for at, value, words in (
        (16, b"\xff\xff\xff\xff", "damaged"),
        (100, b"\xff\xff\xff\xff", None),  # extensions begin behind the end: no format known
        (104, b"\x12\x34\x56\x78\x00\x00\x00\x00" * 64, None),  # more than anybody has
    ):
        spoilt = base.with_suffix(".spoilt")
        data = bytearray(top.read_bytes())
        data[at : at + len(value)] = value
        spoilt.write_bytes(data)
        if words is None:
            _check_same_name(spoilt, base)
        else:
            with pytest.raises(BadInput, match=words):
                check_header(str(spoilt), [Backing(str(base))], ANYWHERE)
    short = base.with_suffix(".short")
    short.write_bytes(top.read_bytes()[:50])
    with pytest.raises(BadInput, match="not qcow2"):
        check_header(str(short), [], ANYWHERE)


def _check_same_name(image: Path, base: Path) -> None:
    try:
        check_header(str(image), [Backing(str(base))], ANYWHERE)
    except BadInput as error:  # the name itself was overwritten
        assert "stands on" in error.what  # noqa: PT017


def test_a_header_opens_no_file(chain: tuple[Path, Path], tmp_path: Path) -> None:
    """It is compared with the guest file; what it names outside of the guests' directories is not even looked at."""
    top, _ = chain
    inside = ImageDirs((tmp_path,))
    secret = Path("/etc/hostname")
    subprocess.run(["qemu-img", "rebase", "-u", "-b", str(secret), "-F", "raw", str(top)], check=True)
    with pytest.raises(BadInput, match="which the guest file does not name"):
        check_header(str(top), [], inside)
