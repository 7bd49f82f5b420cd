"""Policies, dry runs and simulations as text, as a Markdown table and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from vmferry.core.convergence.facts import Description
from vmferry.core.convergence.replay import Fired, Replay
from vmferry.core.convergence.simulate import Outcome, Simulation
from vmferry.core.units import format_bytes, format_ms

#: (policy, means allowed, what came of it)
SimulationRow = tuple[str, str, Simulation]
SIMULATION_HEADINGS = ["POLICY", "MEANS", "ENDS", "AFTER", "ROUNDS", "LEFT", "DOWNTIME", "STALLS"]


def description_text(told: Description) -> Iterator[str]:
    """Yield a policy's lines."""
    yield f"{told.name}: {told.what}"
    yield "rules, in this order:"
    for rule in told.rules:
        yield f"  - {rule}"
    yield f"QEMU: {told.qemu}"
    yield f"forces the switchover: {'yes' if told.forces else 'no'}"
    for name, value in told.parameters:
        yield f"{name}: {value}"
    yield f"source: {told.source}"


def descriptions_markdown(all_of_them: Iterable[Description]) -> Iterator[str]:
    """Yield the table of all policies."""
    yield "| Policy | Rules | QEMU's own rule | Parameters | Source |"
    yield "| --- | --- | --- | --- | --- |"
    for told in all_of_them:
        parameters = "; ".join(f"{name}: {value}" for name, value in told.parameters)
        rules = "<br>".join(told.rules)
        yield f"| `{told.name}` | {rules} | {told.qemu} | {parameters} | {told.source} |"


def replay_text(result: Replay) -> Iterator[str]:
    """Yield a dry run's lines: what fired, how it ends, how far the trace can tell."""
    yield f"policy {result.policy} on a trace that policy {result.recorded_policy} steered"
    for fired in result.fired:
        yield f"{_place(fired)}: {fired.what}{_pages(fired)}: {fired.rule}{'' if fired.certain else ' (not certain)'}"
    if result.uncertain_line is not None:
        yield f"not certain after line {result.uncertain_line}: {result.uncertain_why}"
    yield result.end


def _place(fired: Fired) -> str:
    if fired.line is None:
        return "at the start"
    where = f"end of round {fired.round}" if fired.seen == "round" else f"in round {fired.round}"
    return f"line {fired.line}, {format_ms(fired.at_ms)}, {where}"


def _pages(fired: Fired) -> str:
    return "" if fired.remaining_pages is None else f" ({fired.remaining_pages} pages left)"


def replay_json(result: Replay) -> dict[str, object]:
    """Return a dry run as plain values."""
    return dataclasses.asdict(result)


def simulation_cells(row: SimulationRow) -> list[str]:
    """Return one simulation as the cells of a table."""
    name, means, came = row
    downtime = "-" if came.downtime_ms is None else format_ms(came.downtime_ms)
    if came.outcome is Outcome.POSTCOPY:
        downtime = "fixed cost only"
    stalls = format_ms(came.stall_ms) if came.stall_ms else "-"
    left = format_bytes(came.left_bytes)
    return [name, means, str(came.outcome), format_ms(came.at_ms), str(came.rounds), left, downtime, stalls]


def simulation_markdown(rows: Iterable[SimulationRow]) -> Iterator[str]:
    """Yield the table of simulations for docs/policies.md."""
    yield "| " + " | ".join(heading.capitalize() for heading in SIMULATION_HEADINGS) + " |"
    yield "| " + " | ".join("---" for _ in SIMULATION_HEADINGS) + " |"
    for row in rows:
        name, *cells = simulation_cells(row)
        yield "| " + " | ".join([f"`{name}`", *cells]) + " |"


def simulation_json(row: SimulationRow) -> dict[str, object]:
    """Return one simulation as plain values."""
    name, means, came = row
    return {"policy": name, "means": means, **dataclasses.asdict(came)}
