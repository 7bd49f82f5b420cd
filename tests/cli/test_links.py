"""What is known of a link, in `host probe` and in `check`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.cli.conftest import FakeFleet, Ran, guest_view

from vmferry.cli.render.link import link_text

Vmferry = Callable[..., Ran]
PROBE = "/v1/links/probe"
MIB = 1 << 20


def measured(**changes: Any) -> dict[str, Any]:
    """Return what a probe saw."""
    seen = {"bytes_per_second": 114 * MIB, "is_least": False, "round_trip_ms": 0.21, "age_s": 3.2, "counts": True}
    return seen | changes


def view(**changes: Any) -> dict[str, Any]:
    """Return a link of 1 Gbit/s behind a device of 10."""
    known = {"bandwidth": 114 * MIB, "told_by": "measured", "limit": 1192 * MIB, "limited_by": "device"}
    return (
        {"source": "host-a", "destination": "host-b", "device": "speed of eth0", "measured": measured()}
        | known
        | changes
    )


UNKNOWN = {"bandwidth": None, "told_by": None, "limit": None, "limited_by": None, "device": "eth0 tells no speed"}


@pytest.mark.parametrize(
    ("known", "text"),
    [
        (view(), "114.0 MiB/s, measured 3 s ago, round trip 0.2 ms; at most 1192.0 MiB/s, speed of eth0"),
        (
            view(limit=None, limited_by=None, device="eth0 tells no speed"),
            "114.0 MiB/s, measured 3 s ago, round trip 0.2 ms; eth0 tells no speed",
        ),
        (
            view(measured=measured(is_least=True), limit=None, limited_by=None, device="eth0 tells no speed"),
            "at least 114.0 MiB/s, measured 3 s ago, round trip 0.2 ms; eth0 tells no speed",
        ),
        (
            view(bandwidth=50 * MIB, told_by="asked", limit=50 * MIB, limited_by="asked"),
            "50.0 MiB/s, from --bandwidth; measured 114.0 MiB/s 3 s ago, round trip 0.2 ms",
        ),
        (
            view(bandwidth=50 * MIB, told_by="configured", limit=50 * MIB, limited_by="configured", measured=None),
            "50.0 MiB/s, from migration.max_bandwidth; never measured (`vmferry host probe host-a host-b`)",
        ),
        (
            view(bandwidth=1192 * MIB, told_by="device", measured=measured(age_s=7300.0, counts=False)),
            "1192.0 MiB/s, speed of eth0; measured 114.0 MiB/s 2 h ago, round trip 0.2 ms, too long ago to count",
        ),
        (
            view(**UNKNOWN, measured=None),
            "nobody knows how fast it is; eth0 tells no speed; never measured (`vmferry host probe host-a host-b`)",
        ),
        (
            view(measured=measured(round_trip_ms=0.006, age_s=900.0), limit=None, limited_by=None, device="lo"),
            "114.0 MiB/s, measured 15 min ago, round trip under 0.1 ms; lo",
        ),
        (
            view(measured=measured(round_trip_ms=0.0), limit=None, limited_by=None, device="lo"),
            "114.0 MiB/s, measured 3 s ago; lo",
        ),
    ],
)
def test_a_link_is_told_with_whose_word_it_is(known: dict[str, Any], text: str) -> None:
    """What a stream can count on stands first, then what else is known of it."""
    assert link_text(known) == f"link from host-a to host-b: {text}"


def test_host_probe_asks_the_host_that_sends(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """The source's agent probes; text and JSON show the same."""
    fleet.answer("host-a", "POST", PROBE, view())
    ran = vmferry("host", "probe", "host-a", "host-b")
    assert (ran.exit_code, ran.err) == (0, "")
    assert ran.out.startswith("link from host-a to host-b: 114.0 MiB/s, measured 3 s ago")
    assert fleet.agents["host-a"].orders() == [("POST", PROBE, {"destination": "host-b"})]
    ran = vmferry("host", "probe", "host-a", "host-b", "--json")
    assert (ran.exit_code, json.loads(ran.out)) == (0, view())


def test_host_probe_tells_why_not(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """A refusal is one line and exit code 6."""
    problem = {"code": "refused", "what": "Guest web-7 is moving", "fix": "wait"}
    fleet.answer("host-a", "POST", PROBE, problem, status=409)
    ran = vmferry("host", "probe", "host-a", "host-b")
    assert ran.exit_code == 6
    assert "Guest web-7 is moving" in ran.err


def test_check_shows_the_link(fleet: FakeFleet, vmferry: Vmferry) -> None:
    """Beside blockers and promise; an agent that tells nothing of it is no error; --bandwidth is asked about."""
    fleet.has_guests(host_a=[guest_view()])
    where = ("host-a", "POST", "/v1/guests/web-7/check")
    fleet.answer(*where, {"blockers": [], "guarantee": None, "link": view()})
    ran = vmferry("check", "web-7", "host-b", "--bandwidth", "1MiB/s")
    assert "link from host-a to host-b: 114.0 MiB/s, measured 3 s ago" in ran.out
    body = {"destination": "host-b", "options": {"max_bandwidth": MIB}}
    assert fleet.agents["host-a"].orders() == [("POST", "/v1/guests/web-7/check", body)]
    fleet.answer(*where, {"blockers": [], "guarantee": None, "link": None})
    ran = vmferry("check", "web-7", "host-b")
    assert (ran.exit_code, "link from" in ran.out) == (0, False)
