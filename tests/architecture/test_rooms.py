"""Who may import whom, file by file: core, ports and siblings; and how long a file may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src/vmferry"
#: all that a pure value or function needs
PURE = {
    "__future__",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "ipaddress",
    "itertools",
    "json",
    "math",
    "re",
    "types",
    "typing",
}
#: rooms that do things; none knows another, agent/ joins them
SIBLINGS = (
    *("qemu", "store", "pki", "measure", "links", "disks", "hostdev", "vhost", "libvirt", "sim"),
    *("guestfile", "guest_throttle"),
)
LONGEST = 600


def files(*rooms: str) -> list[Path]:
    """Return the modules of some rooms."""
    return sorted(path for room in rooms for path in (PACKAGE / room).rglob("*.py"))


def imports(text: str) -> Iterator[str]:
    """Yield the full name of everything that a module imports, wherever the import stands."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def strangers(text: str, friends: set[str]) -> list[str]:
    """Return what a module imports from outside the pure standard library and some rooms of ours."""
    return [
        name
        for name in imports(text)
        if name.split(".")[0] not in PURE and not any(f"{name}.".startswith(f"vmferry.{room}.") for room in friends)
    ]


def where(path: Path) -> str:
    """Return how pytest shall call a file."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", files("core"), ids=where)
def test_core_imports_only_pure_things(path: Path) -> None:
    """Core knows itself and the part of the standard library that does no I/O and tells no time: nothing else."""
    assert strangers(path.read_text(encoding="utf-8"), {"core"}) == []


@pytest.mark.parametrize("path", files("ports"), ids=where)
def test_ports_import_only_core(path: Path) -> None:
    """A port is made of core's facts."""
    assert strangers(path.read_text(encoding="utf-8"), {"core", "ports"}) == []


@pytest.mark.parametrize("path", files("sim"), ids=where)
def test_the_simulation_stands_on_core_alone(path: Path) -> None:
    """The world in memory is pure too; only the writer of its reference page touches a file."""
    allowed = {"inspect", "ast", "sys", "pathlib"} if path.name == "reference.py" else set()
    left = strangers(path.read_text(encoding="utf-8"), {"core", "sim"})
    assert [name for name in left if name.split(".")[0] not in allowed] == []


@pytest.mark.parametrize("room", [room for room in SIBLINGS if (PACKAGE / room).is_dir()])
def test_siblings_are_strangers(room: str) -> None:
    """No room that does things imports another one."""
    others = {f"vmferry.{other}." for other in SIBLINGS if other != room}
    found = [
        f"{where(path)}: {name}"
        for path in files(room)
        for name in imports(path.read_text(encoding="utf-8"))
        if any(f"{name}.".startswith(other) for other in others)
    ]
    assert found == []


def test_one_module_speaks_to_libvirt() -> None:
    """The bindings of libvirt block and may be missing: their adapter alone imports them, and only when it is asked."""
    every = {where(path): path.read_text(encoding="utf-8") for path in files(".")}
    importers = [name for name, text in every.items() if "libvirt" in {full.split(".")[0] for full in imports(text)}]
    assert importers == ["src/vmferry/libvirt/adapter.py"]
    at_once = [node for node in ast.parse(every[importers[0]]).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert "libvirt" not in [name for node in at_once for name in imports(ast.unparse(node))]


def test_files_are_short() -> None:
    """No module, test or script is longer than a reader's patience."""
    every = [path for folder in ("src", "tests", "ci", "bench") for path in (ROOT / folder).rglob("*.py")]
    too_long = {where(path): count for path in every if (count := len(path.read_bytes().splitlines())) > LONGEST}
    assert too_long == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import time", ["time"]),
        ("from os import path", ["os.path"]),
        ("def late():\n    from vmferry.qemu import process", ["vmferry.qemu.process"]),
        ("from vmferry import qemu", ["vmferry.qemu"]),
        ("from . import x", ["..x"]),
        ("import dataclasses, re\nfrom collections.abc import Mapping\nfrom vmferry.core.ids import HostName", []),
        ("from vmferry.corelike import x", ["vmferry.corelike.x"]),
    ],
)
def test_the_check_itself_sees_strangers(text: str, expected: list[str]) -> None:
    """The checks above can fail: they know a stranger from a friend, also inside a function."""
    assert strangers(text, {"core"}) == expected
