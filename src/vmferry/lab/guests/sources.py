"""Where the guests' own sources lie, and their bytes as build inputs."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
WORKLOAD = _HERE / "workload"
MICRO = _HERE / "micro_src"
DEBIAN = _HERE / "debian_root"


def read_all(folder: Path) -> list[bytes]:
    """Return name and content of every file in a source folder, in the order of the names."""
    return [part for file in sorted(folder.iterdir()) for part in (file.name.encode(), file.read_bytes())]


def builder_code() -> list[bytes]:
    """Return the code that builds: a change in it is a change of every guest's inputs."""
    return [file.read_bytes() for file in sorted(_HERE.glob("*.py"))]
