"""`vmferry policy ...`: what the policies are, and dry runs of them. Asks no agent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from vmferry.cli.options import AsJson, group
from vmferry.cli.output import print_json, print_table

if TYPE_CHECKING:
    from vmferry.cli.render.policies import SimulationRow
    from vmferry.core.convergence import Goal
    from vmferry.core.convergence.trace import Trace
    from vmferry.core.units import Bytes, BytesPerSecond

app = group("Look at the policies that decide when to switch over, and try them on a recorded migration.")

#: A trace of 200,000 lines of ours has less than this; anything longer is no trace.
MOST_FILE_CHARACTERS = 64 * 1024 * 1024

AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print the table of docs/policies.md.")]
#: Only a policy with `heeds_goal` looks at these two.
MAX_GAP_HELP = "Goal of policy vmferry: longest pause that the guest may see, e.g. 90ms. Default: {default}."
DEADLINE_HELP = "Goal of policy vmferry: have switched over by then, e.g. 60s. Default: {default}."


@app.command("list")
def list_policies(*, markdown: AsMarkdown = False, as_json: AsJson = False) -> None:
    """List the policies; the first is the default.

    FORCES: whether it may switch over whatever the downtime.
    """
    from vmferry.core.convergence.registry import DEFAULT, POLICIES

    told = [kind.description for kind in POLICIES.values()]
    if as_json:
        rows = [{"name": d.name, "what": d.what, "forces": d.forces, "default": d.name == DEFAULT} for d in told]
        print_json({"policies": rows})
    elif markdown:
        from vmferry.cli.render.policies import descriptions_markdown

        print("\n".join(descriptions_markdown(told)))
    else:
        print_table(["POLICY", "FORCES", "WHAT"], [[d.name, "yes" if d.forces else "no", d.what] for d in told])


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the policy.")], *, as_json: AsJson = False
) -> None:
    """Show one policy: its rules, its parameters, where it comes from."""
    from vmferry.cli.render.policies import description_text
    from vmferry.core.convergence.registry import describe

    told = describe(name)
    if as_json:
        import dataclasses

        print_json({**dataclasses.asdict(told), "parameters": dict(told.parameters)})
    else:
        print("\n".join(description_text(told)))


@app.command("replay")
def replay(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="File with what `vmferry trace` printed.")],
    *,
    policy: Annotated[str, typer.Option(help="Policy to try.")] = "vmferry",
    max_gap: Annotated[str | None, typer.Option(help=MAX_GAP_HELP.format(default="the recorded one"))] = None,
    deadline: Annotated[str | None, typer.Option(help=DEADLINE_HELP.format(default="the recorded one"))] = None,
    postcopy: Annotated[
        bool, typer.Option("--postcopy", help="Allow post-copy, also where the recorded migration did not.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell which rule of a policy would have fired on a recorded migration, where, and what it would have ordered.

    The goal is the recorded one, apart from what is given here.
    """
    from vmferry.cli.render.policies import replay_json, replay_text
    from vmferry.core.convergence.registry import find
    from vmferry.core.convergence.replay import replay as play

    kind = find(policy)
    recorded = _read(trace)
    result = play(recorded, kind(_goal(recorded.goal, max_gap, deadline, postcopy=postcopy)))
    if as_json:
        print_json(replay_json(result))
    else:
        print("\n".join(replay_text(result)))


@app.command("simulate")
def simulate(
    *,
    policy: Annotated[str | None, typer.Option(help="Only this policy. Default: all.")] = None,
    link: Annotated[str, typer.Option(help="Speed of the link.")] = "1Gbit/s",
    ram_gib: Annotated[int, typer.Option(min=1, max=65536, help="Memory of the guest in GiB.")] = 8,
    max_gap: Annotated[str | None, typer.Option(help=MAX_GAP_HELP.format(default="300ms"))] = None,
    deadline: Annotated[str | None, typer.Option(help=DEADLINE_HELP.format(default="none"))] = None,
    markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """Play the policies against one measured guest that writes faster than 1 Gbit/s carries.

    Each policy is played without means, then with auto-converge (throttle) and with post-copy if it would use them.
    """
    from vmferry.cli.quantities import parse_rate
    from vmferry.cli.render import policies as text
    from vmferry.core.convergence.facts import Goal
    from vmferry.core.convergence.registry import POLICIES, find
    from vmferry.core.units import GIB, Bytes

    names = list(POLICIES) if policy is None else [find(policy).description.name]
    goal = _goal(Goal(), max_gap, deadline, postcopy=False)
    rows = list(_simulations(names, goal, Bytes(ram_gib * GIB), parse_rate(link, "--link")))
    if as_json:
        print_json({"simulations": [text.simulation_json(row) for row in rows]})
    elif markdown:
        print("\n".join(text.simulation_markdown(rows)))
    else:
        print_table(text.SIMULATION_HEADINGS, [text.simulation_cells(row) for row in rows])


def _simulations(names: list[str], goal: Goal, ram: Bytes, link: BytesPerSecond) -> Iterator[SimulationRow]:
    """Yield a row for each policy, and one for each means that it would use."""
    from dataclasses import replace

    from vmferry.core.convergence.facts import Facts, Throttle, check_goal
    from vmferry.core.convergence.registry import make_policy
    from vmferry.core.convergence.simulate import MEASURED_CURVE, Curve
    from vmferry.core.convergence.simulate import simulate as play

    bare, curve = Facts(ram, link=link), Curve(MEASURED_CURVE)
    check_goal(goal, bare)
    brake = replace(bare, throttles=frozenset({Throttle.AUTO_CONVERGE}))
    behind, allowed = replace(bare, postcopy=True), replace(goal, allow_postcopy=True)
    for name in names:
        yield name, "none", play(make_policy(name, goal), bare, curve)
        if make_policy(name, goal).wishes(brake).auto_converge:
            yield name, "throttle", play(make_policy(name, goal), brake, curve)
        if make_policy(name, allowed).wishes(behind).postcopy:
            yield name, "post-copy", play(make_policy(name, allowed), behind, curve)


def _goal(goal: Goal, max_gap: str | None, deadline: str | None, *, postcopy: bool) -> Goal:
    """Return the goal with what was given."""
    from dataclasses import replace

    from vmferry.cli.quantities import parse_duration

    if max_gap is not None:
        goal = replace(goal, max_gap_ms=parse_duration(max_gap, "--max-gap", most_ms=2e6))
    if deadline is not None:
        goal = replace(goal, deadline_ms=parse_duration(deadline, "--deadline"))
    return replace(goal, allow_postcopy=True) if postcopy else goal


def _read(name: str) -> Trace:
    """Return the trace in a file.

    Raises:
        NotFound: there is no such file.
        BadInput: it cannot be read, or is no trace.
    """
    from pathlib import Path

    from vmferry.core.convergence.trace import MOST_LINES, decode
    from vmferry.core.errors import BadInput, NotFound

    fix = "give a file with what `vmferry trace HANDOVER` printed"
    try:
        with Path(name).open(encoding="utf-8") as file:
            text = file.read(MOST_FILE_CHARACTERS + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no trace {name}", fix=fix) from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise BadInput(f"trace {name} cannot be read: {error}", fix=fix) from None
    if len(text) > MOST_FILE_CHARACTERS:
        raise BadInput(f"trace {name} has more than {MOST_FILE_CHARACTERS} characters", fix=fix)
    return decode(text.rstrip("\n").split("\n", MOST_LINES) if text else [], name)  # the last one is one too many
