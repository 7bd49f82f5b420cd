"""Blockers of a move by RDMA."""

from __future__ import annotations

import dataclasses

import pytest
from tests.core_checks.conftest import make_case

from vmferry.core.capabilities import StreamWish, Transport
from vmferry.core.checks import Case, find_blockers

MISSING, CLEAR = "stream.rdma-missing", "stream.rdma-in-the-clear"
PLAIN = StreamWish(Transport.RDMA, encrypted=False)


def case_with(source: str | None, destination: str | None, stream: StreamWish = PLAIN) -> Case:
    """Return the case of hosts that say why they cannot."""
    case = make_case()
    return dataclasses.replace(
        case,
        source=dataclasses.replace(case.source, why_no_rdma=source),
        destination=dataclasses.replace(case.destination, why_no_rdma=destination),
        stream=stream,
    )


def test_both_can() -> None:
    """Nothing blocks a guest that may go in the clear."""
    assert find_blockers(case_with(None, None)) == ()


def test_each_host_says_what_it_lacks() -> None:
    """Both are told at once, in their own words, and that nothing would be encrypted."""
    blockers = find_blockers(case_with("it has no card", "its card is down", StreamWish(Transport.RDMA)))
    assert [blocker.code for blocker in blockers] == [MISSING, MISSING, CLEAR]
    assert "of host-a, it has no card" in blockers[0].what
    assert "of host-b, its card is down" in blockers[1].what
    assert "host-b" in blockers[1].fix
    assert "--plain" in blockers[2].fix


@pytest.mark.parametrize("stream", [StreamWish(), StreamWish(Transport.FD, encrypted=False)], ids=str)
def test_nobody_asks_for_a_device_who_does_not_need_one(stream: StreamWish) -> None:
    """Other links never look at it."""
    assert find_blockers(case_with("it has no card", "it has no card", stream)) == ()


def test_an_agent_that_says_nothing() -> None:
    """An older one is told as such."""
    case = dataclasses.replace(make_case(), stream=PLAIN)
    blockers = find_blockers(case)
    assert {blocker.code for blocker in blockers} == {MISSING}
    assert all("update it" in blocker.what for blocker in blockers)
