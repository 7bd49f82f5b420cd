"""Keeps docs/handover.md current: diagrams, state tables and the matrix of outcomes, all from the tables.

python -m vmferry.sim.reference docs/handover.md
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
from pathlib import Path

from vmferry.core.handover import diagram, states
from vmferry.core.handover.states import AnyState, Side
from vmferry.sim.matrix import CELLS, PLACES, foretell

_MARKED = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def updated(text: str) -> str:
    """Return a page with every marked part made anew.

    Raises:
        KeyError: the page has a mark that nothing is made for.
    """
    parts = generated()
    return _MARKED.sub(lambda found: f"{found[1]}\n{parts[found['name']]}\n\n{found[3]}", text)


@functools.cache
def generated() -> dict[str, str]:
    """Return each generated part by its name."""
    parts = {"tokens": diagram.token_table()}
    for side in Side:
        parts[f"{side}-diagram"] = f"```mermaid\n{diagram.mermaid(side)}\n```"
        parts[f"{side}-exits"] = diagram.exits(side)
        parts[f"{side}-states"] = diagram.state_table(side, meanings(side))
        parts[f"{side}-matrix"] = matrix(side)
    return parts


def matrix(side: Side) -> str:
    """Return what becomes of the guest when something dies in a state of this side."""
    rows = [(f"`{place}`", *(foretell(place, fault) for fault in CELLS)) for place in PLACES[side]]
    return diagram.table(("State", *CELLS), rows)


def meanings(side: Side) -> dict[AnyState, str]:
    """Return the sentence that stands above each state in states.py."""
    kind = states.SourceState if side is Side.SOURCE else states.DestinationState
    lines = inspect.getsource(kind).splitlines()
    members = [node for node in ast.parse(inspect.getsource(kind)).body[0].body if isinstance(node, ast.Assign)]  # type: ignore[attr-defined]
    return {kind(ast.literal_eval(node.value)): lines[node.lineno - 2].strip(" #:") for node in members}


def main() -> None:
    """Write the pages that are named on the command line."""
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(updated(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
