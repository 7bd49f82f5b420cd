"""`vmferry handover ...`: what was moved, when, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from vmferry.cli.fleet import Fleet, open_fleet
from vmferry.cli.options import AsJson, group
from vmferry.cli.output import print_json, print_table, say

app = group("Look at hand-overs, under way and past.")


@app.command("list")
def list_handovers(*, as_json: AsJson = False) -> None:
    """List the hand-overs of all hosts, newest first."""
    rows, answers = open_fleet().handovers()
    if as_json:
        print_json({"handovers": rows, "silent": {host: error.what for host, error in answers.silent.items()}})
        return
    headings = ["HANDOVER", "GUEST", "SOURCE", "DESTINATION", "STATE", "OWNER", "BEGUN"]
    print_table(headings, [_row(row) for row in rows])
    if answers.silent:
        say(f"warning: {answers.silent_text()}")


def _row(view: dict[str, Any]) -> list[str]:
    state = view["state"] if view["finished"] else f"{view['state']} (under way)"
    begun = _time(view["created_at"])
    return [
        view["handover"],
        view["guest"],
        view["source"],
        view["destination"],
        state,
        view["owner"] or "not known",
        begun,
    ]


def _time(unix: float) -> str:
    import datetime as dt

    return dt.datetime.fromtimestamp(unix, dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


@app.command("show")
def show(
    word: Annotated[str, typer.Argument(metavar="HANDOVER", help="Id of the hand-over, or its guest (the newest).")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show one hand-over: its states in order, and what was measured."""
    fleet = open_fleet()
    found = fleet.find_handover(word)
    view = fleet.ask(found["asked"], "GET", f"/v1/handovers/{found['handover']}")
    if as_json:
        print_json(view)
        return
    print(f"hand-over {view['handover']}: {view['guest']}, {view['source']} -> {view['destination']}")
    print(f"begun {_time(view['created_at'])}; {view['state']}; owner {view['owner'] or 'not known'}")
    for line in _states(fleet, found) if view["finished"] else ():
        print(line)
    if view.get("report"):
        from vmferry.cli.render.events import parse_report
        from vmferry.cli.render.measures import has_measures, measures_text

        report = parse_report(view["report"])
        if report.reason:
            print(f"{report.outcome}: {report.reason}")
        if has_measures(report):
            print("measured:")
            print(measures_text(report))


def _states(fleet: Fleet, found: dict[str, Any]) -> Iterator[str]:
    """Yield the states that a finished hand-over went through, with their times."""
    for line in fleet.stream(found["asked"], f"/v1/handovers/{found['handover']}/watch"):
        if line.get("event") == "state":
            why = f" ({line['why']})" if line.get("why") else ""
            yield f"  [{line['at_ms'] / 1000:8.3f} s] {line['state']}, owner {line['owner']}{why}"
