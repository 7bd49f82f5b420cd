"""The package as a whole: versions, locks, what must never stand in a tracked file."""

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import vmferry

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-libvirt.lock")

#: homes and work directories of particular machines, and addresses of package indexes and mirrors
FORBIDDEN = (
    re.compile(r"/(?:home|Users)/[a-z]\w+/"),
    re.compile(r"(?<![\w.])/work/\w"),
    re.compile(r"/root/\w"),
    re.compile(r"https?://[^\s\"'<>)]*(?:pypi|registry|mirror|artifact|/simple\b|/debian/?\b)", re.IGNORECASE),
)


def tracked_files() -> list[Path]:
    """Return the project's files: what git tracks, or without git all but environments and caches."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        skipped = {".venv", ".git", "__pycache__", "build", "dist"}
        files = (path for path in ROOT.rglob("*") if path.is_file())
        return [path for path in files if not skipped & set(path.relative_to(ROOT).parts[:-1])]
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_installed_version_is_the_packages_version() -> None:
    """What is installed is this source, not another copy."""
    assert version("vmferry") == vmferry.__version__
    assert Path(vmferry.__file__).is_relative_to(ROOT)


def test_changelog_names_the_version() -> None:
    """The changelog has a heading for the version that is being made."""
    release = vmferry.__version__.partition(".dev")[0]
    assert f"## {release}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", LOCKS)
def test_lock_is_hashed_and_names_no_index(name: str) -> None:
    """Every locked package has its hashes, and where to get it is the machine's decision."""
    text = (ROOT / name).read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[a-z0-9])", text)[1:]
    assert entries
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text
    assert "index-url" not in text


def test_locks_cover_every_dependency_and_agree() -> None:
    """A dependency in pyproject.toml stands in the lock, and tests run the versions that users run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runtime, everything, libvirt = (locked(ROOT / name) for name in LOCKS)
    everything |= libvirt  # a lock of its own, since it is built
    assert names(project["dependencies"]) <= runtime.keys()
    for extra in project["optional-dependencies"].values():
        assert names(extra) <= everything.keys()
    assert {name: everything.get(name) for name in runtime} == runtime


def test_no_machine_or_registry_in_tracked_files() -> None:
    """No tracked file names a particular machine's directories, a package index or a mirror."""
    found = []
    for path in tracked_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # not text
        if path == Path(__file__).resolve() or path.name == "LICENSE":
            continue
        for number, line in enumerate(lines, start=1):
            if any(pattern.search(line) for pattern in FORBIDDEN):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def names(requirements: list[str]) -> set[str]:
    """Return the normalised names of requirements."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[<>=!~;\[ ]", text)[0]).lower() for text in requirements}


def locked(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the locked versions by name (several where they depend on the Python version)."""
    versions: dict[str, tuple[str, ...]] = {}
    for name, number in re.findall(r"^([a-z0-9-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE):
        versions[name] = (*versions.get(name, ()), number)
    return versions
