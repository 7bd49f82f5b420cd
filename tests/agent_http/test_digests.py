"""Files that are read piece by piece."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from vmferry.agent import digests
from vmferry.agent.digests import Digest, Digests
from vmferry.core.units import Bytes


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten pieces, and one that is smaller."""
    monkeypatch.setattr(digests, "_PIECE", 1000)
    path = tmp_path / "golden.raw"
    path.write_bytes(os.urandom(10_500))
    return path


def test_it_goes_on_where_it_paused(image: Path) -> None:
    """A piece at a time when there is no time; the sum is the whole file's."""
    reader = Digests(lambda: 5.0)
    seen = [reader.of(str(image), until=5.0) for _ in range(12)]
    assert [one.read_bytes for one in seen[:3]] == [1000, 2000, 3000]
    assert {one.sha256 for one in seen[:11]} == {None}
    assert seen[11] == Digest(hashlib.sha256(image.read_bytes()).hexdigest(), Bytes(10_500))
    assert reader.of(str(image), until=0.0) == seen[11]


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_another_content_is_read_anew(image: Path, how: str) -> None:
    """Also one of the same size with the same time of modification, under the same name."""
    reader, before = Digests(), image.stat()
    first = reader.of(str(image))
    other = image.with_suffix(".new") if how == "replaced" else image
    other.write_bytes(os.urandom(10_500))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(image)
    second = reader.of(str(image))
    assert second.sha256 == hashlib.sha256(image.read_bytes()).hexdigest()
    assert second != first


def test_what_cannot_be_read_is_asked_again(image: Path) -> None:
    """An error is not remembered."""
    reader = Digests()
    assert reader.of(str(image.parent)) == Digest(None, Bytes(0))
    assert reader.of(str(image.with_suffix(".gone"))) == Digest(None, Bytes(0))
    assert reader.of("/dev/zero") == Digest(None, Bytes(0))
    whole = reader.of(str(image))
    image.rename(image.with_suffix(".gone"))
    assert reader.of(str(image.with_suffix(".gone"))).sha256 == whole.sha256
    assert reader.of(str(image)).sha256 is None
