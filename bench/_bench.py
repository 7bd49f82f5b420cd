"""What every bench needs: conditions, medians, and one place for results (JSON for machines, a page for people)."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vmferry import __version__

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGES = ROOT / "docs" / "bench"


def conditions(command: str, acceleration: str, qemu: str, duration_s: float) -> dict[str, Any]:
    """Return under which conditions a figure was made; stands in every result."""
    return {
        "command": command,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "vmferry": f"{__version__} at {commit()}",
        "acceleration": acceleration,
        "qemu": qemu,
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "duration_s": round(duration_s, 1),
    }


def commit() -> str:
    """Return the commit that was measured; "+" behind it: with changes."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "an unknown commit"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def spread(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """Return count, minimum, median, 90th percentile and maximum of the values that were measured."""
    have = sorted(value for value in values if value is not None)
    if not have:
        return {"count": 0, "min": None, "median": None, "p90": None, "max": None}
    return {
        "count": len(have),
        "min": round(have[0], 3),
        "median": round(statistics.median(have), 3),
        "p90": round(have[min(len(have) - 1, int(0.9 * len(have)))], 3),
        "max": round(have[-1], 3),
    }


def write(name: str, result: Mapping[str, Any], page: str) -> None:
    """Write a result and its page; both are committed."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    PAGES.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (PAGES / f"{name}.md").write_text(page, "utf-8")
    print(page)
    print(f"written: bench/results/{name}.json and docs/bench/{name}.md")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; None is "-"."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def conditions_text(found: Mapping[str, Any]) -> str:
    """Return the conditions as a paragraph."""
    return (
        f"Made by `{found['command']}` on {found['date']} in {found['duration_s']:.0f} s: vmferry {found['vmferry']},"
        f" QEMU {found['qemu']}, **{found['acceleration']}**, {found['cpus']} CPUs ({found['cpu']}),"
        f" {found['memory_gib']} GiB, Linux {found['kernel']}.\n"
    )
