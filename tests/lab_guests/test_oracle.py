"""The linux guest's oracle, run on the host: it finds each way in which a page can be wrong."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vmferry.lab.guests.sources import WORKLOAD


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the oracle with a main of its own."""
    program = tmp_path_factory.mktemp("oracle") / "oracle"
    sources = [WORKLOAD / "oracle.c", Path(__file__).parent / "oracle_on_host.c"]
    subprocess.run(
        [
            "gcc",
            "-std=gnu11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            f"-I{WORKLOAD}",
            "-o",
            program,
            *sources,
            "-pthread",
        ],
        check=True,
    )
    return program


def _verdict(oracle: Path, *arguments: str) -> list[str]:
    done = subprocess.run([oracle, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("data", [(), ("compressible",)])
def test_untouched_memory_is_clean(oracle: Path, data: tuple[str, ...]) -> None:
    """Thousands of writes that nobody disturbed leave nothing to complain about."""
    assert _verdict(oracle, "not", "then-nothing", *data) == ["clean", "0", str(8 * 256 + 5000)]


@pytest.mark.parametrize(
    ("how", "kind", "bad"),
    [
        ("flip", "corrupt", 1),
        ("stale", "stale", 1),
        ("lost", "lost", 1),
        ("misplaced", "misplaced", 1),
        ("table", "table", 1025),  # a page of the table speaks of 1024 pages, and the total does not agree
        ("past", "total", 1),  # page, table and twin agree on the past: only the total and the digest know better
    ],
)
def test_each_kind_of_damage_is_found_and_named(oracle: Path, how: str, kind: str, bad: int) -> None:
    """One wrong page is one finding of its kind."""
    assert _verdict(oracle, how)[:2] == [kind, str(bad)]


@pytest.mark.parametrize("how", ["flip", "stale", "lost", "misplaced"])
def test_writing_a_damaged_page_again_does_not_heal_it(oracle: Path, how: str) -> None:
    """A page is looked at before it is overwritten, and what was seen is remembered."""
    kind = "corrupt" if how == "flip" else how
    assert _verdict(oracle, how, "then-write")[:2] == [kind, "1"]
