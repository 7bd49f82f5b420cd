"""`check`, `migrate`, `watch` and `cancel` against fake agents: what they ask, print and exit with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import TypeAdapter
from tests.cli.conftest import FakeFleet, Ran, guest_view, handover_view
from tests.cli.events import MOVE, state

from vmferry.cli import following
from vmferry.cli.fleet import Fleet, open_fleet
from vmferry.core.errors import Unreachable
from vmferry.core.progress import Finished, Outcome, ProgressEvent, Step
from vmferry.core.units import Milliseconds

Vmferry = Callable[..., Ran]
WATCH = "/v1/handovers/h-1/watch"
PROMISE = {"commit_owner": "vmferry", "rollback_until": "LOADED", "disk_fence": "none", "sentence": "a promise"}
BLOCKER = {"code": "guest.busy", "what": "guest web-7 is held", "fix": "wait for its end"}


def lines(events: tuple[ProgressEvent, ...] = MOVE) -> list[dict[str, Any]]:
    """Return events as an agent streams them."""
    return [TypeAdapter(type(event)).dump_python(event, mode="json") for event in events]


def end(outcome: Outcome) -> Finished:
    """Return the last event of a hand-over."""
    return Finished(Milliseconds(99), outcome, "host-a", "a reason", "a fix", (), None)


@pytest.fixture
def moving(fleet: FakeFleet) -> FakeFleet:
    """A guest on host-a that may move, and the whole stream of its move."""
    fleet.has_guests(host_a=[guest_view()])
    fleet.has_handovers(host_a=[handover_view()], host_b=[handover_view(side="destination")])
    fleet.answer("host-a", "POST", "/v1/guests/web-7/check", {"blockers": [], "guarantee": PROMISE})
    fleet.answer("host-a", "POST", "/v1/guests/web-7/migrate", {"handover": "h-1"}, status=202)
    fleet.answer("host-a", "GET", WATCH, lines())
    fleet.answer("host-a", "POST", "/v1/handovers/h-1/cancel", handover_view(state="aborting"))
    return fleet


def test_check_asks_the_owner_and_prints_the_guarantee(moving: FakeFleet, vmferry: Vmferry) -> None:
    """A guest that can move gives exit code 0 and its guarantee; only its own agent was asked, and nothing ordered."""
    ran = vmferry("check", "web-7", "host-b")
    assert (ran.exit_code, ran.err) == (0, "")
    assert "web-7 can move from host-a to host-b" in ran.out
    assert "a promise" in ran.out
    assert moving.agents["host-a"].orders() == [("POST", "/v1/guests/web-7/check", {"destination": "host-b"})]
    assert moving.agents["host-b"].orders() == []


def test_check_exits_with_3_and_every_blocker(moving: FakeFleet, vmferry: Vmferry) -> None:
    """A blocked guest gives exit code 3; text and JSON both carry code, what and fix."""
    reply = {"blockers": [BLOCKER, {**BLOCKER, "code": "port.none-free"}], "guarantee": PROMISE}
    moving.answer("host-a", "POST", "/v1/guests/web-7/check", reply)
    ran = vmferry("check", "web-7", "host-b")
    assert ran.exit_code == 3
    assert "2 blockers; nothing was touched" in ran.out
    assert "wait for its end" in ran.out
    ran = vmferry("check", "web-7", "host-b", "--json")
    assert (ran.exit_code, json.loads(ran.out)) == (3, reply)


def test_migrate_asks_for_the_write_throttle(moving: FakeFleet, vmferry: Vmferry) -> None:
    """The throttle travels by its name."""
    assert vmferry("migrate", "web-7", "host-b", "--throttle", "40-writes").exit_code == 0
    body = {"destination": "host-b", "options": {"plain": False, "throttle": "40-writes"}}
    assert moving.agents["host-a"].orders() == [("POST", "/v1/guests/web-7/migrate", body)]


def test_migrate_sends_what_was_asked_and_shows_the_move(moving: FakeFleet, vmferry: Vmferry) -> None:
    """Options travel in bytes per second, milliseconds and seconds; the lines end with the measures."""
    ran = vmferry(
        *("migrate", "web-7", "host-b", "--plain", "--bandwidth", "1Gbit/s"),
        *("--downtime-limit", "0.25s", "--time-limit", "10min"),
    )
    assert (ran.exit_code, ran.err) == (0, "")
    options = {"plain": True, "max_bandwidth": 125_000_000, "downtime_limit_ms": 250.0, "time_limit_s": 600.0}
    body = {"destination": "host-b", "options": options}
    assert moving.agents["host-a"].orders() == [("POST", "/v1/guests/web-7/migrate", body)]
    assert "round 2: 750.0 ms, sent 90.0 MiB" in ran.out
    assert "guest_gap (beats)     47.2 ms ± 0.5 ms" in ran.out


def test_what_is_said_of_the_policy_travels_and_the_rest_is_left_to_the_agent(
    moving: FakeFleet, vmferry: Vmferry
) -> None:
    """Policy, gap, deadline and throttle go as they are, in milliseconds; check takes the policy too."""
    until = ("--deadline", "1min", "--at-deadline", "switch")
    wish = ("--policy", "vmferry", "--max-gap", "0.3s", *until, "--throttle", "none")
    assert vmferry("migrate", "web-7", "host-b", *wish).exit_code == 0
    options = {"policy": "vmferry", "max_gap_ms": 300.0, "deadline_ms": 60_000.0, "throttle": "none"}
    options |= {"at_deadline": "switch"}
    body = {"destination": "host-b", "options": {"plain": False, **options}}
    assert moving.agents["host-a"].orders() == [("POST", "/v1/guests/web-7/migrate", body)]
    moving.answer("host-a", "POST", "/v1/guests/web-7/check", {"blockers": [], "left_out": ["xbzrle: no such thing"]})
    ran = vmferry("check", "web-7", "host-b", "--policy", "ovirt")
    assert moving.agents["host-a"].orders()[-1][2] == {"destination": "host-b", "options": {"policy": "ovirt"}}
    assert "left out of the stream: xbzrle: no such thing" in ran.out
    assert vmferry("check", "web-7", "host-b", "--max-gap", "0.3s", "--throttle", "40-writes").exit_code == 0
    asked = {"max_gap_ms": 300.0, "throttle": "40-writes"}
    assert moving.agents["host-a"].orders()[-1][2] == {"destination": "host-b", "options": asked}


def test_an_unknown_throttle_asks_nobody(moving: FakeFleet, vmferry: Vmferry) -> None:
    """It ends before any agent is asked, with the ones that there are."""
    ran = vmferry("migrate", "web-7", "host-b", "--throttle", "x")
    assert ran.exit_code == 2
    assert "take one of auto-converge, 40-writes, any, none" in ran.err
    assert moving.agents["host-a"].orders() == []


def test_trace_prints_the_lines_as_they_are(moving: FakeFleet, vmferry: Vmferry) -> None:
    """Standard output is the trace, line by line, as `policy replay` reads it."""
    stored = [{"vmferry_trace": 1, "policy": "qemu"}, {"t": "end", "at_ms": 9.0, "how": "done", "downtime_ms": None}]
    moving.answer("host-a", "GET", "/v1/handovers/h-1/trace", stored)
    ran = vmferry("trace", "web-7")
    assert (ran.exit_code, ran.err) == (0, "")
    assert [json.loads(line) for line in ran.out.splitlines()] == stored


def test_migrate_json_passes_the_lines_through(moving: FakeFleet, vmferry: Vmferry) -> None:
    """With --json standard output is the agent's stream, line by line, unknown events included."""
    stream = [*lines()[:3], {"event": "new", "at_ms": 500, "x": [1]}, lines()[-1]]
    moving.answer("host-a", "GET", WATCH, stream)
    ran = vmferry("migrate", "web-7", "host-b", "--json")
    assert ran.exit_code == 0
    assert [json.loads(line) for line in ran.out.splitlines()] == stream


def test_migrate_detached_prints_the_id_and_watches_nothing(moving: FakeFleet, vmferry: Vmferry) -> None:
    """--detach gives the id on standard output and how to watch on standard error."""
    ran = vmferry("migrate", "web-7", "host-b", "--detach")
    assert (ran.exit_code, ran.out) == (0, "h-1\n")
    assert "vmferry watch h-1" in ran.err
    assert ("GET", WATCH, None) not in moving.agents["host-a"].requests


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome.MOVED, 0),
        (Outcome.CANCELLED, 1),
        (Outcome.BLOCKED, 3),
        (Outcome.ABORTED, 7),
        (Outcome.RETURNED, 7),
        (Outcome.LOST, 7),
        (Outcome.HELD, 9),
    ],
)
def test_the_outcome_decides_the_exit_code(moving: FakeFleet, vmferry: Vmferry, outcome: Outcome, code: int) -> None:
    """Each outcome has its exit code, the same for migrate and watch, and says why and what to do."""
    moving.answer("host-a", "GET", WATCH, lines((*MOVE[:4], end(outcome))))
    for command in (["migrate", "web-7", "host-b"], ["watch", "h-1"]):
        ran = vmferry(*command)
        assert ran.exit_code == code
        assert "a reason; a fix" in ran.out


def test_migrate_that_is_refused_tells_the_blockers(moving: FakeFleet, vmferry: Vmferry) -> None:
    """A problem body becomes the error line with owner and fix, each blocker, and the error's exit code."""
    problem = {"code": "blocked", "what": "web-7 cannot move", "owner": "host-a", "fix": "see below"}
    moving.answer("host-a", "POST", "/v1/guests/web-7/migrate", {**problem, "blockers": [BLOCKER]}, status=409)
    ran = vmferry("migrate", "web-7", "host-b", "--json")
    assert ran.exit_code == 3
    assert ran.err.startswith("error: web-7 cannot move; guest runs on host-a; see below\n")
    assert "guest.busy: guest web-7 is held; wait for its end" in ran.err
    body = json.loads(ran.out)
    assert (body["code"], body["blockers"]) == ("blocked", [BLOCKER])


@pytest.mark.parametrize(
    "options",
    [
        ["--bandwidth", "100"],
        ["--bandwidth", "1 parsec"],
        ["--downtime-limit", "0ms"],
        ["--time-limit", "x"],
        ["--max-gap", "3"],
        ["--deadline", "0s"],
    ],
)
def test_a_quantity_without_unit_asks_nobody(moving: FakeFleet, vmferry: Vmferry, options: list[str]) -> None:
    """A bare number, an unknown unit or zero ends before any agent is asked, with the units that are allowed."""
    ran = vmferry("migrate", "web-7", "host-b", *options)
    assert ran.exit_code == 2
    assert options[0] in ran.err
    assert "e.g." in ran.err
    assert [agent.requests for agent in moving.agents.values()] == [[], []]


def test_how_the_stream_travels_is_asked_of_the_agent(moving: FakeFleet, vmferry: Vmferry) -> None:
    """Link, channels, compression and encryption travel by their names, for a check as for a move."""
    said = ("--link", "fd", "--channels", "4", "--compression", "zstd", "--encryption", "x509")
    assert vmferry("migrate", "web-7", "host-b", *said).exit_code == 0
    options = {"plain": False, "link": "fd", "channels": 4, "compression": "zstd", "encryption": "x509"}
    body = {"destination": "host-b", "options": options}
    assert moving.agents["host-a"].orders() == [("POST", "/v1/guests/web-7/migrate", body)]


@pytest.mark.parametrize(
    ("option", "word", "told"),
    [
        ("--link", "pigeon", "--link 'pigeon' is not known; take one of tcp, fd"),
        ("--compression", "lzma", "--compression 'lzma' is not known; take one of none, auto, xbzrle, zlib, zstd"),
        ("--encryption", "rot13", "--encryption 'rot13' is not known; take one of psk, x509"),
        ("--channels", "0", "Input should be greater than or equal to 1"),
    ],
)
def test_an_unknown_way_asks_nobody(moving: FakeFleet, vmferry: Vmferry, option: str, word: str, told: str) -> None:
    """It ends before any agent is asked, with what there is."""
    for command in ("check", "migrate"):
        ran = vmferry(command, "web-7", "host-b", option, word)
        assert ran.exit_code == 2
        assert told in ran.err
    assert moving.agents["host-a"].orders() == []


@pytest.mark.parametrize(("rate", "limit"), [("500Mbit/s", 62_500_000), ("link", None)])
def test_bandwidth_asks_the_source(moving: FakeFleet, vmferry: Vmferry, rate: str, limit: int | None) -> None:
    """By the guest's name or the hand-over's id; the rate travels in bytes per second."""
    moving.has_handovers(host_a=[handover_view()])
    moving.answer("host-a", "POST", "/v1/handovers/h-1/bandwidth", handover_view())
    ran = vmferry("bandwidth", "web-7", rate)
    assert (ran.exit_code, ran.err) == (0, "")
    assert ran.out == f"hand-over h-1 of web-7: {rate}\n"
    assert moving.agents["host-a"].orders() == [("POST", "/v1/handovers/h-1/bandwidth", {"max_bandwidth": limit})]


def test_a_rate_that_is_none_asks_nobody(moving: FakeFleet, vmferry: Vmferry) -> None:
    """What a rate looks like is told."""
    ran = vmferry("bandwidth", "web-7", "fast")
    assert ran.exit_code == 2
    assert "RATE" in ran.err
    assert moving.agents["host-a"].orders() == []


def test_an_unknown_end_of_a_deadline_asks_nobody(moving: FakeFleet, vmferry: Vmferry) -> None:
    """What may happen at a deadline is told."""
    ran = vmferry("migrate", "web-7", "host-b", "--deadline", "1min", "--at-deadline", "hope")
    assert ran.exit_code == 2
    assert "--at-deadline 'hope' is nothing that can happen; take one of cancel, switch" in ran.err
    assert [agent.requests for agent in moving.agents.values()] == [[], []]


def test_watch_without_a_name_takes_the_only_one_under_way(moving: FakeFleet, vmferry: Vmferry) -> None:
    """The one hand-over under way is watched; with several the command asks which, with none it says so."""
    old = handover_view("h-0", finished=True, state="done")
    moving.has_handovers(host_a=[old, handover_view()])
    assert "web-7 runs on host-b" in vmferry("watch").out
    moving.has_handovers(host_a=[handover_view(), handover_view("h-2", guest="web-8")])
    ran = vmferry("watch")
    assert ran.exit_code == 2
    assert "h-1 (web-7), h-2 (web-8)" in ran.err
    moving.has_handovers(host_a=[old])
    ran = vmferry("watch")
    assert ran.exit_code == 2
    assert "no hand-over is under way on any host" in ran.err


def test_watch_asks_the_source_although_the_destination_knows_it_too(moving: FakeFleet, vmferry: Vmferry) -> None:
    """The source's agent has the whole stream; its guest's name is as good as its id."""
    moving.has_handovers(host_a=[handover_view()], host_b=[handover_view(side="destination")])
    assert vmferry("watch", "web-7").exit_code == 0
    assert ("GET", WATCH, None) not in moving.agents["host-b"].requests


def test_cancel_by_guest_or_id(moving: FakeFleet, vmferry: Vmferry) -> None:
    """Both words reach the same hand-over at its source; one that is over is not cancelled."""
    for word in ("web-7", "h-1"):
        ran = vmferry("cancel", word)
        assert ran.exit_code == 0
        assert "aborting; owner host-a" in ran.out
    assert moving.agents["host-a"].orders() == [("POST", "/v1/handovers/h-1/cancel", {})] * 2
    moving.has_handovers(host_a=[handover_view(finished=True)])
    assert vmferry("cancel", "web-7").exit_code == 2


def test_ctrl_c_detaches_and_touches_nothing(
    moving: FakeFleet, vmferry: Vmferry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while watching exits with 130, says that the migration goes on and how to watch or cancel it."""

    def interrupted(self: object, host: str, path: str) -> Iterator[dict[str, Any]]:
        yield from lines()[:4]
        raise KeyboardInterrupt

    monkeypatch.setattr("vmferry.cli.fleet.Fleet.stream", interrupted)
    ran = vmferry("migrate", "web-7", "host-b")
    assert ran.exit_code == 130
    assert "migration of web-7 to host-b goes on" in ran.err
    assert "vmferry watch h-1" in ran.err
    assert "vmferry cancel h-1" in ran.err
    assert [path for _, path, _ in moving.agents["host-a"].orders()] == ["/v1/guests/web-7/migrate"]


def test_a_broken_stream_is_taken_up_again(moving: FakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the agent restarts, the stream that begins anew adds only what was not seen yet, in order."""
    whole = lines()
    pieces = iter([whole[:4], [], whole[:9], whole])
    monkeypatch.setattr(following, "RETRY_EVERY_S", 0.0)
    monkeypatch.setattr("vmferry.cli.fleet.Fleet.stream", lambda self, host, path: iter(next(pieces)))
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(following, "print_json", shown.append)
    view = {**handover_view(), "asked": "host-a"}
    assert following.follow(open_fleet(), view, as_json=True) == 0
    assert shown == whole


def test_an_agent_that_stays_away_is_told_with_what_to_do(
    moving: FakeFleet, vmferry: Vmferry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time for a restart the command gives up with the way back, and does not claim an outcome."""
    monkeypatch.setattr(following, "RECONNECT_S", -1.0)
    moving.answer("host-a", "GET", WATCH, lines()[:4])
    ran = vmferry("watch", "h-1")
    assert ran.exit_code == Unreachable.exit_code
    assert "the migration may go on" in ran.err
    assert "vmferry watch h-1" in ran.err


def test_a_source_that_stays_away_does_not_hide_the_arrival(
    moving: FakeFleet, vmferry: Vmferry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the source does not come back the destination is asked: the guest runs there, and that is no failure."""
    monkeypatch.setattr(following, "RECONNECT_S", -1.0)
    moving.answer("host-a", "GET", WATCH, lines()[:4])
    there = handover_view(side="destination", state="running", owner="host-b", finished=True)
    moving.answer("host-b", "GET", "/v1/handovers/h-1", there)
    ran = vmferry("watch", "h-1")
    assert ran.exit_code == 0
    assert "guest web-7 runs on host-b" in ran.err
    moving.answer("host-b", "GET", "/v1/handovers/h-1", {**there, "state": "preparing", "owner": "host-a"})
    ran = vmferry("watch", "h-1")
    assert ran.exit_code == Unreachable.exit_code
    assert "on host-b the hand-over is in state preparing, owner host-a" in ran.err


def test_only_the_destination_answers(moving: FakeFleet, vmferry: Vmferry) -> None:
    """A hand-over that only its destination can tell of is watched at its source all the same, then told by it."""
    there = handover_view(side="destination", state="running", owner="host-b", finished=True)
    moving.has_handovers(host_b=[there])
    moving.answer("host-b", "GET", "/v1/handovers/h-1", there)
    moving.agents["host-a"].stop()
    ran = vmferry("watch", "web-7")
    assert ran.exit_code == 0
    assert "guest web-7 runs on host-b" in ran.err
    assert ("GET", WATCH, None) not in moving.agents["host-b"].requests


def test_a_source_that_is_back_elsewhere_is_found(
    moving: FakeFleet, vmferry: Vmferry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that comes back at another address, as the fleet document says, goes on telling from there."""
    back = moving.agents["host-b"].port  # the stand-in for host-a's agent at its new address
    monkeypatch.setattr(following, "RETRY_EVERY_S", 0.0)
    asked: list[int] = []

    def stream(fleet: Fleet, host: str, path: str) -> Iterator[dict[str, Any]]:
        asked.append(fleet.endpoint(host).port)
        if len(asked) == 1:
            moving.moved_to("host-a", back)
            signed = moving.authority.signed_membership()
            body = {"document": signed.document, "signature": signed.signature}
            moving.answer("host-b", "GET", "/v1/membership", body)
            return iter(lines()[:4])
        return iter(lines())

    monkeypatch.setattr("vmferry.cli.fleet.Fleet.stream", stream)
    assert vmferry("watch", "h-1").exit_code == 0
    assert asked == [moving.agents["host-a"].port, back]


def test_handover_show_tells_states_and_measures(moving: FakeFleet, vmferry: Vmferry) -> None:
    """A finished hand-over shows its states with their times and owners, and its measures."""
    report = lines()[-1]["report"]
    view = handover_view(state="done", finished=True, owner="host-b", report=report)
    moving.has_handovers(host_a=[view])
    moving.answer("host-a", "GET", "/v1/handovers/h-1", view)
    ran = vmferry("handover", "show", "web-7")
    assert ran.exit_code == 0
    assert "[   5.702 s] committed, owner host-b" in ran.out
    assert "commit                7.5 ms" in ran.out


def test_handover_list_shows_each_once_newest_first(moving: FakeFleet, vmferry: Vmferry) -> None:
    """A hand-over that both sides know is one row, the newest above."""
    older = handover_view("h-0", created_at=1.0, finished=True, state="done")
    moving.has_handovers(host_a=[older, handover_view()], host_b=[handover_view(side="destination")])
    rows = [line.split()[0] for line in vmferry("handover", "list").out.splitlines()]
    assert rows == ["HANDOVER", "h-1", "h-0"]
    assert [row["handover"] for row in json.loads(vmferry("handover", "list", "--json").out)["handovers"]] == [
        "h-1",
        "h-0",
    ]


def test_a_terminal_gets_the_live_view(moving: FakeFleet, vmferry: Vmferry, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the same stream is drawn as the live view, and the last drawing stays."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    ran = vmferry("watch", "h-1")
    assert ran.exit_code == 0
    assert "[x] 6 hand over disks, ownership, network" in ran.out
    assert "guest_gap (beats)" in ran.out


def test_an_event_that_cannot_be_read_is_an_error(moving: FakeFleet, vmferry: Vmferry) -> None:
    """A stream of another version that cannot be read says so, and that the migration goes on."""
    broken = {**lines((dataclasses.replace(state(1, "x", Step.COPY), owner="host-a"),))[0], "owner": None}
    moving.answer("host-a", "GET", WATCH, [broken])
    ran = vmferry("watch", "h-1")
    assert ran.exit_code == 7
    assert "the migration itself goes on" in ran.err
