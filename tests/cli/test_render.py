"""What people see of a migration, as golden text of fixed width without colour."""

from __future__ import annotations

import dataclasses
import io
import os
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from rich.console import Console
from tests.cli.events import MOVE, REPORT, STEERED, ordered, reading, state

from vmferry.cli.render.check import check_text
from vmferry.cli.render.events import parse_event
from vmferry.cli.render.live import draw
from vmferry.cli.render.measures import measures
from vmferry.cli.render.plain import plain_lines
from vmferry.cli.render.scene import Scene, fold
from vmferry.core.errors import Blocker, Broken
from vmferry.core.progress import (
    DisksCopied,
    Finished,
    Outcome,
    PolicyBegan,
    Progress,
    ProgressEvent,
    RoundEnded,
    StateEntered,
    Step,
    Throttled,
)
from vmferry.core.units import Bytes, Milliseconds

GOLDEN = Path(__file__).parent / "golden"
START = Scene("web-7", "host-a", "host-b")
BLOCKED = Finished(
    Milliseconds(12),
    Outcome.BLOCKED,
    "host-a",
    "1 blocker",
    None,
    (Blocker("port.none-free", "no migration port is free on host-b (0 of its range), 1 is needed", "wait"),),
    None,
)
HELD = Finished(Milliseconds(9000), Outcome.HELD, None, "host-b does not answer", "run `vmferry recover`", (), None)


def check_golden(name: str, text: str) -> None:
    """Compare with the golden file; UPDATE_GOLDEN=1 writes it anew, for a person to look at."""
    path = GOLDEN / name
    lines = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(lines)
    assert lines == path.read_text()


def drawn(scene: Scene) -> str:
    """Return the live view as text."""
    console = Console(width=110, file=io.StringIO(), color_system=None, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(draw(scene))
    return capture.get()


def after(count: int) -> Scene:
    """Return the scene after the first events of the move."""
    return [*accumulate(MOVE[:count], fold, initial=START)][-1]


@pytest.mark.parametrize(
    ("name", "count"), [("opened", 1), ("first-round", 6), ("rounds", 9), ("stopped", 12), ("moved", len(MOVE))]
)
def test_the_live_view_at_each_phase(name: str, count: int) -> None:
    """Phases, steps, rounds, time left and the measures look as agreed at each point of a migration."""
    check_golden(f"live-{name}.txt", drawn(after(count)))


@pytest.mark.parametrize(("name", "end"), [("blocked", BLOCKED), ("held", HELD)])
def test_the_live_view_of_other_ends(name: str, end: Finished) -> None:
    """Blockers come with their fixes, and a held guest with what to do; nobody is told that it runs."""
    check_golden(f"live-{name}.txt", drawn(fold(after(4), end)))


def test_the_plain_lines_of_a_whole_move() -> None:
    """A log gets each state and round, a reading now and then, and the measures."""
    scenes = [*accumulate(MOVE, fold, initial=START)]
    lines = [
        line
        for before, now, event in zip(scenes, scenes[1:], MOVE, strict=False)
        for line in plain_lines(before, now, event)
    ]
    check_golden("plain.txt", "\n".join(lines))


def test_disks_that_are_copied_are_told_now_and_then() -> None:
    """A log has a line for the first reading and one every two seconds; a screen has a bar until memory is sent."""
    scenes, lines = [START], []
    for at_ms in (10, 210, 1900, 2100, 2300):
        event = DisksCopied(Milliseconds(at_ms), Bytes(at_ms * 1000), Bytes(4_000_000), 2)
        scenes.append(fold(scenes[-1], event))
        lines += plain_lines(scenes[-2], scenes[-1], event)
    assert lines == [
        "[   0.010 s] disks: 9.8 KiB of 3.8 MiB copied (2 images), 0 %",
        "[   2.100 s] disks: 2.0 MiB of 3.8 MiB copied (2 images), 52 %",
    ]
    assert "disks: 2.2 MiB of 3.8 MiB copied (2 images), 57 %" in drawn(scenes[-1])


def test_what_the_policy_orders_is_in_the_log_and_in_the_live_view() -> None:
    """A log has a line for the policy, for what it cannot have, and for each order; so has a screen."""
    scenes = [*accumulate(STEERED, fold, initial=START)]
    steps = zip(scenes, scenes[1:], STEERED, strict=False)
    said = [line for before, now, event in steps for line in plain_lines(before, now, event) if "] policy " in line]
    began, first, brake = (line.partition("] ")[2] for line in said)
    assert began == (
        "policy vmferry decides when to switch over; left out: xbzrle: QEMU 9.9 at the source has no capability xbzrle"
    )
    assert first == "policy vmferry: downtime limit 300.0 ms (goal: gap 350.0 ms less 50.0 ms of fixed cost)"
    assert brake == (
        "policy vmferry: auto-converge 50 (no end: round 1 dirtied 23040 pages);"
        " 23040 pages left in round 1, 4.69 s into the stream"
    )
    screen = " ".join(drawn(scenes[-1]).split())
    assert "auto-converge 50 (no end: round 1 dirtied 23040 pages); 23040 pages left in round 1" in screen
    assert "at the decision 1024 pages, at the stop 1100 pages" in screen


def test_a_refused_order_and_a_policy_that_begins_anew_say_so() -> None:
    """What QEMU refused is marked, and a policy that forgot what it had seen tells why."""
    refused = dataclasses.replace(ordered(36, "bandwidth 1.0 MiB/s", "a rule"), refused="QEMU refused it: no")
    (line,) = plain_lines(START, START, refused)
    assert line.endswith("; REFUSED: QEMU refused it: no")
    began = PolicyBegan(Milliseconds(9.0), "nova", again="the source's agent was restarted")
    (line,) = plain_lines(START, START, began)
    assert line.endswith("policy nova decides when to switch over; it begins anew: the source's agent was restarted")


def test_a_check_with_and_without_blockers() -> None:
    """Every blocker stands with code, what and fix, and the guarantee below."""
    promise = {
        "commit_owner": "vmferry",
        "rollback_until": "LOADED",
        "disk_fence": "not needed",
        "sentence": "vmferry commits; nothing has to be fenced",
    }
    blockers = [
        {"code": "port.none-free", "what": "no port", "fix": "wait"},
        {"code": "guest.busy", "what": "busy", "fix": "cancel"},
    ]
    blocked = check_text("web-7", "host-a", "host-b", {"blockers": blockers, "guarantee": promise})
    free = check_text("web-7", "host-a", "host-b", {"blockers": [], "guarantee": promise})
    check_golden("check.txt", f"{blocked}\n---\n{free}")


def test_many_rounds_are_shortened_in_the_middle() -> None:
    """A migration of a hundred rounds still fits a terminal: the first and the last ones are shown."""
    one = next(event for event in MOVE if isinstance(event, RoundEnded))
    rounds = tuple(dataclasses.replace(one, round=number) for number in range(1, 101))
    text = drawn(dataclasses.replace(START, rounds=rounds))
    assert len(text.splitlines()) < 35
    assert "..." in text


def test_a_throttle_that_was_in_force_is_told() -> None:
    """A row says what the guest was held to and what could not be held; a move without it has no such row."""
    slowed = Throttled(40, 14, 3, 1, 5120, Milliseconds(13.5))
    rows = dict(measures(dataclasses.replace(REPORT, write_throttle=slowed)))
    assert rows["write throttle"].startswith(
        "40 writes per 14 ms, processes slowed: 3 (1 more could not be); held 5120"
    )
    assert "write throttle" not in dict(measures(REPORT))


def test_what_nobody_measured_says_so() -> None:
    """None is "not measured", never a number."""
    rows = dict(measures(dataclasses.replace(REPORT, guest_gap=None, downtime_ms=None, commit_ms=None)))
    for name in ("guest_gap (beats)", "network_outage (UDP)", "stall in the guest"):
        assert rows[name] == "not measured"
    assert rows["downtime (QEMU)"].startswith("not measured")
    assert rows["commit"].startswith("not measured")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.none() | st.floats(0, 1e6), st.none() | st.just("a reason")), max_size=30))
def test_time_left_never_grows_without_a_reason(readings: list[tuple[float | None, str | None]]) -> None:
    """Whatever an agent sends, the time left that is shown only grows together with the reason."""
    scene = START
    for number, (left, why) in enumerate(readings):
        before = scene.time_left_ms
        scene = fold(scene, reading(number, 1, 10, time_left_ms=left, why_longer=why))
        if before is not None and scene.time_left_ms is not None and scene.time_left_ms > before:
            assert scene.why_longer == "a reason"


def test_a_late_state_does_not_move_the_step_back() -> None:
    """The six steps only go forward, also when a state without or with an earlier step comes late."""
    scene = fold(after(12), state(6000, "aborting", Step.COPY))
    assert scene.step is Step.LAST_PAGES
    assert fold(scene, state(6001, "aborted", None)).step is Step.LAST_PAGES


def test_the_second_round_is_the_third_step() -> None:
    """A reading of round 2 is step 3 and phase 2, although the state is still pre-copy."""
    assert fold(after(3), state(210, "precopy", Step.ROUNDS)).step is Step.COPY
    assert (after(6).step, after(6).phase) == (Step.COPY, 1)
    assert (after(7).step, after(7).phase) == (Step.ROUNDS, 2)
    assert (after(8).step, after(8).phase) == (Step.ROUNDS, 2)


KINDS = TypeAdapter[ProgressEvent](StateEntered | Progress | RoundEnded | Finished)


@settings(max_examples=60, deadline=None)
@given(st.from_type(StateEntered | Progress | RoundEnded | Finished))  # type: ignore[arg-type]
def test_every_event_survives_the_wire_and_can_be_shown(event: ProgressEvent) -> None:
    """An event that an agent can make is read back, folded, drawn and printed without an error."""
    kind = {StateEntered: "state", Progress: "progress", RoundEnded: "round", Finished: "finished"}[type(event)]
    line = TypeAdapter(type(event)).dump_python(dataclasses.replace(event, event=kind), mode="json")
    read = parse_event(line)
    assert read is not None
    assert type(read) is type(event)
    scene = fold(START, read)
    assert drawn(scene)
    plain_lines(START, scene, read)


def test_events_of_newer_agents() -> None:
    """An unknown event is left out, an unknown key ignored, and a broken event is an error that says which key."""
    assert parse_event({"event": "postcopy", "at_ms": 1}) is None
    known = {"event": "state", "at_ms": 1, "state": "x", "step": None, "owner": "host-a", "mood": "good"}
    assert parse_event(known) == state(1, "x", None)
    with pytest.raises(Broken, match="owner"):
        parse_event({**known, "owner": 3})
