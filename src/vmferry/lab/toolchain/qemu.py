"""QEMU 7.2 and 10.0 on one machine: the one that is installed, the other unpacked beside it.

Bookworm has 7.2, bookworm-backports and trixie have 10.0. Whatever is not installed is unpacked below the
cache directory and run from there with its own firmware, modules and, where the system lacks them, libraries.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from vmferry.core.errors import Broken, NotFound
from vmferry.lab.toolchain.apt import PrivateApt, machine_codename
from vmferry.lab.toolchain.cache import cache_dir, held
from vmferry.lab.toolchain.unpack import fetch_qemu, library_env, module_dir
from vmferry.lab.toolchain.verify import check_starts, read_version

#: (major, minor) of what we support and test
WANTED_VERSIONS = ((10, 0), (7, 2))

INSTALLED = Path("/usr/bin/qemu-system-x86_64")
INSTALLED_DATA = Path("/usr/share/qemu")


@dataclass(frozen=True, slots=True)
class QemuBinary:
    """One QEMU that was seen to start on this machine."""

    version: tuple[int, int, int]
    argv: tuple[str, ...]  #: the start of its command line: the program, and `-L` for each firmware directory
    env: dict[str, str]  #: variables to add to the environment of this process only
    data_dir: Path  #: the directory of its firmware and ROM files
    unpacked: bool  #: False: installed by the system's package manager


def find_qemus() -> list[QemuBinary]:
    """Return every QEMU on this machine that works, newest first; downloads nothing.

    A verdict is remembered until the program's file changes, so that asking again costs no start of a QEMU.
    """
    candidates = [_installed(), *(_unpacked(manifest) for manifest in _home().glob("*/manifest.json"))]
    found = [binary for binary in candidates if binary is not None]
    return sorted(found, key=lambda binary: (binary.version, not binary.unpacked), reverse=True)


def find_qemu(major: int, minor: int) -> QemuBinary:
    """Return the QEMU of that version; the installed one if there are two.

    Raises:
        NotFound: there is none on this machine.
    """
    for binary in find_qemus():
        if binary.version[:2] == (major, minor):
            return binary
    raise NotFound(f"no QEMU {major}.{minor} on this machine", fix="run `./run setup`, which unpacks it")


def ensure_qemus(say: Callable[[str], None]) -> list[QemuBinary]:
    """Return all QEMUs of this machine after unpacking each wanted version that is missing.

    Args:
        say: called with a line for a person before anything that takes long.

    Raises:
        Broken: a version cannot be fetched, unpacked or started; the others stay usable.
    """
    if not _missing():
        return find_qemus()  # also for a user who may read the cache but not write it
    with held(_home() / "lock"):
        for wanted in _missing():
            say(f"unpacking QEMU {wanted[0]}.{wanted[1]} beside the installed one (15 to 50 MB to fetch)")
            _fetch(wanted)
    return find_qemus()


def _missing() -> list[tuple[int, int]]:
    present = {binary.version[:2] for binary in find_qemus()}
    return [wanted for wanted in WANTED_VERSIONS if wanted not in present]


def suites_for(wanted: tuple[int, int], codename: str) -> tuple[str, ...]:
    """Return the suites to fetch a version from, the one that has it last; the machine's own release if possible."""
    if wanted == (7, 2):
        return ("bookworm",)
    if codename == "bookworm":
        return ("bookworm", "bookworm-backports")
    return ("trixie",)


def _home() -> Path:
    return cache_dir() / "qemu"


def _fetch(wanted: tuple[int, int]) -> None:
    suites = suites_for(wanted, machine_codename())
    home = _home()
    with tempfile.TemporaryDirectory(dir=home, prefix="fetch-") as scratch:
        apt = PrivateApt(Path(scratch) / "apt", suites)
        apt.update()
        root = Path(scratch) / "root"
        libraries = fetch_qemu(apt, suites[-1], root)
        final = home / f"{wanted[0]}.{wanted[1]}"
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        root.rename(final / "root")
    for directory in (home, final):
        directory.chmod(0o755)  # whatever the umask: guests run under other uids
    try:
        _require_version(wanted, _verified(*_command(final, libraries=libraries)), suites[-1])
    except Broken:
        shutil.rmtree(final, ignore_errors=True)
        raise
    # The manifest comes last: a directory without one is an attempt that was cut short.
    manifest = {"suite": suites[-1], "libraries": libraries}
    (final / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def _require_version(wanted: tuple[int, int], seen: tuple[int, int, int], suite: str) -> None:
    if seen[:2] != wanted:
        raise Broken(
            f"suite {suite} has QEMU {'.'.join(map(str, seen))}, wanted {wanted[0]}.{wanted[1]}",
            fix="use Debian 12 or 13",
        )


def _command(final: Path, *, libraries: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    root = final / "root"
    data = [root / "usr/share/qemu", root / "usr/share/seabios", root / "usr/lib/ipxe/qemu"]
    argv = [str(root / "usr/bin/qemu-system-x86_64")]
    for directory in data:
        argv += ["-L", str(directory)]
    env = {"QEMU_MODULE_DIR": str(module_dir(root))}
    return tuple(argv), {**env, **(library_env(root) if libraries else {})}


def _installed() -> QemuBinary | None:
    argv = (str(INSTALLED),)
    if not INSTALLED.exists():
        return None
    try:
        return QemuBinary(_verified(argv, {}), argv, {}, INSTALLED_DATA, unpacked=False)
    except Broken:
        return None


def _unpacked(manifest: Path) -> QemuBinary | None:
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    argv, env = _command(manifest.parent, libraries=facts["libraries"])
    try:
        return QemuBinary(_verified(argv, env), argv, env, manifest.parent / "root/usr/share/qemu", unpacked=True)
    except Broken:
        return None


@dataclass(frozen=True, slots=True)
class _Verdict:
    """A program's version, valid for as long as its file is the same."""

    mtime_ns: int
    size: int
    version: tuple[int, int, int]


def _verified(argv: tuple[str, ...], env: dict[str, str]) -> tuple[int, int, int]:
    """Return a program's version after seeing it start; from memory when its file has not changed."""
    stat = Path(argv[0]).stat()
    remembered = _remembered().get(argv[0])
    if remembered is not None and (remembered.mtime_ns, remembered.size) == (stat.st_mtime_ns, stat.st_size):
        return remembered.version
    version = read_version(argv, env)
    check_starts(argv, env)
    _remember(argv[0], _Verdict(stat.st_mtime_ns, stat.st_size, version))
    return version


def _remembered() -> dict[str, _Verdict]:
    try:
        rows = json.loads((_home() / "verified.json").read_text(encoding="utf-8"))
        return {path: _Verdict(row["mtime_ns"], row["size"], tuple(row["version"])) for path, row in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # nothing, or nothing readable, is remembered: look again


def _remember(path: str, verdict: _Verdict) -> None:
    """Write the verdict down; a cache that cannot be written only costs the next look."""
    rows = {name: asdict(row) for name, row in {**_remembered(), path: verdict}.items()}
    try:
        _home().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=_home(), delete=False, encoding="utf-8") as scratch:
            json.dump(rows, scratch)
        Path(scratch.name).chmod(0o644)
        Path(scratch.name).rename(_home() / "verified.json")
    except OSError:
        return
