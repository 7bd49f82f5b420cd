"""The ext4 writer, on a small tree."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from vmferry.core.errors import Broken
from vmferry.lab.guests.ext4 import copy_sparse, make_ext4

MIB = 1 << 20
UUID = "766d6665-7272-7900-0000-0000000000ff"


def _tree(root: Path, names: list[str]) -> Path:
    (root / "folder").mkdir(parents=True)
    for name in names:
        (root / "folder" / name).write_text(name)
    (root / "link").symlink_to("folder/a")
    return root


def _image(tree: Path, path: Path) -> bytes:
    make_ext4(tree, path, size=16 * MIB, uuid=UUID, label="root")
    return path.read_bytes()


def test_trees_that_differ_only_in_times_give_the_same_bytes(tmp_path: Path) -> None:
    """Neither the order in which files were made nor when they were made shows."""
    first = _image(_tree(tmp_path / "one", ["a", "b", "c"]), tmp_path / "one.img")
    before = int(time.time())
    while int(time.time()) == before:  # ext4 counts whole seconds in the fields that are compared
        pass
    second = _image(_tree(tmp_path / "two", ["c", "a", "b"]), tmp_path / "two.img")
    assert first == second


def test_the_file_system_is_sound_and_holds_the_tree(tmp_path: Path) -> None:
    """e2fsck has nothing to say, and a file reads back."""
    image = tmp_path / "image"
    _image(_tree(tmp_path / "tree", ["a"]), image)
    assert subprocess.run(["e2fsck", "-fn", image], capture_output=True, check=False).returncode == 0
    done = subprocess.run(["debugfs", "-R", "cat /folder/a", image], capture_output=True, text=True, check=True)
    assert done.stdout == "a"


def test_a_tree_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    """A file system that is too small is refused, not cut short."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "big").write_bytes(b"x" * 20 * MIB)
    with pytest.raises(Broken, match="mke2fs"):
        _image(tmp_path / "tree", tmp_path / "image")


def test_a_sparse_copy_has_the_data_in_place_and_the_holes_too(tmp_path: Path) -> None:
    """Data lands where it belongs; what was a hole takes no space."""
    source, disk = tmp_path / "source", tmp_path / "disk"
    with source.open("wb") as file:
        file.seek(4 * MIB)
        file.write(b"data")
        file.truncate(8 * MIB)
    disk.write_bytes(b"head")
    with source.open("rb") as reader, disk.open("r+b") as writer:
        copy_sparse(reader, writer, MIB)
    content = disk.read_bytes()
    assert content.startswith(b"head")
    assert content[5 * MIB :].startswith(b"data")
    assert disk.stat().st_blocks * 512 < MIB
