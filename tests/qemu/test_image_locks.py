"""Who holds an image, asked of real QEMU tools."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.disks.files import LocalDiskFiles
from vmferry.qemu.image_locks import why_locked


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image that nobody holds."""
    path = tmp_path / "web-7.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "4M"], check=True)
    return path


@pytest.fixture
def holder() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ended afterwards."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def hold(image: Path, *words: str) -> subprocess.Popen[bytes]:
    """Return a qemu-io that has the image open."""
    process = subprocess.Popen(
        ["qemu-io", *words, str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"length\n")
    process.stdin.flush()
    while b"4 MiB" not in (line := process.stdout.readline()):  # it has opened it
        assert line, "qemu-io did not open the image"
    return process


@pytest.mark.parametrize(
    ("words", "expected"), [((), "who writes to it"), (("-r",), "lets nobody write"), (("-r", "-U"), None)]
)
def test_who_holds_an_image(
    image: Path, holder: list[subprocess.Popen[bytes]], words: tuple[str, ...], expected: str | None
) -> None:
    """A writer, a reader who wants no writer beside it, and one who does not mind; asking takes nothing."""
    holder.append(hold(image, *words))
    for _ in range(2):
        told = why_locked(str(image))
        assert told is None if expected is None else expected in str(told)
    assert LocalDiskFiles(lambda _: None, why_locked).why_locked([str(image)]) == told


def test_nobody_holds_it(image: Path) -> None:
    """Neither before nor after."""
    assert why_locked(str(image)) is None


def test_an_image_that_is_gone_is_not_locked(tmp_path: Path) -> None:
    """Who uses it is told."""
    assert LocalDiskFiles(lambda _: None, why_locked).why_locked([str(tmp_path / "gone")]) is None
