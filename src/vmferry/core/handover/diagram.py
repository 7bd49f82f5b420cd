"""The tables as people read them: Mermaid diagrams and Markdown tables, as text. Who writes it to a file is not core's.

Events that lead from one state to the same other state share an arrow; arrows to where nearly every state can go would
hide the way, so they are told in the table of exits instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vmferry.core.handover.events import AnyEvent
from vmferry.core.handover.machine import TOKEN_CHANGES, first_state
from vmferry.core.handover.states import FACTS, AnyState, DestinationState, Side, SourceState
from vmferry.core.handover.table import DESTINATION_TABLE, SOURCE_TABLE, Key, Step

_TABLES: Mapping[Side, Mapping[Key, Step]] = {Side.SOURCE: SOURCE_TABLE, Side.DESTINATION: DESTINATION_TABLE}
#: Where failures lead: not drawn as arrows from each state.
_SINKS: frozenset[AnyState] = frozenset({SourceState.ABORTING, SourceState.CRASHED, DestinationState.DISCARDING})


def mermaid(side: Side) -> str:
    """Return a side's state diagram: every move but those into the states of `exits`."""
    lines = ["stateDiagram-v2", f"    [*] --> {_id(first_state(side))}"]
    for (before, after), events in _arrows(side).items():
        if after not in _SINKS or before in _SINKS or before is first_state(side):
            lines.append(f"    {_id(before)} --> {_id(after)}: {'<br>'.join(map(str, events))}")
    lines += [f"    {_id(state)} --> [*]" for state in states(side) if FACTS[state].final]
    return "\n".join(lines)


def exits(side: Side) -> str:
    """Return what leads to the states that nearly every other one can fail into, as a Markdown table."""
    rows = [
        (f"`{before}`", f"`{after}`", ", ".join(f"`{event}`" for event in events))
        for (before, after), events in _arrows(side).items()
        if after in _SINKS
    ]
    return table(("In", "leads to", "when"), rows)


def state_table(side: Side, meanings: Mapping[AnyState, str]) -> str:
    """Return what each state means: owner, needs, deadline and what is ordered on the way in.

    Args:
        side: whose.
        meanings: one sentence for each state, as it stands beside it in states.py.
    """
    return table(
        ("State", "Step", "Owner", "Needs", "Deadline", "Meaning"),
        [_state_row(state, meanings[state]) for state in states(side)],
    )


def token_table() -> str:
    """Return the transitions with which ownership moves."""
    rows = [(f"`{event}`", f"`{state}`", f"`{change}`") for (event, state), change in TOKEN_CHANGES.items()]
    return table(("Event", "leads to", "and in the same write the token changes by"), rows)


def states(side: Side) -> tuple[AnyState, ...]:
    """Return a side's states in the order in which they are written down."""
    return tuple(SourceState) if side is Side.SOURCE else tuple(DestinationState)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _arrows(side: Side) -> dict[tuple[AnyState, AnyState], list[AnyEvent]]:
    found: dict[tuple[AnyState, AnyState], list[AnyEvent]] = {}
    for (state, event), step in _TABLES[side].items():
        if step.next is not state:
            found.setdefault((state, step.next), []).append(event)
    return found


def _state_row(state: AnyState, meaning: str) -> tuple[str, ...]:
    facts = FACTS[state]
    return (
        f"`{state}`" + (" (end)" if facts.final else ""),
        "" if facts.step is None else str(int(facts.step)),
        str(facts.owner),
        ", ".join(sorted(map(str, facts.needs))) or "neither",
        "" if facts.deadline_ms is None else f"{facts.deadline_ms / 1000:g} s",
        meaning,
    )


def _id(state: AnyState) -> str:
    return str(state).replace("-", "_")
