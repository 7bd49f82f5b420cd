"""What a long bench has seen so far, part by part: one that broke off goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from _bench import commit

from vmferry.lab.toolchain import cache_dir

Rows = list[dict[str, Any]]


class Parts:
    """The parts of one bench.

    Args:
        name: of the bench.
        resume: whether parts of an earlier run count.

    Raises:
        SystemExit: those are of other sources.
    """

    def __init__(self, name: str, *, resume: bool) -> None:
        self._file = cache_dir() / "bench" / f"{name}-parts.json"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._kept: dict[str, Any] = {"commit": commit(), "parts": {}}
        if resume and self._file.exists():
            found = json.loads(self._file.read_text("utf-8"))
            if found["commit"] != self._kept["commit"]:
                raise SystemExit(f"{self._file} is of {found['commit']}, this is {commit()}; run without --resume")
            self._kept = found

    def of(self, part: str, measure: Callable[[], Rows]) -> Rows:
        """Return a part's rows: as they were, or measured now and kept."""
        parts = self._kept["parts"]
        if part not in parts:
            parts[part] = measure()
            self._file.write_text(json.dumps(self._kept), "utf-8")
        rows: Rows = parts[part]
        return rows
