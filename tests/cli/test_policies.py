"""`vmferry policy`: lists, shows, dry runs and simulates without any agent, and the docs are what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmferry.core.convergence import POLICIES

ROOT = Path(__file__).resolve().parents[2]
TRACES = ROOT / "tests/convergence/traces"
PAGE = ROOT / "docs/policies.md"


def run(*arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; there is no fleet anywhere it could ask."""
    environment = {**os.environ, "VMFERRY_CONFIG": str(home or "/nonexistent")}
    command = [sys.executable, "-m", "vmferry", "policy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


def test_list_names_every_policy() -> None:
    """The default comes first; JSON says which it is."""
    text = run("list").stdout.splitlines()
    assert [line.split()[0] for line in text] == ["POLICY", *POLICIES]
    rows = json.loads(run("list", "--json").stdout)["policies"]
    assert [row["name"] for row in rows if row["default"]] == ["vmferry"]


@pytest.mark.parametrize("name", ["article", "ovirt:very-large"])
def test_show_tells_rules_and_source(name: str) -> None:
    """What it does, in which order, and where that is from."""
    shown = run("show", name).stdout
    assert shown.startswith(f"{name.replace(':', '-')}: ")
    assert "rules, in this order:" in shown
    assert "source: " in shown
    assert json.loads(run("show", name, "--json").stdout)["rules"]


@pytest.mark.parametrize("arguments", [["show", "best"], ["replay", "TRACE", "--policy", "best"]])
def test_an_unknown_policy_names_those_there_are(arguments: list[str]) -> None:
    """Exit code 2, the name, and the choice."""
    trace = str(TRACES / "few-pages.ndjson")
    done = run(*[trace if argument == "TRACE" else argument for argument in arguments])
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no policy 'best'; choose one of vmferry, article, kvm-2007, ")


def test_replay_says_where_what_and_with_how_many_pages() -> None:
    """The line of the trace, the time, the round, the order, the pages at the decision, the rule."""
    done = run("replay", "tests/convergence/traces/few-pages.ndjson", "--policy", "article")
    assert done.stdout.splitlines() == [
        "policy article on a trace that policy none steered",
        "at the start: downtime limit 1.0 ms: pages are counted, not time",
        "line 5, 4.00 s, end of round 4: switch now (50 pages left): concentration: 50 pages left, 50 or fewer",
        "the policy decides: switch now",
    ]


def test_replay_as_json() -> None:
    """The same facts, by name."""
    trace = str(TRACES / "few-pages.ndjson")
    result = json.loads(run("replay", trace, "--policy", "kvm-2007", "--json").stdout)
    assert result["fired"][-1]["remaining_pages"] == 49
    assert result["uncertain_line"] == 1
    assert result["decided"] is True


def test_replay_takes_a_goal() -> None:
    """The recorded goal is used, apart from what is given."""
    trace = str(TRACES / "live-faster.ndjson")
    told = run("replay", trace, "--max-gap", "700ms", "--deadline", "5s").stdout
    assert "at the start: downtime limit 517.5 ms: goal: gap 700.0 ms less 10.0 ms of fixed cost and a quarter" in told
    assert "cancel" in told
    assert "deadline of 5.00 s in round 3" in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no trace"),
        (b"", "is empty"),
        (b"\xff\xfe", "cannot be read"),
        (b"{}\n", "line 1: this is no trace of version 1"),
        (b"\n", "line 1: not JSON"),
    ],
)
def test_a_bad_trace_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    """The file, the line, what is wrong; exit code 2."""
    file = tmp_path / "run.ndjson"
    if content is not None:
        file.write_bytes(content)
    done = run("replay", str(file))
    assert done.returncode == 2
    assert message in done.stderr
    assert "run.ndjson" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_impossible_goal_says_the_least_possible() -> None:
    """Not a table of refusals."""
    done = run("simulate", "--max-gap", "40ms")
    assert done.returncode == 2
    assert "allow at least 52 ms" in done.stderr


@pytest.mark.parametrize(("mark", "command"), [("policies", ["list"]), ("known-curve", ["simulate"])])
def test_the_docs_show_what_the_command_prints(mark: str, command: list[str]) -> None:
    """The tables of docs/policies.md are current: vmferry policy list|simulate --markdown."""
    page = PAGE.read_text("utf-8")
    part = page.split(f"<!-- generated: {mark} -->")[1].split("<!-- end -->")[0]
    assert part.strip() == run(*command, "--markdown").stdout.strip()
