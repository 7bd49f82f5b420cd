"""Streams through commands: both hosts must have them, and nobody sends a guest in the clear by mistake."""

from __future__ import annotations

import dataclasses

import pytest

from vmferry.core.capabilities import StreamWish
from vmferry.core.checks import Case
from vmferry.core.checks.pipeline import check_pipeline


def codes(case: Case, stream: StreamWish, here: dict[str, bool], there: dict[str, bool]) -> list[str]:
    """Return what blocks between two hosts with these pipelines."""
    source = dataclasses.replace(case.source, pipelines=here)
    destination = dataclasses.replace(case.destination, pipelines=there)
    asked = dataclasses.replace(case, source=source, destination=destination, stream=stream)
    return [blocker.code for blocker in check_pipeline(asked)]


CLEAR, MISSING = "stream.pipeline-in-the-clear", "stream.pipeline-missing"


@pytest.mark.parametrize(
    ("encrypted", "here", "there", "expected"),
    [
        (True, {"age": True}, {"age": True}, []),
        (False, {"zstd": False}, {"zstd": False}, []),
        (True, {}, {"age": True}, [MISSING]),
        (True, {}, {}, [MISSING, MISSING]),
        (True, {"age": True}, {"age": False}, [CLEAR]),
        (True, {"age": False}, {}, [CLEAR, MISSING]),
    ],
)
def test_both_hosts_are_asked(
    case: Case, encrypted: bool, here: dict[str, bool], there: dict[str, bool], expected: list[str]
) -> None:
    """Each host that lacks it, or does not say that it encrypts, is named."""
    name = "age" if encrypted else "zstd"
    assert codes(case, StreamWish(encrypted=encrypted, pipeline=name), here, there) == expected


def test_nothing_is_asked_without_one(case: Case) -> None:
    """Hosts without any pipeline are good for every other stream."""
    assert codes(case, StreamWish(), {}, {}) == []
