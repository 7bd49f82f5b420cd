"""The tree is as the linter, the formatter and the type checker want it: who runs the tests runs these too."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run one of the tools beside this interpreter."""
    program = shutil.which(words[0], path=str(Path(sys.executable).parent))
    assert program is not None, f"{words[0]} is not installed beside {sys.executable}; it is in requirements-dev.lock"
    return subprocess.run([program, *words[1:]], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [("ruff", "check", "--output-format", "concise"), ("ruff", "format", "--check")])
def test_ruff_finds_nothing(words: tuple[str, ...]) -> None:
    """No finding that pyproject.toml does not ignore with a reason, and nothing that the formatter would change."""
    done = run(*words)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_mypy_finds_nothing() -> None:
    """Source, tests and benches pass in strict mode; the first run takes twelve seconds, later ones two."""
    done = run("mypy")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("ruff", "check"), "import os\n"),
        (("ruff", "format", "--check"), "x = 'single'\n"),
        (("mypy", "--cache-dir", "cache"), '"""A module."""\n\nX: int = "text"\n'),
    ],
    ids=["check", "format", "mypy"],
)
def test_the_tools_themselves_find_something(tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    """The checks above can fail: a file that is wrong is found."""
    (tmp_path / "wrong.py").write_text(text)
    done = run(*words, "wrong.py", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "wrong.py" in done.stdout + done.stderr
