"""The direction of the imports, and that core is pure in what import lists cannot show."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = sorted((ROOT / "src/vmferry/core").rglob("*.py"))
IMPURE_CALLS = {"open", "print", "input", "breakpoint", "eval", "exec"}
IMPURE_METHODS = {"now", "today", "utcnow"}


def test_imports_point_downwards() -> None:
    """Every contract in pyproject.toml is kept: layers, independent siblings, a core without I/O."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.relative_to(ROOT / "src/vmferry").as_posix())
def test_core_calls_nothing_impure(path: Path) -> None:
    """No module of core opens, prints, evaluates or asks for today's date."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    found = [f"line {call.lineno}: {ast.unparse(call.func)}" for call in calls if is_impure(call.func)]
    assert found == []


def is_impure(function: ast.expr) -> bool:
    """Tell whether a called expression is a builtin with effects or a clock."""
    if isinstance(function, ast.Name):
        return function.id in IMPURE_CALLS
    return isinstance(function, ast.Attribute) and function.attr in IMPURE_METHODS


@pytest.mark.parametrize(
    ("text", "impure"),
    [("open('x')", True), ("datetime.now()", True), ("print(1)", True), ("guest.open()", False), ("now(1)", False)],
)
def test_the_check_itself_sees_impure_calls(text: str, impure: bool) -> None:
    """The check above can fail: it knows an impure call from a harmless one of a similar name."""
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    assert is_impure(call.func) is impure
