"""Which files guests may be given: the deepest directory decides, for what a path leads to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmferry.core.errors import BadInput, Broken
from vmferry.qemu.image_dirs import ImageDirs, image_dirs


@pytest.fixture
def rule(tmp_path: Path) -> ImageDirs:
    """Everything below `open` but not `open/own`, and within that again `open/own/images`."""
    for folder in ("open/own/images", "closed"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("open/a", "open/own/key", "open/own/images/b", "closed/c"):
        (tmp_path / file).write_bytes(b"content")
    (tmp_path / "open/inside").symlink_to("a")
    (tmp_path / "open/outside").symlink_to("../closed/c")
    (tmp_path / "closed/back").symlink_to("../open/a")
    os.mkfifo(tmp_path / "open/pipe")
    allowed = (tmp_path / "open", tmp_path / "open/own/images")
    return image_dirs(allowed, (tmp_path / "open/own",))


@pytest.mark.parametrize("name", ["open/a", "open/inside", "closed/back", "open/own/images/b", "open/own/../a"])
def test_files_below_are_opened(rule: ImageDirs, tmp_path: Path, name: str) -> None:
    """What a path leads to counts, and a descriptor of it blocks as files do."""
    assert rule.why_not(str(tmp_path / name)) is None
    fd = rule.open(str(tmp_path / name), os.O_RDONLY, "disk image")
    try:
        assert (os.read(fd, 99), os.get_blocking(fd), os.get_inheritable(fd)) == (b"content", True, False)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "name",
    ["closed/c", "open/outside", "open/own/key", "open/../closed/c", "open/pipe", "open", "/dev/zero", "/dev/tty"],
)
def test_others_are_not(rule: ImageDirs, tmp_path: Path, name: str) -> None:
    """The error names the file, why, and where the rule stands; nothing is waited for."""
    path = str(tmp_path / name)
    assert rule.why_not(path) is not None
    with pytest.raises(BadInput, match="disk image .* may not be used: it is n.*image_dirs in agent.toml"):
        rule.open(path, os.O_RDONLY, "disk image")


def test_a_missing_file_is_missing(rule: ImageDirs, tmp_path: Path) -> None:
    """It breaks no rule; opening it says that it is not there."""
    path = str(tmp_path / "open/none")
    assert rule.why_not(path) is None
    with pytest.raises(Broken, match="cannot be opened: No such file"):
        rule.open(path, os.O_RDONLY, "disk image")
