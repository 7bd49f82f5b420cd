"""What is wrong in a guest file: file, line, key, what was seen, what is allowed; all of it at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from vmferry.core.errors import BadInput


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a guest file."""

    line: int | None  #: from 1; None where it concerns the file as a whole
    key: str  #: dotted, with the index of its element: disk[1].image
    seen: str  #: what stands there, or "missing"
    allowed: str  #: what may stand there, and why where that is not plain

    def text(self, file: str) -> str:
        """Return one line as compilers print them."""
        place = file if self.line is None else f"{file}:{self.line}"
        return f"{place}: {self.key}: {self.seen}; allowed: {self.allowed}"


@dataclass
class GuestFileInvalid(BadInput):
    """The guest file has mistakes; nothing was touched. Carries every one of them."""

    file: str = ""
    problems: tuple[Problem, ...] = field(default=())

    code: ClassVar[str] = "guest-file"

    def problem(self) -> dict[str, object]:
        """Return the problem body with the list of mistakes."""
        rows = [{"line": p.line, "key": p.key, "seen": p.seen, "allowed": p.allowed} for p in self.problems]
        return {**BadInput.problem(self), "file": self.file, "problems": rows}


def invalid(file: str, problems: list[Problem]) -> GuestFileInvalid:
    """Return the error for these mistakes, in the order of their lines."""
    ordered = tuple(sorted(problems, key=lambda problem: (problem.line or 0, problem.key)))
    count = "1 mistake" if len(ordered) == 1 else f"{len(ordered)} mistakes"
    text = "\n".join(f"  {problem.text(file)}" for problem in ordered)
    return GuestFileInvalid(
        what=f"guest file {file} has {count}:\n{text}",
        fix="correct them and try again; docs/guest-file.md lists every key",
        file=file,
        problems=ordered,
    )
