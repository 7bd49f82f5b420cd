"""Recorded moves of libvirt 9.0 and 11.3 replayed: exact rounds, exact decisions, and what libvirt says meanwhile."""

from __future__ import annotations

import os

import pytest
from tests.libvirt.transcripts import DIRECTORY, FILES, load, replay, story

from vmferry.core.convergence import Round
from vmferry.core.migration import MigrationStatus
from vmferry.core.units import MIB
from vmferry.libvirt.moves.samples import sample_of

#: Whose decisions are written down for each move; the one that steered it is always among them.
POLICIES = ("vmferry", "qemu", "nova", "ovirt-postcopy", "article", "xen-3.0-default-build")
WAYS = ("aborted", "autoconverge", "postcopy", "precopy")
#: Moves that arrived while the guest still ran at the source.
ARRIVED = [name for name in FILES if name.endswith(("precopy", "autoconverge"))]


def test_every_libvirt_has_every_way() -> None:
    """A version that is added later without its transcripts would go untested."""
    assert set(FILES) == {f"libvirt-{version}-{way}" for version in ("9.0", "11.3") for way in WAYS}
    for name in FILES:
        assert name.startswith(f"libvirt-{load(name).head['libvirt'].rpartition('.')[0]}-")


@pytest.mark.parametrize("name", FILES)
def test_rounds_and_decisions_are_exactly_these(name: str) -> None:
    """What each policy is told and orders stands in a file beside the transcript; UPDATE_GOLDEN=1 writes it."""
    transcript = load(name)
    text = "".join(f"{policy}:\n" + "".join(f"{line}\n" for line in story(transcript, policy)) for policy in POLICIES)
    path = DIRECTORY / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", FILES)
def test_the_policy_that_steered_orders_the_same_again(name: str) -> None:
    """The replay tells it what it was told live: its orders are those that libvirt was given, in their turn."""
    transcript = load(name)
    orders = [order for seen in replay(transcript, transcript.head["policy"]) for order in seen.orders]
    live = transcript.of("order")
    assert orders[: len(live)] == [line["order"] for line in live]
    assert [line["refused"] for line in live] == [None] * len(live)


@pytest.mark.parametrize("name", ARRIVED)
def test_rounds_are_libvirts_iterations(name: str) -> None:
    """Each was told by an event too, none is counted twice, and the last figure is the one that the end tells."""
    transcript = load(name)
    told = [int(words.split("'")[1]) for words in transcript.events("source", "migration-iteration")]
    assert told == list(range(1, told[-1] + 1))
    seen = [reading.sample.rounds for reading in transcript.readings() if reading.sample.total_bytes]
    assert seen == sorted(seen)
    assert {*seen} <= {*told}
    (after,) = transcript.of("after")
    over = sample_of(after["stats"])
    assert (over.status, over.rounds) == (MigrationStatus.COMPLETED, told[-1])
    assert over.downtime_ms is not None
    rounds = [seen.told for seen in replay(transcript, "qemu") if isinstance(seen.told, Round)]
    assert rounds[0].round == 1
    assert rounds[0].sent_pages * 4096 > 0.95 * transcript.head["memory_mib"] * MIB  # all but what was dirtied in time
    assert sum(ended.covers for ended in rounds) == rounds[-1].round


@pytest.mark.parametrize("name", FILES)
def test_the_domain_never_runs_twice(name: str) -> None:
    """The source says that it stands still before the destination says that it runs."""
    transcript = load(name)
    lives = [(line["host"], line["words"]) for line in transcript.of("event") if line["event"] == "lifecycle"]
    if name.endswith("aborted"):
        assert ("source", "Stopped Migrated") not in lives
        assert not [words for host, words in lives if host == "destination" and words.startswith("Resumed")]
        return
    resumed = next(i for i, (host, words) in enumerate(lives) if (host, words.split()[0]) == ("destination", "Resumed"))
    assert ("source", "Suspended Migrated") in lives[:resumed]
    assert ("source", "Stopped Migrated") in lives[resumed:]


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("postcopy")])
def test_pages_that_follow_are_no_round(name: str) -> None:
    """Once the guest has left, readings are of post-copy and give no observation: nothing is left to decide."""
    transcript = load(name)
    statuses = [reading.sample.status for reading in transcript.readings()]
    left = statuses.index(MigrationStatus.POSTCOPY_ACTIVE)
    assert MigrationStatus.ACTIVE not in statuses[left:]
    assert "Suspended Post-copy" in transcript.events("source", "lifecycle")
    assert "start post-copy" in [line["order"] for line in transcript.of("order")]


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("aborted")])
def test_one_that_was_given_up_says_so(name: str) -> None:
    """The last reading is `cancelled`, and the other host has thrown its half away."""
    transcript = load(name)
    assert [reading.sample.status for reading in transcript.readings()][-1] is MigrationStatus.CANCELLED
    assert transcript.events("destination", "lifecycle")[-1].startswith("Stopped")


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("autoconverge")])
def test_the_brake_is_read(name: str) -> None:
    """QEMU raises it by itself; a move without it has none."""
    levels = [reading.sample.throttle_percent for reading in load(name).readings()]
    seen = [level for level in levels if level]
    assert seen == sorted(seen)
    assert len({*seen}) > 1
    assert not [r for r in load(name.replace("autoconverge", "precopy")).readings() if r.sample.throttle_percent]
